"""
Keeps the objects of a process's last failures for the live shell, while the process lives.

It keeps copies of the frames' dictionaries (Celery clears the frames right after ``task_failure``), references to the
modules' globals, the exception and the context variables. Number, age and estimated memory are limited; the oldest are
released first, and keeping and releasing each write a record.

It costs nothing before the first failure. Then one daemon thread listens on one connection until nothing is kept any
more. :meth:`Keeper.keep` never waits for the broker.
"""

from __future__ import annotations

import contextvars
import linecache
import types
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping

from celery_trace import os_threads
from celery_trace.clock import Clock
from celery_trace.control.audit import AuditLog
from celery_trace.control.channel import Connect, Receiver, Sender, command_address
from celery_trace.control.signing import ReplayCache, load_key
from celery_trace.guard import Guard
from celery_trace.model import AnyRecord, Failure, Kept, ProcessRecord
from celery_trace.settings import Settings
from celery_trace.shell.live.estimate import estimate_bytes
from celery_trace.shell.live.host import LiveHost, Outgoing, Packer, Target
from celery_trace.shell.trace_object import ShellFacts, ShellFrame, Trace

#: Most frames kept of one failure.
FRAMES = 200
#: How long ending sessions may delay the end of a process, seconds.
GOODBYE_S = 0.04
_CONTEXT_LINES = 5


class _HeldFailure:
    __slots__ = ("bytes", "context", "failure", "trace", "unfinished", "until_monotonic_s", "until_s")

    def __init__(
        self,
        failure: str,
        error: BaseException,
        trace: Trace,
        context: contextvars.Context,
        size: int,
        until_s: float,
        until_monotonic_s: float,
    ) -> None:
        self.failure = failure
        self.trace = trace
        self.context = context
        self.bytes = size
        self.until_s = until_s
        self.until_monotonic_s = until_monotonic_s
        #: Celery's frames that hold the exception and were still running when it was kept.
        self.unfinished = _celerys_frames(error)

    def clear_finished_frames(self) -> None:
        """
        Clear Celery's frames once they have finished.

        Celery clears the user's frames, but can't clear its own running one, which in the end holds a copy of the whole
        stack for sending: a hundred times as large as most failures.
        """
        self.unfinished = [frame for frame in self.unfinished if not _is_cleared(frame)]


