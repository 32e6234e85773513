"""
Requests for the stack of a run, to a process on the same host.

The asker writes ``<uid>.request`` beside the process's black box and raises a number in the box. The ticker of the
process answers with ``<uid>.stack``. While C code holds the interpreter's lock it can't: then the stack is read without
locals, from outside (:mod:`celery_trace.running.outside`), or else by a signal, on which `faulthandler` writes it into
``<uid>.dump``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from celery_trace import private_files
from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.model import LastSample, Line, ProcessRecord, RunStack, StackRequest
from celery_trace.process import blackbox
from celery_trace.process.blackbox import Running
from celery_trace.running import outside

#: How long the process itself is waited for before its stack is read by a signal, seconds: it looks for requests every
#: 0.1 s while a run lasts.
ANSWER_S: Final = 0.25
#: How long it is waited for altogether, seconds.
PATIENCE_S: Final = 0.45
_POLL_S: Final = 0.005
#: Two starts no further apart are the same, seconds.
SAME_S: Final = 1e-6
#: How long `faulthandler` may take to write a stack, seconds.
_DUMP_S: Final = 0.1

#: What the uid of a process looks like.
UID: Final = re.compile("[0-9A-Za-z_-]{1,64}")

_NO_LOCALS: Final = "C code holds the interpreter's lock, so locals can't be read"
_NO_ANSWER: Final = "the process does not answer; it may be suspended, or C code may hold the interpreter's lock"


ENDED: Final = "the run has ended"


class NoStack(LookupError):
    """A process on this host can't be asked: it has no black box here."""


def request_file(folder: Path, process: str) -> Path:
    """The request to a process."""
    return folder / f"{process}.request"


def stack_file(folder: Path, process: str) -> Path:
    """The answer of a process."""
    return folder / f"{process}.stack"


def is_here(folder: Path, process: str) -> bool:
    """Whether this user can ask the process directly. The name comes from the store, and becomes that of a file."""
    return UID.fullmatch(process) is not None and os.access(folder / f"{process}.box", os.R_OK | os.W_OK)


def read_stack(folder: Path, request: StackRequest, source: SourceLines) -> RunStack:
    """
    Ask a process for the stack of one of its runs. Takes up to half a second, mostly less than 0.15 s.

    Args:
        folder: The spool folder.
        request: What is asked for.
        source: Reads the lines of a stack that the process has not captured itself.

    Raises:
        NoStack: The process has ended, or has no black box.
    """
    box = folder / f"{request.process}.box"
    asked_s = time.monotonic()
    try:
        if _run(box, request) is None:
            return RunStack(request=request.id, at_s=time.time(), why=ENDED)
        with _turn(box), _cleanup(folder, request.process):
            answered = _ask(folder, box, request, asked_s + ANSWER_S)
            if answered is not None:
                return answered
            found = _from_outside(box, request)
            dumped = [] if found else _dumped(box)
            # The machine may only be slow: an answer with locals is better.
            answered = _wait(folder, request, asked_s + PATIENCE_S)
            return answered or _without_locals(box, request, found, dumped, source)
    except OSError as error:
        raise NoStack(f"the process has ended, or has no black box ({error.strerror or error})") from error


@contextlib.contextmanager
def _turn(box: Path) -> Iterator[None]:
    """Askers take turns."""
    descriptor = private_files.open_file(box, os.O_RDWR)
    try:
        until_s = time.monotonic() + 2 * PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _cleanup(folder: Path, process: str) -> Iterator[None]:
    try:
        yield
    finally:
        for path in (request_file(folder, process), stack_file(folder, process)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _ask(folder: Path, box: Path, request: StackRequest, until_s: float) -> RunStack | None:
    private_files.replace(request_file(folder, request.process), msgspec.json.encode(request))
    blackbox.request(box)
    return _wait(folder, request, until_s)


def _wait(folder: Path, request: StackRequest, until_s: float) -> RunStack | None:
    path = stack_file(folder, request.process)
    while True:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            answer = msgspec.json.decode(private_files.read(path), type=RunStack)
            if answer.request == request.id:
                return answer
        if time.monotonic() > until_s:
            return None
        time.sleep(_POLL_S)


def _from_outside(box: Path, request: StackRequest) -> list[Line]:
    """The stack of the run's thread, without anything done by its process; empty if it can't be read so."""
    reading = blackbox.read(box)
    runs = reading.runs if reading is not None else []
    found = next(((run, sample) for run, sample in runs if _is_requested(run, request)), None)
    return outside.read_run(reading, *found) if reading is not None and found is not None else []


def _dumped(box: Path) -> list[Line]:
    """The main thread's stack, by a signal; empty if the process takes none."""
    number = blackbox.dump_signal(box)
    reading = blackbox.read(box)
    if not number or reading is None:
        return []
    dump = box.with_suffix(".dump")
    with _process(reading.process.pid, box.name, number) as process:
        if process < 0:
            return []
        os.close(private_files.open_file(dump, os.O_WRONLY | os.O_TRUNC))
        signal.pidfd_send_signal(process, number)
        until_s, size = time.monotonic() + _DUMP_S, -1
        while time.monotonic() < until_s:
            time.sleep(_POLL_S)
            before, size = size, os.stat(dump).st_size
            if size and size == before:
                break
    return blackbox.dumped_stack(private_files.read(dump, 1024 * 1024).decode("utf-8", "replace"))


@contextlib.contextmanager
def _process(pid: int, box: str, number: int) -> Iterator[int]:
    """
    A descriptor of the process, -1 if it is not the one that has mapped this box, or does not handle the signal.

    Another process may have its pid by now, or in this container.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except (OSError, AttributeError):
        yield -1
        return
    try:
        yield descriptor if _has_mapped(pid, box) and _handles(pid, number) else -1
    finally:
        os.close(descriptor)


def _has_mapped(pid: int, box: str) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        return any(line.rstrip().endswith(f"/{box}") for line in maps)
    return False


def _handles(pid: int, number: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _without_locals(
    box: Path, request: StackRequest, found_outside: list[Line], dumped: list[Line], source: SourceLines
) -> RunStack:
    """The stack that was read from outside, or that the signal gave, or else the last sample."""
    found = _run(box, request)
    if found is None:
        return RunStack(request=request.id, at_s=time.time(), why=ENDED)
    process, sample = found
    if found_outside:
        stack = source.lines(found_outside, process.started_at_s)
        return RunStack(request=request.id, at_s=time.time(), by="outside", stack=stack, why=_NO_ANSWER)
    if dumped:
        stack = source.lines(dumped, process.started_at_s)
        return RunStack(request=request.id, at_s=time.time(), by="signal", stack=stack, why=_NO_LOCALS)
    if sample is not None:
        stack = source.lines(sample.stack, process.started_at_s)
        return RunStack(request=request.id, at_s=sample.at_s, by="sample", stack=stack, why=_NO_ANSWER)
    return RunStack(request=request.id, at_s=time.time(), why=_NO_ANSWER)


def _run(box: Path, request: StackRequest) -> tuple[ProcessRecord, LastSample | None] | None:
    """
    The process and the last sample of the requested run; None if it does not run.

    Raises:
        OSError: There is no black box.
    """
    reading = blackbox.read(box)
    if reading is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(box))
    return next(((reading.process, sample) for run, sample in reading.runs if _is_requested(run, request)), None)


def _is_requested(run: Running, request: StackRequest) -> bool:
    if request.task_id:
        return run.task_id == request.task_id
    return run.thread == request.thread and abs(run.started_at_s - request.started_at_s) < SAME_S
