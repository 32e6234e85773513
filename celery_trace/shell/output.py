"""
Routes a command's output to its own session only.

``sys.stdout`` is global to the process, so it is never redirected as such: while a command runs, it is replaced by a
proxy that checks a context variable and passes all other writes to the original stream. Only the standard library:
the sandbox loads this module too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from celery_trace import os_threads

#: Receives (kind, text, stream), as in :class:`celery_trace.shell.session.Event`.
Emit = Callable[[str, str, str], None]


class OutputLimit(BaseException):
    """A command exceeded its output limit. Not an Exception, so that an ``except Exception`` can't catch it."""


class Sink:
    """
    One command's output, bounded.

    The first write past the limit raises :class:`OutputLimit` in the command.
    """

    def __init__(self, emit: Emit, limit: int) -> None:
        self._emit = emit
        self._left = limit
        self._limit = limit
        self.cut = False

    def write(self, kind: str, text: str, stream: str = "") -> None:
        if self.cut:
            raise OutputLimit
        if len(text) > self._left:
            self.cut = True
            self._hand_on(kind, text[: self._left], stream)
            self._hand_on("notice", f"The output was cut at {self._limit:,} characters and the command stopped.", "")
            raise OutputLimit
        self._left -= len(text)
        if text:
            self._hand_on(kind, text, stream)

    def _hand_on(self, kind: str, text: str, stream: str) -> None:
        # Output of the receiver itself is not the command's.
        token = _sink.set(None)
        try:
            self._emit(kind, text, stream)
        finally:
            _sink.reset(token)


_sink: ContextVar[Sink | None] = ContextVar("celery_trace_shell_sink", default=None)


class _Proxy:
    """Replaces ``sys.stdout`` or ``sys.stderr`` while a command runs; for other code it acts as the stream itself."""

    def __init__(self, original: TextIO, name: str) -> None:
        self._original = original
        self._name = name

    def write(self, text: str) -> int:
        sink = _sink.get()
        if sink is None:
            return self._original.write(text)
        sink.write("output", str(text), self._name)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if _sink.get() is None:
            self._original.flush()

    def isatty(self) -> bool:
        return False if _sink.get() is not None else self._original.isatty()

    def __getattr__(self, name: str) -> object:
        return getattr(self._original, name)


_lock = os_threads.lock()  # sessions are real threads, also with gevent
_users = 0
_proxies: dict[str, _Proxy] = {}


def install() -> None:
    """Install the proxies; each call needs one of :func:`remove`. Must not be interrupted, unlike a command."""
    global _users  # noqa: PLW0603 - sys.stdout is global to the process, and so is the count of its users
    with _lock:
        _users += 1
        if _users == 1:
            for name in ("stdout", "stderr"):
                original = getattr(sys, name)
                if original is not None:
                    _proxies[name] = _Proxy(original, name)
                    setattr(sys, name, _proxies[name])


def remove() -> None:
    """Remove the proxies with the last user; another replacement of the streams stays."""
    global _users  # noqa: PLW0603 - as above
    with _lock:
        _users -= 1
        if _users == 0:
            for name, proxy in _proxies.items():
                # Another program's own stream, installed meanwhile, stays.
                if getattr(sys, name) is proxy:
                    setattr(sys, name, proxy._original)
            _proxies.clear()


@contextmanager
def redirected(sink: Sink) -> Iterator[None]:
    """With the proxies installed: output in this context (and in tasks created in it) goes to ``sink``."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)
