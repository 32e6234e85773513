"""
Which failures are captured in full: the same one a thousand times a minute is not.

A failure is the same when the same types were raised along the same instructions. The first few
of each in a minute are captured in full, whatever they cost; further ones while a budget of processor time lasts. The
rest is captured in brief: what was raised, what it says, where, and with which arguments; the locals and the lines
around are in the full ones of the same minute. Where locals hold secrets, each one is captured in full, as only who
met them can take them out of a message. See ``docs/decisions/0011-repeats-in-brief.md``.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import CodeType, TracebackType
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from msgspec.structs import replace

from celery_trace.model import CapturedException, Frame

#: Captured in full of each failure in each minute, whatever the budget says.
FULL_A_MINUTE: Final = 10
_MINUTE_S: Final = 60.0
#: Processor time that a process may spend on repeats at once, seconds; the budget's share fills it up again.
CREDIT_S: Final = 0.25
#: Different failures that are remembered; the one that was longest unseen goes first.
_REMEMBERED: Final = 64
#: Places of one traceback that tell failures apart, from the outermost on; deep recursion looks alike behind them.
_MOST_PLACES: Final = 200

NOTE: Final = "locals left out: this failure repeats"

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
    """What makes two failures the same. ``pins`` are the objects whose addresses stand in ``key``."""

    key: tuple[Any, ...]
    pins: tuple[type | CodeType, ...]


class Outline(NamedTuple):
    """What a failure has in common with the one that was captured in full."""

    exceptions: list[CapturedException]
    left_out: int  # locals that a capture in brief does not have
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
    """The identity of an exception with all that hangs from it. No hook of the user's is asked."""
    key: list[Any] = []
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
    A process's memory of the failures that it captured lately. Safe to share by threads: each step is one
    operation of a dictionary, and a lost update costs one capture too many.

    Args:
        budget: Share of the process's time that repeats in full may take; 1 captures every one in full.
        clock_s: Monotonic seconds.
    """

    def __init__(self, budget: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._budget = budget
        self._clock_s = clock_s
        self._credit_s = CREDIT_S if budget else 0.0
        self._filled_at_s = clock_s()
        self._known: OrderedDict[tuple[Any, ...], _Known] = OrderedDict()
        self.brief = 0

    def outline_of(self, identity: Identity) -> tuple[Outline, int] | None:
        """
        What to build a capture in brief from, and how many of the last minute were captured in full; None to capture
        this one so.
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
        """Take processor time from the credit that a failure in full took: its capture, or what is done with it."""
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
            secretive: Its locals hold secrets. Whoever does not read them can't take them out of the message.
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
