"""
The answer of a process to a request for the stack of one of its runs; its ticker's thread writes it.

Without a request it costs nothing: ten times a second, while a run lasts, one number of the black box is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import CodeType
from typing import Final

import msgspec

from celery_trace import private_files
from celery_trace.failures.capture import Arguments, capture_frames
from celery_trace.failures.celery_request import field
from celery_trace.model import Kind, Line, RunStack, StackRequest
from celery_trace.process.frames import RunPlaces, stacks_by_run
from celery_trace.process.open_runs import OpenRuns, Token
from celery_trace.redaction import Redactor
from celery_trace.running.requests import ENDED, SAME_S, request_file, stack_file
from celery_trace.settings import Limits

#: A stack is sent over the broker, in a message of at most a mebibyte.
MOST_BYTES: Final = 256 * 1024
#: The function of Celery that calls a task: its own callers are left out.
OUTERMOST: Final = "trace_task"

_decode = msgspec.json.Decoder(StackRequest).decode
_encode = msgspec.json.Encoder().encode

#: The functions of a task or route.
CodeOf = Callable[[Kind, str], Iterable[CodeType]]


class Answers:
    """
    Answers requests to one process.

    Args:
        folder: The spool folder.
        process: The process's uid.
        open_runs: Its runs in progress.
        limits: Of a capture.
        redactor: Decides what is secret.
        in_app: Further folders or module prefixes of the user's own code.
        code_of: The functions of a task, for the names of its parameters.
        places: The process's, where runs share a thread.
    """

    def __init__(
        self,
        folder: Path,
        process: str,
        open_runs: OpenRuns,
        *,
        limits: Limits,
        redactor: Redactor,
        in_app: Sequence[str],
        code_of: CodeOf,
        places: RunPlaces | None = None,
    ) -> None:
        self._folder = folder
        self._process = process
        self._open_runs = open_runs
        self._limits = msgspec.structs.replace(limits, bytes=min(limits.bytes, MOST_BYTES))
        self._redactor = redactor
        self._in_app = in_app
        self._code_of = code_of
        self._places = places

    def write(self, now_s: float) -> None:
        """
        Read the request and write the answer, atomically. If the asker has given up meanwhile, no answer stays.

        Raises:
            OSError: A file can't be read or written.
            msgspec.DecodeError: The request is not one of this version.
        """
        request = _decode(private_files.read(request_file(self._folder, self._process), 64 * 1024))
        answer = self.answer(request, now_s)
        private_files.replace(stack_file(self._folder, self._process), _encode(answer))
        if not request_file(self._folder, self._process).exists():  # the asker removes it before the answer
            stack_file(self._folder, self._process).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove what an asker that was killed has left."""
        for file in (request_file, stack_file):
            file(self._folder, self._process).unlink(missing_ok=True)

    def answer(self, request: StackRequest, now_s: float) -> RunStack:
        """The stack of the requested run with its locals and arguments, redacted."""
        found = self._find(request)
        if found is None:
            return RunStack(request=request.id, at_s=now_s, by="process", why=ENDED)
        thread, token = found
        frames = stacks_by_run([thread], self._places).get(thread)
        if not frames:
            return RunStack(request=request.id, at_s=now_s, by="process", why="its thread has no Python stack")
        outermost = next((at for at, frame in enumerate(frames) if frame.f_code.co_name == OUTERMOST), len(frames))
        capture = capture_frames(
            None,
            inner=frames[: outermost + 1],
            limits=self._limits,
            redactor=self._redactor,
            in_app=self._in_app,
            arguments=self._arguments(token),
        )
        del frames
        shown = capture.exceptions[0].frames
        stack = [Line(one.file, one.line, one.qualname or one.function, one.code) for one in shown]
        return RunStack(request=request.id, at_s=now_s, by="process", stack=stack, capture=capture)

    def _find(self, request: StackRequest) -> tuple[int, Token] | None:
        for thread, token in self._open_runs.in_progress():
            by_place = thread == request.thread and abs(token.started_at_s - request.started_at_s) < SAME_S
            if (token.task_id == request.task_id) if request.task_id else by_place:
                return thread, token
        return None

    def _arguments(self, token: Token) -> Arguments | None:
        request = token.origin
        if type(request) is str or request is None:  # a web request or a block has none
            return None
        code = next(iter(self._code_of(token.totals.kind, token.totals.name)), None)
        names = code.co_varnames[: code.co_argcount] if code is not None else ()
        return Arguments(field(request, "args"), field(request, "kwargs"), names)