class Keeper:
    """
    A process's kept failures and the thread that makes them reachable.

    Not usable across a fork: a child creates its own.

    Args:
        emit: Writes records; thread-safe.
        connect: Opens a new broker connection (:class:`kombu.Connection`).
    """

    def __init__(
        self,
        settings: Settings,
        process: ProcessRecord,
        emit: Callable[[AnyRecord], None],
        connect: Connect,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._process = process
        self._emit = emit
        self._connect = connect
        self._clock = clock
        #: ``live:done``, ``live:refused``, ``live:refused:<why>``, for the process's Stats.
        self.counters: Counter[str] = Counter()
        self._lock = os_threads.lock()
        self._held: OrderedDict[str, _HeldFailure] = OrderedDict()
        self._key: bytes | None = None
        self._replays = ReplayCache()
        self._receiver: Receiver | None = None
        self._host: LiveHost | None = None
        self._sender: Sender[Outgoing] | None = None
        self._closed = False

    # --- keeping --------------------------------------------------------------------------------------

    @property
    def kept_count(self) -> int:
        return len(self._held)

    @property
    def kept_bytes(self) -> int:
        """Estimated memory of the kept failures."""
        return sum(held.bytes for held in list(self._held.values()))

    @property
    def listening(self) -> bool:
        """Whether the thread that reads commands is running."""
        return self._receiver is not None

    def keep(self, failure: Failure, error: BaseException) -> None:
        """
        Keep a failure's objects. To be called in the thread that failed, while its frames are intact.

        Failures beyond a limit are released at once, including this one.
        """
        with Guard("live keeper: keep"):
            if self._closed or self._settings.keep_failures < 1 or self._settings.keep_seconds <= 0:
                return
            trace = live_trace(failure, error)
            if trace is None:
                return
            if self._key is None:
                # First, as an unreachable failure should not be kept.
                self._key = load_key(self._settings)
            now_s, seconds = self._clock.now_s(), self._settings.keep_seconds
            held = _HeldFailure(
                failure.id,
                error,
                trace,
                contextvars.copy_context(),
                estimate_bytes([frame.locals for frame in trace.frames]),
                now_s + seconds,
                self._clock.monotonic_s() + seconds,
            )
            self._clear_finished_frames()
            with self._lock:
                self._held.pop(failure.id, None)
                self._held[failure.id] = held
                gone = self._over_limits()
            if not any(one is held for one in gone):
                self._emit(self._record(held))
            self._announce_release([one for one in gone if one is not held], "evicted")
            if any(one is held for one in gone):
                self._emit(self._record(held, gone="evicted"))
            del gone, held, trace
            self._ensure_thread()

    def _clear_finished_frames(self) -> None:
        for held in list(self._held.values()):
            if held.unfinished:
                held.clear_finished_frames()

    def _over_limits(self) -> list[_HeldFailure]:
        """Under the lock: remove the oldest until number and memory are within the limits."""
        gone = []
        while self._held and (
            len(self._held) > self._settings.keep_failures or self.kept_bytes > self._settings.keep_bytes
        ):
            gone.append(self._held.popitem(last=False)[1])
        return gone

    def drop(self, failure_id: str) -> bool:
        """Release a failure on request; False if it is not kept."""
        return self._release(failure_id, "dropped")

    def drop_all(self) -> int:
        """Release all failures on request; returns their number."""
        return sum(self._release(failure_id, "dropped") for failure_id in list(self._held))

    def _release(self, failure_id: str, why: str) -> bool:
        with self._lock:
            held = self._held.pop(failure_id, None)
        if held is None:
            return False
        self._announce_release([held], why)
        return True

    def _announce_release(self, gone: list[_HeldFailure], why: str) -> None:
        for held in gone:
            self._emit(self._record(held, gone=why))
            if self._host is not None:
                self._host.end_sessions(held.failure, f"the failure is no longer kept ({why})")

    def _record(self, held: _HeldFailure, gone: str = "") -> Kept:
        return Kept(
            process=self._process.uid,
            failure=held.failure,
            at_s=self._clock.now_s(),
            until_s=held.until_s,
            address=command_address(self._process.uid),
            bytes=held.bytes,
            gone=gone,
        )

    def _find(self, failure_id: str) -> Target | None:
        held = self._held.get(failure_id)
        return None if held is None else Target(held.failure, held.trace, held.context, held.until_s)

    # --- the thread -----------------------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        with self._lock:
            if self._receiver is not None or self._closed or not self._held or self._key is None:
                return
            packer = Packer(self._key, self._clock)
            sender = Sender(self._connect, packer.pack, "celery-trace-shell-replies")
            host = LiveHost(
                self._process.uid,
                self._key,
                self._clock,
                find=self._find,
                drop=self.drop,
                send=sender.put,
                audit=AuditLog(self._settings.folder, "worker", self._clock, self._emit),
                counters=self.counters,
                replays=self._replays,
            )
            receiver = Receiver(
                command_address(self._process.uid),
                self._connect,
                host.receive,
                host.refused,
                self._tick,
                lambda: 0.1 if host.busy else 0.5,
            )
            self._receiver, self._host, self._sender = receiver, host, sender
        os_threads.start(lambda: self._listen(receiver), "celery-trace-shell")

    def _listen(self, receiver: Receiver) -> None:
        with Guard("live keeper: thread"):
            receiver.listen()
        with self._lock:
            sender = self._sender if self._receiver is receiver else None
            if self._receiver is receiver:
                self._receiver = self._host = self._sender = None
        if sender is not None:
            sender.close()
        # A failure may have been kept while this thread was ending.
        with Guard("live keeper: next thread"):
            self._ensure_thread()

    def _tick(self) -> None:
        with Guard("live keeper: tick"):
            now_s = self._clock.monotonic_s()
            self._clear_finished_frames()
            for held in list(self._held.values()):
                if held.until_monotonic_s <= now_s:
                    self._release(held.failure, "expired")
            host, receiver = self._host, self._receiver
            if host is not None:
                host.tick()
            if receiver is not None and not self._held and (host is None or not host.open_sessions):
                receiver.stop()

    def close(self, how: str) -> None:
        """
        Release everything and write records of it; ``how`` is ``shutdown``, ``recycled`` or similar.

        Waits at most :data:`GOODBYE_S` for open sessions to be notified; not at all without sessions.
        """
        with Guard("live keeper: close"):
            with self._lock:
                self._closed = True
                gone = list(self._held.values())
                self._held.clear()
                receiver, host, sender = self._receiver, self._host, self._sender
            for held in gone:
                self._emit(self._record(held, gone=how))
            open_sessions = host.open_sessions if host is not None else 0
            if host is not None:
                host.end_sessions(None, f"the process ends ({how})")
            if receiver is not None:
                receiver.stop()
            if sender is not None:
                sender.close(GOODBYE_S if open_sessions else 0.0)


# --- what is kept ---------------------------------------------------------------------------------------


def live_trace(failure: Failure, error: BaseException) -> Trace | None:
    """
    The context of a failure from its exception, while the frames are intact.

    The frames are those of the failure's capture, in its order, so that a frame has the same number on the page and in
    the shell. Without a capture all frames are used, innermost first.

    Returns:
        None if there is no frame.
    """
    stack = list(_frames(error))[::-1]
    if not stack:
        return None
    arguments, keywords, request = None, None, None
    for frame, _line in stack:
        if _is_celerys(frame.f_code):
            arguments, keywords = frame.f_locals.get("args"), frame.f_locals.get("kwargs")
        elif failure.request is not None and "request" in frame.f_locals:
            request = frame.f_locals["request"]  # the outermost one wins
    frames = [_shell_frame(frame, line, in_app=in_app) for frame, line, in_app in _as_captured(failure, stack)]
    task = {name: getattr(failure, name) for name in ("name", "task_id", "retries", "worker", "pid", "hostname")}
    if failure.task is not None:
        task |= {name: getattr(failure.task, name) for name in ("queue", "routing_key", "root_id", "parent_id", "eta")}
    return Trace(
        frames,
        exception=error,
        args=arguments,
        kwargs=keywords,
        task=ShellFacts("task", {**task, "outcome": str(failure.outcome)}),
        request=request if request is not None else failure.request,
        mode="live",
    )


def _is_celerys(code: types.CodeType) -> bool:
    return code.co_name == "trace_task" and code.co_filename.endswith("celery/app/trace.py")


def _celerys_frames(error: BaseException) -> list[types.FrameType]:
    """The frames of an exception's traceback in which Celery runs a task, with their callers."""
    found: list[types.FrameType] = []
    for outer, _line in _frames(error):
        frame: types.FrameType | None = outer if _is_celerys(outer.f_code) else None
        while frame is not None and frame.f_code.co_filename == outer.f_code.co_filename:
            found.append(frame)
            frame = frame.f_back
    return found


def _is_cleared(frame: types.FrameType) -> bool:
    """Clear a frame if it has finished; False while it runs."""
    try:
        frame.clear()
    except RuntimeError:
        return False
    return True


def _frames(error: BaseException) -> Iterator[tuple[types.FrameType, int]]:
    traceback = error.__traceback__
    count = 0
    while traceback is not None and count < 100 * FRAMES:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next
        count += 1


def _as_captured(failure: Failure, stack: list[tuple[types.FrameType, int]]) -> list[tuple[types.FrameType, int, bool]]:
    captured = failure.capture.exceptions[0].frames if failure.capture and failure.capture.exceptions else []
    chosen: list[tuple[types.FrameType, int, bool]] = []
    position = 0
    for wanted in captured[:FRAMES]:
        for index in range(position, len(stack)):
            frame, line = stack[index]
            if line == wanted.line and (frame.f_code.co_filename, frame.f_code.co_name) == (
                wanted.file,
                wanted.function,
            ):
                chosen.append((frame, line, wanted.in_app))
                position = index + 1 + wanted.folded
                break
        else:
            break
    if captured and len(chosen) == min(len(captured), FRAMES):
        return chosen
    return [(frame, line, True) for frame, line in stack[:FRAMES]]


def _shell_frame(frame: types.FrameType, line: int, *, in_app: bool) -> ShellFrame:
    code = frame.f_code
    module_globals = frame.f_globals
    return ShellFrame(
        code.co_filename,
        line,
        code.co_name,
        # A copy: a held f_locals is emptied when Celery clears the frame (on 3.13).
        dict(frame.f_locals),
        namespace=module_globals,
        source=lambda: _source(code.co_filename, line, module_globals),
        in_app=in_app,
    )


def _source(file: str, line: int, module_globals: Mapping[str, object]) -> list[tuple[int, str]]:
    first = max(1, line - _CONTEXT_LINES)
    numbers = range(first, line + _CONTEXT_LINES + 1)
    lines = [(number, linecache.getline(file, number, dict(module_globals))) for number in numbers]
    return [(number, text.rstrip("\n")) for number, text in lines if text]
