"""
Decides which failures are captured in full: not the same one a thousand times a minute.

Failures are the same if the same types were raised at the same instructions. The first few of each in a minute are
captured in full, further ones while a budget of processor time lasts. The rest is captured in brief: type, message,
place and arguments; the full captures of the same minute have the locals and the lines around. Where locals hold
secrets, each one is captured in full, as only the secrets that were found can be removed from a message. See
``docs/decisions/0011-repeats-in-brief.md``.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import CodeType, TracebackType
from typing import Final, NamedTuple, Protocol

import msgspec
from msgspec.structs import replace

from celery_trace.model import CapturedException, Frame

#: Full captures of each failure per minute, whatever the budget.
FULL_A_MINUTE: Final = 10
_MINUTE_S: Final = 60.0
#: Processor time that a process may spend on repeats at once, seconds; the budget refills it.
CREDIT_S: Final = 0.25
#: Different failures that are remembered; the least recently seen is dropped first.
_REMEMBERED: Final = 64
#: Places of a traceback that are compared, from the outermost on; deep recursion looks alike after them.
_MOST_PLACES: Final = 200

NOTE: Final = "locals and log records left out: this failure repeats"

_json = msgspec.json.Encoder().encode


class Linked(Protocol):
    """One exception of a tree, as :mod:`celery_trace.failures.capture.exceptions` walks it."""

    @property
    def error(self) -> BaseException: ...

    @property
    def link(self) -> str: ...

    @property
    def parent(self) -> int: ...


class Identity(NamedTuple):
    """The identity of a failure. ``pins`` keeps the objects alive that have their addresses in ``key``."""

    key: tuple[object, ...]
    pins: tuple[type | CodeType, ...]


class Outline(NamedTuple):
    """The part of a full capture that a brief one shares."""

    exceptions: list[CapturedException]
    left_out: int  # locals that a brief capture does not have
    bytes: int


class _Known:
    __slots__ = ("full", "outline", "pins", "secretive", "since_s")

    def __init__(self, pins: tuple[type | CodeType, ...], now_s: float) -> None:
        self.pins = pins
        self.since_s = now_s
        self.full = 0
        self.secretive = False
        self.outline: Outline | None = None


def identity_of(tree: Sequence[Linked], traceback_of: Callable[[BaseException], TracebackType | None]) -> Identity:
    """The identity of an exception with its causes and groups. Runs none of the user's code."""
    key: list[object] = []
    pins: list[type | CodeType] = []
    for raised in tree:
        cls = type(raised.error)
        pins.append(cls)
        key += (id(cls), raised.link, raised.parent)
        traceback = traceback_of(raised.error)
        places = 0
        while traceback is not None and places < _MOST_PLACES:
            code = traceback.tb_frame.f_code
            pins.append(code)
            key += (id(code), traceback.tb_lasti)
            traceback = traceback.tb_next
            places += 1
    return Identity(tuple(key), tuple(pins))


class Repeats:
    """
    The failures that a process has captured recently. Thread-safe: each step is one
    operation of a dictionary, and a lost update costs one capture too many.

    Args:
        budget: The share of the process's time that full captures of repeats may take; with 1 all are captured in full.
        clock_s: Monotonic seconds.
    """

    def __init__(self, budget: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._budget = budget
        self._clock_s = clock_s
        self._credit_s = CREDIT_S if budget else 0.0
        self._filled_at_s = clock_s()
        self._known: OrderedDict[tuple[object, ...], _Known] = OrderedDict()
        self.brief = 0

    def outline_of(self, identity: Identity) -> tuple[Outline, int] | None:
        """
        The outline for a brief capture, and the number of full ones in the last minute; None to capture
        this one in full.
        """
        if self._budget >= 1:
            return None
        known = self._known.get(identity.key)
        if known is None or known.outline is None or known.secretive:
            return None
        now_s = self._clock_s()
        if now_s - known.since_s >= _MINUTE_S:
            known.since_s, known.full = now_s, 0
        if known.full < FULL_A_MINUTE:
            return None
        self._credit_s = min(CREDIT_S, self._credit_s + (now_s - self._filled_at_s) * self._budget)
        self._filled_at_s = now_s
        if self._credit_s > 0:
            return None
        self.brief += 1
        return known.outline, known.full

    def charge(self, took_s: float) -> None:
        """Charge the processor time of a full failure: its capture, or what follows."""
        self._credit_s = max(-CREDIT_S, self._credit_s - took_s)

    def captured(
        self, identity: Identity, exceptions: list[CapturedException], took_s: float, *, secretive: bool = False
    ) -> None:
        """
        A failure was captured in full.

        Args:
            identity: Which one.
            exceptions: As they were captured.
            took_s: Processor time that it took.
            secretive: Its locals hold secrets. Without reading them, they can't be removed from the message.
        """
        if self._budget >= 1:
            return
        self.charge(took_s)
        known = self._known.get(identity.key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.popitem(last=False)
            known = self._known[identity.key] = _Known(identity.pins, self._clock_s())
        known.full += 1
        known.secretive = known.secretive or secretive
        if known.outline is None:
            known.outline = _outline(exceptions)


def _outline(exceptions: list[CapturedException]) -> Outline:
    outlined = [
        replace(exception, frames=[_bare(frame) for frame in exception.frames], attributes=[], message="", notes=[])
        for exception in exceptions
    ]
    left_out = sum(len(frame.locals) for exception in exceptions for frame in exception.frames)
    return Outline(outlined, left_out, len(_json(outlined)))


def _bare(frame: Frame) -> Frame:
    note = NOTE if frame.locals else frame.note
    return replace(frame, locals=[], locals_cut=0, context=[], context_start=0, note=note)
