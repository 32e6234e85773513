"""Failures: groups, the list, and one failure with its frames."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.model import (
    ChainLink,
    ExceptionInfo,
    FailureDetail,
    FailureGroup,
    FailureSummary,
    FrameView,
    Line,
    Page,
)
from celery_trace.model.logs import LogLine
from celery_trace.queries import Queries
from celery_trace.queries.failures import SEARCHED_VALUES
from celery_trace.reproduction.written import may_repeat
from celery_trace.text.escape import escaped_lines
from flower_plugin.auth.roles import UserRole
from flower_plugin.auth.values import without_values
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit
from flower_plugin.pages.searching import Asked, asked
from flower_plugin.problems import NotFound
from flower_plugin.rendering.source import SourceLine, source_lines

MOST_ROWS = 100
MOST_MEMBERS = 100
#: The orders of groups.
SORTS = (("", "Last seen"), ("count", "Count"), ("first", "First seen"))
#: For how long a group can be ignored: seconds and label.
IGNORE_FOR = (
    (3600, "1 hour"),
    (86_400, "1 day"),
    (7 * 86_400, "1 week"),
    (30 * 86_400, "30 days"),
    (365 * 86_400, "1 year"),
)


class ShownFrame(Struct, frozen=True, kw_only=True):
    """
    A frame for the template.

    Attributes:
        index: Its number in the first exception, for the shell; -1 in others.
        link: The address of its line in an editor or on a forge, or empty.
    """

    index: int
    frame: FrameView
    file: str
    source: list[SourceLine]
    opened: bool
    link: str


class ShownLink(Struct, frozen=True, kw_only=True):
    """One exception of the chain. ``runs`` are its frames in order, in groups of user code and libraries."""

    link: ChainLink
    text: str
    runs: list[tuple[bool, list[ShownFrame]]]


def exception_text(exception: ExceptionInfo | None, outcome: str) -> tuple[str, str]:
    """Type and message; a description of the outcome if nothing was raised."""
    if exception is not None:
        if exception.type == "TimeLimitExceeded" and exception.message.replace(".", "", 1).isdigit():
            return exception.type, f"Exceeded the hard time limit of {exception.message} s"
        return exception.type, exception.message
    return {
        "lost": ("Killed", "The process was killed during the run"),
        "time_limit": ("Time limit", "Exceeded the hard time limit"),
        "revoked": ("Revoked", "The task was revoked"),
    }.get(str(outcome), (str(outcome).replace("_", " ").capitalize(), ""))


def _shared(queries: Queries, visit: Visit, wanted: Asked, page: Page[FailureSummary] | Page[FailureGroup]) -> Context:
    return {
        "rows": page.rows,
        "next": page.next,
        "asked": wanted,
        "views": queries.saved_views(visit.user.name, wanted.noun),
        "filtered": bool(wanted.query),
        "exception_text": exception_text,
        "shows_values": visit.may(UserRole.LOCALS),
        "searched_values": SEARCHED_VALUES,
        "any_process": bool(page.rows) or bool(queries.workers(limit=1).rows),
    }


def groups(queries: Queries, visit: Visit) -> Context:
    """Failure groups."""
    wanted = asked(visit, "groups", values=True)
    sort = visit.word("sort", ("count", "first"))
    cursor = visit.word("cursor") or None
    page = wanted.page(lambda query: queries.groups(query=query, sort=sort or None, limit=MOST_ROWS, cursor=cursor))
    may_decide = visit.may(UserRole.LOCALS) and not visit.read_only
    return {
        **_shared(queries, visit, wanted, page),
        "sort": sort,
        "sorts": SORTS,
        "may_decide": may_decide,
        "ignore_for": IGNORE_FOR,
    }


def listing(queries: Queries, visit: Visit) -> Context:
    """All failures, newest first."""
    wanted = asked(visit, "failures", values=True)
    cursor = visit.word("cursor") or None
    page = wanted.page(lambda query: queries.failures(query=query, limit=MOST_ROWS, cursor=cursor))
    return {**_shared(queries, visit, wanted, page), "sort": "", "sorts": ()}


_LINK_TEXTS = {
    "cause": "was the direct cause of the exception above",
    "context": "was being handled when the exception above was raised",
    "group": "is part of the group above",
}


def shown_chain(detail: FailureDetail, visit: Visit, release: str = "") -> list[ShownLink]:
    """
    The exceptions of a failure with their frames, the raised one first.

    Consecutive library frames are collapsed. The innermost frame of user code is expanded.
    """
    chain = detail.chain or [_only_link(detail)]
    # A black box does not know about libraries and marks all frames as user code.
    sampled = detail.last_sample is not None
    links = []
    for number, link in enumerate(chain):
        runs = in_groups(link.frames, visit, first=number == 0, sampled=sampled, release=release)
        # At a hard time limit the child gets a SystemExit. Its attributes don't belong to the exception in the title.
        other = number == 0 and detail.exception is not None and link.type != detail.exception.type
        shown_link = replace(link, attributes=[]) if other else link
        links.append(ShownLink(link=shown_link, text=_LINK_TEXTS.get(link.link, ""), runs=runs))
    return links


def in_groups(
    frames: Sequence[FrameView], visit: Visit, *, first: bool, sampled: bool, release: str = ""
) -> list[tuple[bool, list[ShownFrame]]]:
    """
    Frames in groups of user code (True) and libraries (False), in their order.

    Args:
        first: They are numbered, and the innermost frame of user code is expanded.
        sampled: They are of a sample, which marks all frames as user code.
        release: That the process ran, for links to their lines.
    """
    ours = [frame.in_app and (not sampled or visit.paths.is_users(frame.file)) for frame in frames]
    opened = ours.index(True) if True in ours else 0
    groups: list[tuple[bool, list[ShownFrame]]] = []
    for index, (frame, in_app) in enumerate(zip(frames, ours, strict=True)):
        is_opened = first and index == opened
        shown = _shown_frame(frame, visit, index=index if first else -1, opened=is_opened, release=release)
        if groups and groups[-1][0] == in_app:
            groups[-1][1].append(shown)
        else:
            groups.append((in_app, [shown]))
    return groups


def _only_link(detail: FailureDetail) -> ChainLink:
    """A chain for a failure without one: its exception, or an empty one."""
    raised = detail.exception or ExceptionInfo(type="", module="", message="")
    return ChainLink(
        type=raised.type, module=raised.module, message=raised.message, link="", parent=-1, frames=detail.frames
    )


def _shown_frame(frame: FrameView, visit: Visit, *, index: int, opened: bool, release: str) -> ShownFrame:
    context = frame.context or ([(frame.line, frame.code)] if frame.code else [])
    return ShownFrame(
        index=index,
        frame=frame,
        file=visit.paths.short(frame.file),
        source=source_lines(context, frame.line, frame.columns),
        opened=opened,
        link=visit.source_link(frame.file, frame.line, module=frame.module, release=release),
    )


def as_text(detail: FailureDetail) -> str:
    """A failure as plain text, such as for a ticket."""
    kind, message = exception_text(detail.exception, detail.outcome)
    lines = [
        f"{kind}: {message}",
        f"{detail.kind} {detail.name} ({detail.outcome}), id {detail.task_id or detail.id}, "
        f"retries {detail.retries}, worker {detail.worker or detail.hostname}, pid {detail.pid}",
        "",
    ]
    for link in detail.chain:
        if link.link:
            lines.append(f"\n{link.type}: {link.message} ({_LINK_TEXTS.get(link.link, link.link)})")
        for frame in link.frames:
            lines.append(f'  File "{frame.file}", line {frame.line}, in {frame.qualname or frame.function}')
            if frame.code:
                lines.append(f"    {frame.code.strip()}")
            lines.extend(f"      {local.name} = {local.value}" for local in frame.locals if frame.in_app)
    if detail.traceback_text and not detail.frames:
        lines.append(detail.traceback_text)
    if detail.logs is not None:
        lines += ["", "Log records:", *(f"  {one.level} {one.logger}: {one.text}" for one in detail.logs.lines)]
    return escaped_lines("\n".join(lines))


class Member(Struct, frozen=True, kw_only=True):
    """
    A task of a workflow, for the template.

    Attributes:
        relation: To the failed task: ``root``, ``parent``, ``child``, ``sibling``, ``this`` or empty.
        depth: Levels below the root.
        link: A path below the prefix.
    """

    task_id: str
    name: str
    state: str
    parent_id: str
    at_s: float | None
    link: str
    relation: str = ""
    depth: int = 0


def workflow(queries: Queries, visit: Visit, detail: FailureDetail) -> list[Member]:
    """
    The tasks of the same chain, group or chord, from the root down, children after their parents.

    Failures and single runs are in the store. Other successful tasks are known as long as Flower keeps them in memory.
    """
    root_id = detail.task.root_id if detail.task is not None else ""
    if not root_id:
        return []
    found: dict[str, Member] = {}
    for task in visit.monitor.workflow(root_id):
        found[task.task_id] = Member(
            task_id=task.task_id, name=task.name, state=task.state, parent_id=task.parent_id, at_s=task.at_s,
            link=f"/task/{quote(task.task_id)}",
        )  # fmt: skip
    for run in queries.runs(root_id=root_id, limit=MOST_MEMBERS).rows:
        known = found.get(run.task_id)
        found[run.task_id] = Member(
            task_id=run.task_id, name=run.name, state=run.state, at_s=run.started_at_s,
            parent_id=known.parent_id if known else "" if run.task_id == root_id else root_id,
            link=f"/trace/runs/{run.kind}/{quote(run.name, safe='')}?run={quote(run.id)}",
        )  # fmt: skip
    for row in reversed(queries.failures(root_id=root_id, limit=MOST_MEMBERS).rows):
        found[row.task_id] = Member(
            task_id=row.task_id, name=row.name, state=str(row.outcome), parent_id=row.parent_id, at_s=row.at,
            link=f"/trace/failures/{quote(row.id)}",
        )  # fmt: skip
    if len(found) < 2 and not detail.parent_id and root_id == detail.task_id:
        return []
    for missing, above in ((root_id, ""), (detail.parent_id, root_id)):
        if missing and missing not in found:
            # It succeeded and was not stored, but its place in the tree is known.
            found[missing] = Member(
                task_id=missing, name="", state="", parent_id=above, at_s=None, link=f"/task/{quote(missing)}"
            )
    return _as_tree(found, root_id, detail)


def _as_tree(found: dict[str, Member], root_id: str, detail: FailureDetail) -> list[Member]:
    below: dict[str, list[Member]] = defaultdict(list)
    for member in found.values():
        if member.task_id != root_id:
            below[member.parent_id if member.parent_id in found else root_id].append(member)
    ordered: list[Member] = []
    waiting = [(found[root_id], 0)]
    while waiting:
        member, depth = waiting.pop()
        if any(one.task_id == member.task_id for one in ordered):
            continue  # records that claim to be each other's parents
        ordered.append(replace(member, depth=min(depth, 6), relation=_relation(member, root_id, detail)))
        children = sorted(below[member.task_id], key=lambda one: -(one.at_s or 0.0))
        waiting.extend((child, depth + 1) for child in children)
    return ordered[:MOST_MEMBERS]


def _relation(member: Member, root_id: str, detail: FailureDetail) -> str:
    if member.task_id == detail.task_id:
        return "this"
    if member.task_id == detail.parent_id:
        return "parent"
    if member.task_id == root_id:
        return "root"
    if member.parent_id == detail.task_id:
        return "child"
    return "sibling" if member.parent_id == detail.parent_id and detail.parent_id else ""


def failure(queries: Queries, visit: Visit, identifier: str) -> Context:
    """
    One failure.

    Raises:
        NotFound: No failure has this id.
    """
    detail: FailureDetail | None = queries.failure(identifier)
    if detail is None:
        raise NotFound(
            "Failure not found.",
            "It may have been pruned, or it may not have reached the store yet.",
            ("trace_failures", "All failures"),
        )
    shows_values = visit.may(UserRole.LOCALS)
    if not shows_values:
        detail = without_values(detail)
    kind, message = exception_text(detail.exception, detail.outcome)
    release = queries.release_of(detail.process)
    shell = visit.settings.shell
    may_shell = visit.may(UserRole.RECREATED) and shell != "off"
    shells = queries.shells(failure_id=identifier, limit=20).rows if shows_values else []
    return {
        "title": f"{kind} in {detail.name}",
        "failure": detail,
        "kind": kind,
        "message": message,
        "chain": shown_chain(detail, visit, release),
        "log_lines": _log_lines(detail, visit, release),
        "heap": {"heap": detail.heap},
        "text": as_text(detail),
        "attempts": queries.attempts(detail.task_id),
        "workflow": workflow(queries, visit, detail),
        "exception_text": exception_text,
        "shows_values": shows_values,
        "makes_test": shows_values and bool(detail.frames) and may_repeat(detail.kind, detail.outcome),
        "has_shell": may_shell and bool(detail.chain and any(link.frames for link in detail.chain)),
        "shells": shells,
        "neighbours": queries.neighbours(detail),
        "retried": queries.retried([identifier]).get(identifier),
        "request_rows": _request_rows(detail),
        "last_stack": _last_stack(detail, visit),
    }


def _last_stack(detail: FailureDetail, visit: Visit) -> list[tuple[Line, str]]:
    """The black box's frames with short file names; empty if the failure's frames already show them."""
    if detail.last_sample is None:
        return []
    shown = [(frame.file, frame.line) for link in shown_chain(detail, visit) for frame in link.link.frames]
    stack = detail.last_sample.stack
    if [(line.file, line.line) for line in stack] == shown[: len(stack)]:
        return []
    return [(line, visit.paths.short(line.file)) for line in stack]


def _log_lines(detail: FailureDetail, visit: Visit, release: str) -> list[tuple[LogLine, str, str]]:
    """The run's log records, each with its place as text and the link to it."""
    lines = detail.logs.lines if detail.logs is not None else []
    return [
        (
            line,
            f"{visit.paths.short(line.file)}:{line.line}" if line.file else "",
            visit.source_link(line.file, line.line, release=release),
        )
        for line in lines
    ]


def _request_rows(detail: FailureDetail) -> list[tuple[str, list[tuple[str, str]]]]:
    """The parts of a Django request that are not empty."""
    request = detail.request
    if request is None:
        return []
    parts: list[tuple[str, list[tuple[str, str]]]] = [
        ("GET", [(name, ", ".join(values)) for name, values in request.get.items()]),
        ("POST", [(name, ", ".join(values)) for name, values in request.post.items()]),
        ("Headers", list(request.headers.items())),
        ("Cookies", list(request.cookies.items())),
    ]
    return [(name, rows) for name, rows in parts if rows]


GROUPS = MonitorPage(
    path=r"/trace/failures",
    name="trace_failures",
    title="Failures",
    template="trace/failure_groups.html",
    tab="failures",
    context=groups,
    place=NavPlace.BAR,
)
LIST = MonitorPage(
    path=r"/trace/failures/all",
    name="trace_failure_list",
    title="Failures",
    template="trace/failure_list.html",
    tab="failures",
    context=listing,
)
ONE = MonitorPage(
    path=r"/trace/failures/([^/]+)",
    name="trace_failure",
    title="Failure",
    template="trace/failure.html",
    tab="failures",
    context=failure,
)
