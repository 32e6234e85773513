"""The rule ``spool_dropping``: records were dropped because a spool was full."""

from __future__ import annotations

from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind
from celery_trace.alerting.rules.units import COUNT

#: The one subject of this rule.
SPOOL = "spool"


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    del rule
    if facts.dropped_records > 0:
        yield Reading(
            subject=SPOOL,
            value=float(facts.dropped_records),
            text=f"The spool was full and {facts.dropped_records} records were dropped. Check that the collector runs "
            "and the store answers (celery trace doctor), or raise trace_spool_bytes.",
        )


KIND = RuleKind(
    name="spool_dropping",
    read=_read,
    needs=("dropped_records",),
    unit=COUNT,
    quantity="Dropped records",
    shipped=Rule(rule="spool_dropping", name="spool_dropping", above=0, window_s=900, hold_s=0, severity="critical"),
    meaning="More than `above` records were dropped by a full spool within `window`",
    at_zero="A record was dropped by a full spool within `window`",
)
