"""
What a command prints reaches its own session and nobody else's.

``sys.stdout`` belongs to the whole process, so it is never redirected as such: while a command
runs, a proxy stands in its place that looks at a context variable and hands everybody else's
writes to the stream that was there. Only the standard library: the sandbox loads this module too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from celery_trace import os_threads

#: Receives (kind, text, stream), as in :class:`celery_trace.shell.session.Event`.
Emit = Callable[[str, str, str], None]


class OutputLimit(BaseException):
    """A command said more than it may. Not an Exception, so that no ``except Exception`` of a loop goes on printing."""


class Sink:
    """
    One command's output on its way out, bounded.

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
        # What the receiver itself prints or logs is not the command's.
        token = _sink.set(None)
        try:
            self._emit(kind, text, stream)
        finally:
            _sink.reset(token)


_sink: ContextVar[Sink | None] = ContextVar("celery_trace_shell_sink", default=None)


class _Proxy:
    """Stands for ``sys.stdout`` or ``sys.stderr`` while a command runs; for everybody else it is the stream itself."""

    def __init__(self, original: TextIO, name: str) -> None:
        self._original = original
        self._name = name

    def write(self, text: str) -> int:
        sink = _sink.get()
        if sink is None:
            return self._original.write(text)
        sink.write("output", str(text), self._name)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if _sink.get() is None:
            self._original.flush()

    def isatty(self) -> bool:
        return False if _sink.get() is not None else self._original.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


_lock = os_threads.lock()  # sessions are real threads, also beside gevent
_users = 0
_proxies: dict[str, _Proxy] = {}


def install() -> None:
    """Put the proxies in place; each call needs one of :func:`remove`. Not to be interrupted, unlike a command."""
    global _users  # noqa: PLW0603 - sys.stdout is one for the process, and so is the count of who needs the proxy
    with _lock:
        _users += 1
        if _users == 1:
            for name in ("stdout", "stderr"):
                original = getattr(sys, name)
                if original is not None:
                    _proxies[name] = _Proxy(original, name)
                    setattr(sys, name, _proxies[name])


def remove() -> None:
    """Take the proxies away with the last user; what somebody else put there meanwhile stays."""
    global _users  # noqa: PLW0603 - as above
    with _lock:
        _users -= 1
        if _users == 0:
            for name, proxy in _proxies.items():
                # Somebody may have put their own stream there meanwhile; it stays.
                if getattr(sys, name) is proxy:
                    setattr(sys, name, proxy._original)
            _proxies.clear()


@contextmanager
def installed() -> Iterator[None]:
    """The proxies are in place within this context."""
    install()
    try:
        yield
    finally:
        remove()


@contextmanager
def redirected(sink: Sink) -> Iterator[None]:
    """While the proxies are in place: what is printed in this context (and in tasks made in it) goes to ``sink``."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)
