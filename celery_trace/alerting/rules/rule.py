"""
The contract of an alert rule: facts of the store in, readings out.

A rule is pure; it does not wait, write or keep state. It yields a :class:`Reading` for each subject (a leak, a worker,
a task's name) that has a value to compare. Whether a value *fires*, for how long, and who is notified is decided by
:class:`celery_trace.alerting.engine.AlertEngine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple
from urllib.parse import quote, urlencode

from msgspec import Struct

from celery_trace.alerting.rules.units import Unit
from celery_trace.model import (
    Consuming,
    FailureGroup,
    FailureSummary,
    Forecast,
    Leak,
    QueueView,
    RedeliveryRisk,
    RepeatedRun,
    Rollup,
    RunningView,
    ScheduleView,
    StalledProcess,
    WorkerView,
)

SEVERITIES = ("info", "warning", "critical")


class Facts(Struct, frozen=True, kw_only=True):
    """
    What the rules read: one reading of the store.

    ``groups`` and ``losses`` are at least those that were active within the longest window of a rule, ``rollups``
    those of its buckets. ``leaks`` are those with a final verdict. ``dropped_records`` counts what the spools have
    dropped and no alert has reported. ``queues`` cover the longest window, and ``depth_changes`` is by how many
    messages each queue has grown in it. ``running`` are the runs in progress, ``stalled`` the main processes and
    beats that are blocked. ``consuming`` is the state of each queue in each worker that consumes it. Facts that no
    active rule needs are not fetched.
    """

    now_s: float
    leaks: list[Leak] = []
    workers: list[WorkerView] = []
    forecasts: list[Forecast] = []
    groups: list[FailureGroup] = []
    losses: list[FailureSummary] = []
    rollups: list[Rollup] = []
    dropped_records: int = 0
    queues: list[QueueView] = []
    depth_changes: dict[str, int] = {}
    repeated_runs: list[RepeatedRun] = []
    redelivery_risks: list[RedeliveryRisk] = []
    schedules: list[ScheduleView] = []
    running: list[RunningView] = []
    stalled: list[StalledProcess] = []
    consuming: list[Consuming] = []


class Reading(NamedTuple):
    """The value of one subject under one rule."""

    subject: str  # identifies it among the rule's subjects; shown
    value: float  # in the rule's unit
    text: str  # one sentence
    link: str = ""  # a path on the monitor


class Rule(Struct, frozen=True, kw_only=True):
    """
    A checked rule. All times in seconds.

    It fires once a reading's value has been greater than ``above`` for ``for_s``. It is over once the value has
    stayed at or under ``clear_below`` (a share of ``above``) for ``hold_s``: between the two nothing changes, so that
    a value that moves around the threshold pages once.
    """

    rule: str
    name: str
    above: float
    severity: str = "warning"
    for_s: float = 0.0
    hold_s: float = 600.0
    clear: float = 0.8
    repeat_s: float = 4 * 3600.0
    window_s: float = 0.0
    runs: int = 0
    names: tuple[str, ...] = ()

    @property
    def clear_below(self) -> float:
        """The value at or under which a firing alert may end, in the rule's unit."""
        return self.above * self.clear

    def wants(self, name: str) -> bool:
        """Whether one of the rule's patterns (as in the shell) matches the name."""
        return not self.names or any(fnmatchcase(name, pattern) for pattern in self.names)


class RuleKind(NamedTuple):
    """
    A kind of rule, one module each in :mod:`celery_trace.alerting.rules`.

    ``meaning`` may contain ```above```, ```window``` and ```runs```, which are replaced by the rule's own values.
    """

    name: str
    read: Callable[[Facts, Rule], Iterator[Reading]]
    needs: tuple[str, ...]  # the fields of :class:`Facts` that ``read`` uses; it can't read any other
    unit: Unit  # of ``above``
    quantity: str  # what is compared with ``above``, for a form
    shipped: Rule
    meaning: str
    happens: bool = False  # it reports something that happened and cannot be undone: its end is not announced
    at_zero: str = ""  # the meaning if ``above`` is 0
    above_at_least: float = 0.0  # ``above`` must be greater than this, in the unit
    why_at_least: str = ""


def link(page: str, **selected: str) -> str:
    """A path on the monitor, such as ``workers?worker=w1%40host``."""
    return f"{page}?{urlencode(selected, quote_via=quote, safe='')}" if selected else page
