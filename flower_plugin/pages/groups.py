"""One group of failures: its trend, its tags, what users decided about it, and its failures."""

from __future__ import annotations

from celery_trace.model.triage import GroupDetail, Retried
from celery_trace.queries import Queries
from celery_trace.queries.language import written
from flower_plugin.auth.roles import UserRole
from flower_plugin.auth.values import without_comments
from flower_plugin.pages.failures import IGNORE_FOR, exception_text
from flower_plugin.pages.page import Context, MonitorPage, Visit
from flower_plugin.problems import NotFound

#: Failures on a page.
MOST_ROWS = 50
#: Most bars of the trend.
MOST_BARS = 60
_DAY_S = 86_400.0
#: Values of ``trend=`` with label and length in seconds; None since the first failure.
TREND_RANGES: dict[str, tuple[str, float | None]] = {
    "day": ("24 hours", _DAY_S),
    "week": ("7 days", 7 * _DAY_S),
    "all": ("all", None),
}


def group(queries: Queries, visit: Visit, fingerprint: str) -> Context:
    """
    One group.

    Raises:
        NotFound: No group has this fingerprint.
    """
    detail: GroupDetail | None = queries.group(fingerprint)
    if detail is None:
        raise NotFound("Group not found.", "Its failures may have been pruned.", ("trace_failures", "All groups"))
    shows_values = visit.may(UserRole.LOCALS)
    if not shows_values:
        detail = without_comments(detail)
    kind, message = exception_text(detail.exception, detail.outcome)
    span = visit.word("trend", tuple(TREND_RANGES), "day" if visit.now_s - detail.first_seen < _DAY_S else "week")
    length_s = TREND_RANGES[span][1]
    since_s = detail.first_seen if length_s is None else visit.now_s - length_s
    page = queries.failures(fingerprint=fingerprint, limit=MOST_ROWS, cursor=visit.word("cursor") or None)
    retried: dict[str, Retried] = queries.retried([row.id for row in page.rows])
    may_retry = detail.kind == "task" and visit.may(UserRole.LIVE) and not visit.read_only
    return {
        "title": f"{kind} in {detail.name}",
        "group": detail,
        "kind": kind,
        "message": message,
        "shows_values": shows_values,
        "may_decide": shows_values and not visit.read_only,
        "may_retry": may_retry,
        "retryable": len(queries.retryable(fingerprint)) if may_retry else 0,
        "order": visit.monitor.retries(fingerprint),
        "trend": queries.group_trend(fingerprint, since_s, MOST_BARS),
        "trend_ranges": TREND_RANGES,
        "span": span,
        "rows": page.rows,
        "next": page.next,
        "retried": retried,
        "written": written,
        "ignore_for": IGNORE_FOR,
        "assignees": sorted({*queries.assignees(), visit.user.name}) if shows_values else [],
        "exception_text": exception_text,
    }


ONE = MonitorPage(
    path=r"/trace/failures/groups/([^/]+)",
    name="trace_failure_group",
    title="Failure group",
    template="trace/failure_group.html",
    tab="failures",
    context=group,
)
