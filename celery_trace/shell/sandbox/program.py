"""
The sandboxed program: receives a stored failure on its standard input and runs commands in its frames.

Started by :mod:`celery_trace.shell.sandbox.recreated` as an isolated interpreter without site packages and with an
empty environment. It imports what it needs, drops its rights, reports which protections hold, and only then reads the
failure, which may be forged, and the commands. Messages are lines of JSON; nothing is unpickled, and no code of the
project is imported.

It is two processes. The inner one is the sandbox. The outer one runs no typed code: it waits for the end of its input,
when the parent closes it or dies, and then kills the inner one, whatever that has done with its timers, signals or
descriptors. It forwards SIGINT, with which the parent interrupts a command.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any, NoReturn

#: Modules that are useful in a shell, imported while files can still be read.
PRELOADED = (
    "_strptime", "array", "ast", "asyncio", "base64", "binascii", "bisect", "calendar", "codecs", "collections",
    "collections.abc", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "enum",
    "fractions", "functools", "gc", "hashlib", "heapq", "html", "inspect", "io", "itertools", "json", "keyword",
    "linecache", "locale", "math", "numbers", "operator", "pathlib", "pprint", "random", "re", "reprlib", "statistics",
    "string", "struct", "sys", "textwrap", "time", "timeit", "token", "tokenize", "traceback", "types", "typing",
    "unicodedata", "urllib.parse", "uuid", "weakref", "zlib", "encodings.ascii", "encodings.idna",
    "encodings.latin_1", "encodings.utf_8", "encodings.utf_16", "encodings.unicode_escape", "encodings.hex_codec",
    "asyncio.base_events", "asyncio.selector_events", "concurrent.futures.thread", "xml.etree.ElementTree",
)  # fmt: skip
#: How long after the end of the input the inner process is killed, seconds.
GRACE_S = 0.5
#: How often the outer process checks that the parent lives, seconds. The end of the input shows it at once, unless a
#: forked child of the parent holds the other end open.
WATCH_S = 1.0


def _own_package() -> None:
    """
    Make ``celery_trace.shell`` importable as plain folders: the packages' own ``__init__`` import libraries that are
    missing here (msgspec, Celery), and must not run.
    """
    shell = Path(__file__).resolve().parents[1]
    for name, folder in (("celery_trace", shell.parent), ("celery_trace.shell", shell)):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


class _Wire:
    """Lines of JSON on descriptors that a command's ``print`` does not use."""

    def __init__(self) -> None:
        self._in = os.fdopen(os.dup(0), "rb", buffering=0)
        self._out = os.dup(1)
        self._rest = b""

    def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end of the input."""
        pieces = [self._rest]
        while b"\n" not in pieces[-1]:
            try:
                data = self._in.read(65536)
            except KeyboardInterrupt:
                continue  # an interrupt that came after its command had ended
            if not data:
                return None
            pieces.append(data)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return dict(json.loads(line))

    def send(self, **message: object) -> None:
        data = json.dumps(message).encode("ascii") + b"\n"
        view = memoryview(data)
        while view:
            view = view[os.write(self._out, view) :]


class _Signals:
    """Delivers SIGINT to commands only, never to this program's own code."""

    def __init__(self) -> None:
        self.armed = False
        signal.signal(signal.SIGINT, self._interrupted)

    def _interrupted(self, _number: int, _frame: object) -> None:
        if self.armed:
            raise KeyboardInterrupt

    def deliver(self, wire: _Wire, **message: object) -> None:
        """Send without an interrupt in the middle of a line."""
        armed, self.armed = self.armed, False
        try:
            wire.send(**message)
        finally:
            self.armed = armed


def _split() -> None:
    """Fork. The inner process returns; the outer one monitors it and never does."""
    outer = os.getpid()
    inner = os.fork()
    if inner:
        _watch(inner)
    from celery_trace.shell.sandbox import protection

    protection.die_with(outer)


def _watch(inner: int) -> NoReturn:
    """End as the inner process ended, or kill it when the input ends."""
    os.close(1)  # so that the output ends with the inner process
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: os.kill(inner, signal.SIGINT))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(inner, signal.SIGKILL))
    parent = os.getppid()
    poll = select.poll()
    poll.register(0, 0)  # for its end only; the data is for the inner process
    poll.register(woken, select.POLLIN)
    until_s = None
    while True:
        # Blocked, so that no handler signals a pid that is no longer the inner process.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        ended, status = os.waitpid(inner, os.WNOHANG)
        if ended:
            _end_as(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        if until_s is not None and time.monotonic() >= until_s:
            os.kill(inner, signal.SIGKILL)
        happened = dict(poll.poll((WATCH_S if until_s is None else 0.1) * 1000))
        if woken in happened:
            os.read(woken, 4096)
        if until_s is None and (0 in happened or os.getppid() != parent):
            poll.unregister(0)
            until_s = time.monotonic() + GRACE_S


def _end_as(status: int) -> NoReturn:
    if os.WIFSIGNALED(status):
        import resource

        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def main() -> None:
    """Serve one session until the input ends."""
    _own_package()
    _split()
    wire = _Wire()
    signals = _Signals()
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    from celery_trace.shell import output
    from celery_trace.shell.awaiting import Loop
    from celery_trace.shell.interpreter import Interpreter
    from celery_trace.shell.sandbox import protection
    from celery_trace.shell.sandbox.recreation import recreated_trace

    loop = Loop()
    # Trigger imports on first use while they are still possible.
    interpreter = Interpreter(recreated_trace({}, []), await_=loop.run)
    interpreter.run("1/0", lambda *_said: None)
    interpreter.run("await __import__('asyncio').sleep(0)", lambda *_said: None)
    interpreter.complete("trace.", 6)
    sys.path[:] = []
    sys.path_importer_cache.clear()
    output.install()  # all output from here on is a command's
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    os.chdir("/")
    held = protection.confine()
    wire.send(type="closed", protections=[list(one) for one in held], notices=protection.notices(held))
    try:
        first = wire.receive()
        if first is None:
            return
        trace = recreated_trace(first["failure"], first.get("leaks") or [])
        interpreter = Interpreter(trace, await_=loop.run)
    except Exception as error:  # it is forged, or it is too large
        wire.send(type="failed", text=f"{type(error).__name__}: {error}"[:300])
        return
    wire.send(
        type="ready",
        pid=os.getpid(),
        frames=[[frame.file, frame.line, frame.function] for frame in trace.frames],
        frame=interpreter.frame,
    )
    while (message := wire.receive()) is not None:
        kind = message.get("type")
        if kind == "run":

            def emit(kind: str, text: str, stream: str) -> None:
                safe = text.encode("utf-8", "backslashreplace").decode("utf-8")
                signals.deliver(wire, type="event", kind=kind, text=safe, stream=stream)

            outcome = None
            try:
                signals.armed = True
                outcome = interpreter.run(message["code"], emit)
                signals.armed = False
            except KeyboardInterrupt:
                signals.armed = False
            ok, more = (outcome.ok, outcome.more) if outcome is not None else (False, False)
            wire.send(type="done", ok=ok, more=more, frame=interpreter.frame)
        elif kind == "complete":
            try:
                items = interpreter.complete(message["code"], message["cursor"])
            except Exception:
                items = []
            wire.send(type="completions", items=items)
        elif kind == "frame":
            chosen = interpreter.select_frame(message["index"])
            wire.send(type="chosen", ok=chosen, frame=interpreter.frame)


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)
    # Without threads or files there is nothing to clean up.
    os._exit(0)
