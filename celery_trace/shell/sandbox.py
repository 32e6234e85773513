"""
The sandboxed program: receives a stored failure on its standard input and runs commands in its context.

Started by :mod:`celery_trace.shell.recreated` as an isolated interpreter without site packages and with an
empty environment. It loads what it needs, gives up its rights, says which protections hold, and only then reads
the first command. One line of JSON each way; nothing is unpickled, nothing of the project is imported.

The parent interrupts a command with SIGINT.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

#: What people reach for in a shell, loaded while files can still be read.
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
#: How often a running command makes sure that somebody still waits for it, seconds.
WATCH_S = 2.0


def _own_package() -> None:
    """
    Make ``celery_trace.shell`` importable as bare folders: the packages' own ``__init__`` import what
    is not here (msgspec, Celery), and must not run.
    """
    shell = Path(__file__).resolve().parent
    for name, folder in (("celery_trace", shell.parent), ("celery_trace.shell", shell)):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


class _Wire:
    """Lines of JSON on descriptors that the command's own ``print`` does not use."""

    def __init__(self) -> None:
        self._in = os.fdopen(os.dup(0), "rb", buffering=0)
        self._out = os.dup(1)
        self._rest = b""

    def receive(self) -> Any:
        """The next message; None at the end of the input."""
        while b"\n" not in self._rest:
            try:
                data = self._in.read(65536)
            except KeyboardInterrupt:
                continue  # it came too late for the command that it was meant for
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def send(self, **message: Any) -> None:
        data = json.dumps(message).encode("ascii") + b"\n"
        view = memoryview(data)
        while view:
            view = view[os.write(self._out, view) :]


class _Signals:
    """SIGINT reaches a command, and never the lines of this program around it."""

    def __init__(self) -> None:
        self.armed = False
        self._parent = os.getppid()
        signal.signal(signal.SIGINT, self._interrupted)
        signal.signal(signal.SIGALRM, self._look)

    def _interrupted(self, _number: int, _frame: object) -> None:
        if self.armed:
            raise KeyboardInterrupt

    def watch(self, *, running: bool) -> None:
        """While a command runs nobody reads the input, whose end says that the parent is gone: look for it."""
        signal.setitimer(signal.ITIMER_REAL, WATCH_S if running else 0, WATCH_S)

    def _look(self, _number: int, _frame: object) -> None:
        if os.getppid() != self._parent:
            os._exit(0)

    def deliver(self, wire: _Wire, **message: Any) -> None:
        """Send without being torn in the middle of a line."""
        armed, self.armed = self.armed, False
        try:
            wire.send(**message)
        finally:
            self.armed = armed


def main() -> None:
    """Serve one session, until the input ends."""
    wire = _Wire()
    signals = _Signals()
    first = wire.receive()
    if first is None:
        return
    _own_package()
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    from celery_trace.shell import output, protection
    from celery_trace.shell.awaiting import Loop
    from celery_trace.shell.interpreter import Interpreter
    from celery_trace.shell.recreation import recreated_trace

    trace = recreated_trace(first["failure"], first.get("leaks") or [])
    interpreter = Interpreter(trace, await_=Loop().run)
    # Warm what is imported on first use, while it still can be.
    interpreter.run("1/0", lambda *_said: None)
    interpreter.run("await __import__('asyncio').sleep(0)", lambda *_said: None)
    interpreter.complete("trace.", 6)
    sys.path[:] = []
    sys.path_importer_cache.clear()
    output.install()  # all that is printed here is a command's
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    os.chdir("/")
    held = protection.confine() if first.get("confine", True) else []
    wire.send(
        type="ready",
        protections=[list(one) for one in held],
        notices=protection.notices(held),
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
            signals.watch(running=True)
            try:
                signals.armed = True
                outcome = interpreter.run(message["code"], emit)
                signals.armed = False
            except KeyboardInterrupt:
                signals.armed = False
            signals.watch(running=False)
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
    # Without threads or files there is nothing to wind down.
    os._exit(0)
