"""
A shell over a stored failure: the client of the sandboxed program in :mod:`celery_trace.shell.sandbox.program`.

The program is a new isolated interpreter with an empty environment, which drops its rights before it reads the failure
or runs a command; the failure is not parsed here. Its output is not trusted: lines are bounded, parsed strictly and
treated as text.
If it dies (out of memory, out of time, by an exit), the next command starts a new one.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from celery_trace.model import Failure
from celery_trace.shell.session import (
    CODE_LIMIT,
    Done,
    Event,
    FrameInfo,
    Mode,
    SessionGone,
    ShellError,
)

#: Time limit of a command before it is interrupted, seconds.
COMMAND_LIMIT_S = 20.0
#: How long after the interrupt a running command is killed with its sandbox, seconds.
GIVE_UP_S = 3.0
START_S = 20.0
#: Time limit of recreating the failure, seconds, as a forged one can cause any amount of work.
RECREATE_S = 5.0
#: Time limit for the outer process to reap the inner one, seconds.
END_S = 5.0
#: Output limit of a command, bytes. The sandbox's own limit is lower and has a clearer message.
ANSWER_LIMIT_BYTES = 4 * 1024 * 1024
#: Limit of the raw data of a command, bytes, as there may be many short pieces.
WIRE_LIMIT_BYTES = 32 * 1024 * 1024
_PROGRAM = Path(__file__).with_name("program.py")


class _SandboxLine(Struct, frozen=True):
    """A line of the sandboxed program; ``type`` determines the fields."""

    type: str
    kind: str = ""
    text: str = ""
    stream: str = ""
    ok: bool = False
    more: bool = False
    frame: int = 0
    pid: int = 0
    items: list[str] = []
    notices: list[str] = []
    frames: list[tuple[str, int, str]] = []
    protections: list[tuple[str, bool, str]] = []


_lines = msgspec.json.Decoder(_SandboxLine)
_KINDS = frozenset(("output", "result", "error", "notice"))


class _Died(Exception):
    """The sandbox has ended; the text says how."""


class _Sandbox:
    """One running sandboxed program."""

    def __init__(self, first: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-E", "-B", "-X", "utf8", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            close_fds=True,
            start_new_session=True,  # the client handles Ctrl-C in a terminal
        )
        self._rest = b""
        self.heard_bytes = 0
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        try:
            #: Its first line, after it dropped its rights; the failure is sent afterwards.
            self.closed = self._awaited("closed", START_S, f"it did not start within {START_S:g} s")
            self._write(first)
            self.hello = self._awaited(
                "ready", RECREATE_S, f"the failure could not be recreated within {RECREATE_S:g} s"
            )
        except BaseException:
            self.close()
            raise

    def _awaited(self, type_: str, timeout_s: float, otherwise: str) -> _SandboxLine:
        said = self.receive(timeout_s)
        if said is not None and said.type == "failed":
            raise _Died(f"the failure can't be recreated ({said.text[:300]})")
        if said is None or said.type != type_:
            raise _Died(otherwise)
        return said

    @property
    def pid(self) -> int:
        """The inner process, in which the commands run."""
        return self.hello.pid

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        left = memoryview(data + b"\n")
        deadline_s = time.monotonic() + START_S
        try:
            descriptor = self._process.stdin.fileno()
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            while left:
                # Code that pretends to be done and stops reading must not block this thread forever.
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not poll.poll(left_s * 1000):
                    raise _Died("it does not read its input")
                left = left[os.write(descriptor, left) :]
        except (BrokenPipeError, ValueError):
            raise _Died(self._how()) from None

    def send(self, **message: object) -> None:
        self._write(msgspec.json.encode(message))

    def receive(self, timeout_s: float) -> _SandboxLine | None:
        """The next line; None when none came in time."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            if len(self._rest) > ANSWER_LIMIT_BYTES:
                raise _Died("it exceeded its output limit")
            left_s = deadline_s - time.monotonic()
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if left_s <= 0 or not poll.poll(left_s * 1000):
                return None
            data = os.read(descriptor, 65536)
            if not data:
                raise _Died(self._how())
            self._rest += data
            self.heard_bytes += len(data)
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return _lines.decode(line)
        except msgspec.DecodeError:
            raise _Died("its output is not that of our program") from None

    def interrupt(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def _how(self) -> str:
        try:
            status = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if status < 0:
            reasons = {
                signal.SIGXCPU: "out of CPU time",
                signal.SIGKILL: "killed, perhaps out of memory or CPU time",
                signal.SIGSYS: "a forbidden system call",
                signal.SIGSEGV: "a crash of the interpreter",
            }
            name = signal.Signals(-status)
            return f"{reasons.get(name, 'ended by a signal')} ({name.name})"
        words = b""
        if self._process.stderr is not None and status:
            words = self._process.stderr.read(2000).strip().rpartition(b"\n")[2]
        return f"status {status}{': ' + words.decode('utf-8', 'replace') if words else ''}"

    def end(self) -> None:
        """Kill the inner process; it has nothing to save. The outer one reaps it and ends too."""
        self._process.terminate()

    def close(self) -> None:
        """End it, and wait for its end."""
        self.end()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue


class RecreatedSession:
    """A :class:`celery_trace.shell.session.ShellSession` over a stored failure. Opened by :func:`open_session`."""

    mode: Mode = "recreated"

    def __init__(self, first: bytes, command_limit_s: float) -> None:
        self.id = secrets.token_hex(8)
        self.gone = ""
        self._first = first
        self._limit_s = command_limit_s
        self._lock = threading.Lock()
        self._sandbox: _Sandbox | None = None
        self._closed = False
        with self._lock:
            sandbox = self._started()
        hello, closed = sandbox.hello, sandbox.closed
        self.frames = [FrameInfo(*frame) for frame in hello.frames]
        self.frame = hello.frame
        self.notices = [str(notice) for notice in closed.notices]
        #: Layers of protection by name, and whether each holds on this system.
        self.protections = {name: holds for name, holds, _note in closed.protections}

    @property
    def pid(self) -> int | None:
        """The sandbox's process id, if one is running."""
        return self._sandbox.pid if self._sandbox is not None else None

    def _started(self) -> _Sandbox:
        if self._closed:
            raise SessionGone("the session was closed")
        if self._sandbox is None:
            try:
                self._sandbox = _Sandbox(self._first)
            except (_Died, OSError) as error:
                raise ShellError(
                    f"The sandbox for the recreated shell did not start: {error}. It runs {sys.executable}, "
                    "which must be a Python interpreter."
                ) from error
        return self._sandbox

    def _lost(self) -> None:
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            sandbox.close()

    def run(self, code: str, on_event: Callable[[Event], None], *, user: str = "") -> Done:  # noqa: ARG002
        if len(code) > CODE_LIMIT:
            raise ShellError(f"The code has {len(code):,} characters; at most {CODE_LIMIT:,} are run at once.")
        if not self._lock.acquire(blocking=False):
            raise ShellError("Another command is running; interrupt it first.")
        started_s = time.monotonic()
        try:
            sandbox = self._started()
            if sandbox.hello.frame != self.frame and sandbox.hello.frames:
                sandbox.send(type="frame", index=self.frame)
                sandbox.receive(START_S)
            sandbox.send(type="run", code=_encodable(code))
            done = self._answer(sandbox, on_event)
            # Ignore an index that is not one of its frames.
            if 0 <= done.frame < len(self.frames):
                self.frame = done.frame
                sandbox.hello = msgspec.structs.replace(sandbox.hello, frame=done.frame)
            return Done(ok=done.ok, took_s=time.monotonic() - started_s, more=done.more, frame=self.frame)
        except _Died as error:
            self._lost()
            if self._closed:
                raise SessionGone("the session was closed") from None
            on_event(
                Event(
                    "notice",
                    f"The sandbox ended: {error}. The next command starts a new one; your names are lost.",
                )
            )
            return Done(ok=False, took_s=time.monotonic() - started_s, frame=self.frame)
        finally:
            self._lock.release()

    def _answer(self, sandbox: _Sandbox, on_event: Callable[[Event], None]) -> _SandboxLine:
        deadline_s = time.monotonic() + self._limit_s
        stopped = False
        said_bytes, wire_bytes = 0, sandbox.heard_bytes + WIRE_LIMIT_BYTES
        while True:
            said = sandbox.receive(deadline_s - time.monotonic())
            if said is None:
                if stopped:
                    raise _Died("the command could not be interrupted")
                stopped = True
                deadline_s = time.monotonic() + GIVE_UP_S
                on_event(Event("notice", f"Stopped: a command may take {self._limit_s:g} s."))
                sandbox.interrupt()
                continue
            if said.type == "done":
                return said
            said_bytes += len(said.text)
            if said_bytes > ANSWER_LIMIT_BYTES or sandbox.heard_bytes > wire_bytes:
                raise _Died("it exceeded its output limit")
            if said.type == "event" and said.kind in _KINDS:
                on_event(Event(said.kind, said.text, said.stream if said.stream in ("stdout", "stderr") else ""))

    def complete(self, code: str, cursor: int) -> list[str]:
        if len(code) > CODE_LIMIT or not self._lock.acquire(blocking=False):
            return []
        try:
            sandbox = self._started()
            sandbox.send(type="complete", code=_encodable(code), cursor=cursor)
            said = sandbox.receive(3.0)
            if said is None:
                raise _Died("no completions in time")
            return list(said.items) if said.type == "completions" else []
        except _Died:
            self._lost()
            return []
        finally:
            self._lock.release()

    def interrupt(self, *, user: str = "") -> None:  # noqa: ARG002
        sandbox = self._sandbox
        if sandbox is not None:
            sandbox.interrupt()

    def select_frame(self, index: int) -> None:
        if not 0 <= index < len(self.frames):
            raise ShellError(f"There is no frame {index}; there are 0 to {len(self.frames) - 1}.")
        if not self._lock.acquire(timeout=1.0):
            raise ShellError("A command is running; interrupt it first.")
        try:
            # The next command sends it to the sandbox, as to a new one.
            self.frame = index
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the sandbox, with a running command. A second call does nothing."""
        self._closed = True
        self.gone = self.gone or "the session was closed"
        sandbox = self._sandbox
        if sandbox is not None and self._lock.locked():
            # The thread that waits for the command notices the end of the output and cleans up.
            sandbox.end()
        with self._lock:
            self._lost()


def _encodable(code: str) -> str:
    return code.encode("utf-8", "backslashreplace").decode("utf-8")


def open_session(
    failure: Failure,
    *,
    leaks: Sequence[Mapping[str, object]] = (),
    command_limit_s: float = COMMAND_LIMIT_S,
) -> RecreatedSession:
    """
    Open a shell over a stored failure.

    Args:
        failure: The record with its capture (:meth:`celery_trace.queries.Queries.failure_record`).
        leaks: Rows of the leak table for its task, for ``trace.leaks``.

    Raises:
        ShellError: The sandbox did not start.
    """
    first = msgspec.json.encode({"failure": failure, "leaks": [dict(leak) for leak in leaks]})
    return RecreatedSession(first, command_limit_s)
