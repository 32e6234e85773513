"""
Validates Celery's events before Flower processes them.

Any client of the broker can publish an event, and Flower sets each of its fields as an attribute of a task or worker:
text instead of a number, ``heartbeats``, ``_fields``. They then appear in pages, API responses and metrics. So events
are rebuilt here with only the fields of Celery's own events, each with a valid type and range. Arguments, results and
exceptions are redacted.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping

from celery_trace.clock import Clock
from celery_trace.redaction import Redactor, Scrubber
from celery_trace.spool.unrecorded import EVENT as UNRECORDED
from celery_trace.text.escape import escaped, escaped_lines
from flower_plugin.incoming.argument_secrets import ArgumentSecrets
from flower_plugin.incoming.redacted import text_of

logger = logging.getLogger("celery_trace.monitor")

#: ``group-subject``; an application's own events may have any subject.
_TYPE = re.compile(r"(?P<group>[A-Za-z0-9_.:]{1,50})(?:-(?P<subject>[A-Za-z0-9_.:-]{1,50}))?")

#: Maximum clock skew of other hosts into the future, seconds. Flower shows a worker as online until some seconds after
#: its newest timestamp.
MOST_AHEAD_S = 86_400.0
#: The greatest integer that a browser represents exactly.
MOST_INTEGER = 2**53 - 1
#: Characters of one value. Celery itself truncates arguments and results at 1,024.
MOST_VALUE = 16 * 1024
MOST_TRACEBACK = 64 * 1024
#: Characters of a name or an id.
MOST_NAME = 400
#: Maximum number of names of tasks that the monitor's app does not have, and of types of application events. Flower and
#: the Prometheus client keep a series for each until the monitor stops.
MOST_NAMES, MOST_TYPES = 10_000, 500
#: Maximum number of tasks with remembered secrets.
MOST_LEARNED = 10_000
#: Celery's own types and ours; forged types can't crowd them out.
_CELERYS = frozenset(
    (
        "worker-online", "worker-heartbeat", "worker-offline", "task-sent", "task-received", "task-started",
        "task-succeeded", "task-failed", "task-retried", "task-revoked", "task-rejected", "task-cancelled",
        UNRECORDED,
    )
)  # fmt: skip


class BadEvent(Exception):
    """Not a valid Celery event."""


def _number(least: float, most: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise BadEvent
        return value

    return check


def _integer(most: int = MOST_INTEGER, least: int = 0) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise BadEvent
        return value

    return check


def _name(value: object, most: int = MOST_NAME) -> str:
    """A name or an id: one line without control or direction characters."""
    if not isinstance(value, str) or not 0 < len(value) <= most or value.isspace():
        raise BadEvent
    if escaped(value) != value:
        raise BadEvent
    return value


def _text(value: object) -> str:
    """A short text, truncated."""
    if not isinstance(value, str):
        raise BadEvent
    return escaped_lines(value[:MOST_NAME])


def is_name(value: object) -> bool:
    """Whether a value is a valid worker name."""
    try:
        _name(value)
    except BadEvent:
        return False
    return True


def _load(value: object) -> list[float]:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= 3:
        raise BadEvent
    return [_LOAD(one) for one in value]


_LOAD = _number(0.0, 1e6)

#: Optional fields of all events. ``timestamp`` and ``hostname`` are checked separately, as they are required.
_COMMON: Mapping[str, Callable[[object], object]] = {
    "clock": _integer(),
    "utcoffset": _number(-24, 24),  # hours
    "pid": _integer(2**32),
}
_WORKER: Mapping[str, Callable[[object], object]] = {
    **_COMMON,
    # A worker is online for twice this time after its last heartbeat.
    "freq": _number(0.001, 86_400.0),
    "active": _integer(),
    "processed": _integer(),
    "loadavg": _load,
    "sw_ident": _name,
    "sw_ver": _name,
    "sw_sys": _name,
}
_TASK: Mapping[str, Callable[[object], object]] = {
    **_COMMON,
    "uuid": _name,
    "name": _name,
    "root_id": _name,
    "parent_id": _name,
    "retries": _integer(),
    "eta": _name,
    "expires": _name,
    "queue": _name,
    "exchange": _name,
    "routing_key": _name,
    "runtime": _number(0.0, 1e9),
}
#: Our own event, from a worker that can't write its records.
_UNRECORDED: Mapping[str, Callable[[object], object]] = {**_COMMON, "why": _text, "next": _text, "waiting": _integer()}
#: Texts with user values.
_VALUES: Mapping[str, int] = {
    "args": MOST_VALUE,
    "kwargs": MOST_VALUE,
    "result": MOST_VALUE,
    "exception": MOST_VALUE,
    "traceback": MOST_TRACEBACK,
}


class EventCheck:
    """
    Validates and redacts events.

    Used by the event thread only; any thread may read the counters.

    Args:
        redactor: Redacts secrets.
        clock: For timestamps in the future.
        calls: Finds secrets by parameter name.
    """

    def __init__(self, redactor: Redactor, clock: Clock, calls: ArgumentSecrets) -> None:
        #: Refused events, and dropped fields of others.
        self.refused = 0
        self.fields_left_out = 0
        self._redactor = redactor
        self._clock = clock
        self._calls = calls
        #: Secrets of tasks by id: later events may contain them, such as in an exception message.
        self._learned: OrderedDict[str, Scrubber] = OrderedDict()
        self._names: set[str] = set()
        self._types: set[str] = set()

    def refuse(self, why: str) -> None:
        """Count a refused event."""
        self.refused += 1
        if self.refused == 1:
            logger.warning(
                "Refused an event from the broker: %s. Further ones are only counted; see the page Statistics. If your "
                "workers don't send such events, another client is publishing on your broker.",
                why,
            )

    def checked(self, event: object) -> dict[str, object] | None:
        """The event as Celery would have sent it; None, and counted, if it is refused."""
        try:
            return self._checked(event)
        except BadEvent as error:
            self.refuse(str(error))
            return None

    def _checked(self, event: object) -> dict[str, object]:
        if not isinstance(event, dict):
            raise BadEvent("it is not a mapping")
        kind = event.get("type")
        match = _TYPE.fullmatch(kind) if isinstance(kind, str) else None
        if match is None:
            raise BadEvent("its type is missing or invalid")
        if kind not in _CELERYS and not self._known(self._types, match.group(), MOST_TYPES):
            raise BadEvent("there are too many different types")
        fields: Mapping[str, Callable[[object], object]] = {"task": _TASK, "worker": _WORKER}.get(
            match["group"], _COMMON
        )
        if kind == UNRECORDED:
            fields = _UNRECORDED
        found = {
            "type": kind,
            "hostname": self._needed(event, "hostname", _name),
            "timestamp": self._needed(event, "timestamp", _number(1.0, self._clock.now_s() + MOST_AHEAD_S)),
        }
        if fields is _TASK:
            if not match["subject"]:
                raise BadEvent("its type is missing or invalid")
            found["uuid"] = self._needed(event, "uuid", _name)
        for name, check in fields.items():
            value = event.get(name)
            if value is None or value == "" or name in found:
                continue
            try:
                found[name] = check(value)
            except BadEvent:
                self.fields_left_out += 1
        if fields is _TASK:
            self._add_values(event, found)
        return found

    @staticmethod
    def _needed(event: dict[str, object], name: str, check: Callable[[object], object]) -> object:
        try:
            return check(event.get(name))
        except BadEvent:
            raise BadEvent(f"its {name} is missing or invalid") from None

    def _add_values(self, event: dict[str, object], found: dict[str, object]) -> None:
        scrubber = self._scrubber(event, found)
        for name, most in _VALUES.items():
            value = event.get(name)
            if isinstance(value, str):
                found[name] = text_of(value, self._redactor, most, scrubber)
            elif value is not None:
                self.fields_left_out += 1
        name = str(found.get("name", ""))
        if name and not self._calls.knows(name) and not self._known(self._names, name, MOST_NAMES):
            del found["name"]
            self.fields_left_out += 1

    def _scrubber(self, event: dict[str, object], found: dict[str, object]) -> Scrubber | None:
        task_id, args, kwargs = str(found["uuid"]), event.get("args"), event.get("kwargs")
        if isinstance(args, str) or isinstance(kwargs, str):
            learned = self._calls.scrubber(str(found.get("name", "")), args, kwargs)
            if learned is not None:
                self._learned[task_id] = learned
                if len(self._learned) > MOST_LEARNED:
                    self._learned.popitem(last=False)
        return self._learned.get(task_id)

    @staticmethod
    def _known(names: set[str], name: str, most: int) -> bool:
        if name not in names:
            if len(names) >= most:
                return False
            names.add(name)
        return True
