"""
Since when a run makes no progress that could be seen.

A run is called stuck if that, and how long it has lasted, exceed what is usual (``celery_trace.model.is_stuck``).
Everything here errs on the side of a run that works: a thread that wakes up, or a loop with a variable that changes,
counts as progress.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from celery_trace.model import Line, ProcessRecord, Role
from celery_trace.process.movement import ThreadSample
from celery_trace.process.waits import Wait
from celery_trace.redaction import Redactor
from celery_trace.running.procfs import Child, Procfs, ThreadFacts
from celery_trace.running.waiting import Activity, WaitEvidence, sentence, waits_for_child
from celery_trace.text.code_owner import CodeOwner

#: ``/proc`` is read once a run has made no progress for this share of ``stuck_s``.
_LOOK_FROM: Final = 0.5
#: A thread that wants less of a processor than this waits, and one that wants more works. A share of the time.
_BUSY: Final = 0.5
#: Without a sample for so long, C code holds Python's lock, or the process is stopped, seconds.
_SILENT_S: Final = 2.5
#: What keeps the thread of suspended runs, if there are no samples.
_SOMETHING: Final = ("a run or C code", None)
_RUNS_ON: Final = "continues after it caught the error of its soft time limit"
#: When a child is looked at first, it has worked if it has used this share of the time, and then if it has used so
#: many processor seconds more: `/proc` counts hundredths.
_CHILD_WORKS: Final = 0.1
_CHILD_WORKS_S: Final = 0.02


class Stall(Struct, frozen=True):
    """Since when a thread makes no progress, seconds since the epoch, and what it does instead."""

    since_s: float
    activity: Activity


def blind_sample(process: ProcessRecord, began_s: float) -> ThreadSample:
    """What is known of a run of which there is no sample yet: C code has held Python's lock from its begin on."""
    is_main_thread = process.role in (Role.CHILD, Role.SOLO)
    return ThreadSample(process.pid if is_main_thread else 0, began_s, began_s, began_s, None)


def stall_of(thread: ThreadSample, sampled_at_s: float, now_s: float) -> Stall | None:
    """
    Since when a thread makes no progress; None if it does, or if that is unknown.

    Args:
        thread: From the process's last sample.
        sampled_at_s: When that was taken, seconds since the epoch.
        now_s: The time, likewise.
    """
    if now_s - sampled_at_s > _SILENT_S:
        return Stall(sampled_at_s, Activity.HOLDS_LOCK)
    if thread.result_since_s and thread.busy < _BUSY:
        return Stall(thread.result_since_s, Activity.WAITS)
    wait = thread.wait or Wait()
    if thread.quiet_since_s < sampled_at_s:
        return Stall(max(thread.quiet_since_s, thread.still_since_s), Activity.WAITS)
    if thread.busy >= _BUSY:
        return _busy(thread, wait)
    if wait.call.rpartition(".")[2] in ("execute", "executemany", "executescript", "commit"):
        return Stall(thread.still_since_s, Activity.WAITS)  # SQLite sleeps and tries again
    return None


def _busy(thread: ThreadSample, wait: Wait) -> Stall | None:
    """A thread that computes, at one place. Whether a loop makes progress is seen by its variables alone."""
    if thread.locals_since_s is not None:
        since_s = max(thread.place_since_s, thread.locals_since_s)
    elif wait.loops:
        return None
    else:
        since_s = thread.still_since_s
    in_c = not wait.loops and thread.still_since_s <= since_s
    return Stall(since_s, Activity.IN_C if in_c else Activity.LOOPS)


class _KnownStall(Struct):
    """What was known of a run when it was judged last."""

    activity: Activity
    cpu_s: float
    at_s: float
    children: dict[int, float]
    worked_at_s: float = 0.0  # when a child that it waits for has used the processor
    looped: str = ""  # the sentence about a loop, which has several lines


class Stalls:
    """
    Judges the runs of a host.

    Args:
        stuck_s: From when on a run may be stuck, seconds.
        owner: Knows the user's own files.
        procfs: What the system knows.
        redactor: Removes secrets from the sentences, such as in the path of a socket.
    """

    def __init__(
        self,
        stuck_s: float = 30.0,
        owner: CodeOwner | None = None,
        procfs: Procfs | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        self.stuck_s = stuck_s
        self._look_after_s = stuck_s * _LOOK_FROM
        self._owner = owner or CodeOwner()
        self.procfs = procfs or Procfs()
        self.redactor = redactor or Redactor()
        self._known: dict[tuple[object, ...], _KnownStall] = {}
        self._judged: dict[tuple[object, ...], _KnownStall] = {}

    def next_round(self) -> None:
        """Forget the runs that were not judged since the last call."""
        self._known, self._judged = self._judged, {}

    def judge(
        self,
        key: tuple[object, ...],
        process: ProcessRecord,
        thread: ThreadSample | None,
        stack: Sequence[Line],
        sampled_at_s: float,
        now_s: float,
        keeper: tuple[str, Sequence[Line]] | None = None,
    ) -> tuple[float, str]:
        """
        Since when a run makes no progress, seconds since the epoch, and what it waits for; (0, "") if it works.

        Args:
            key: Identifies the run.
            process: Its process.
            thread: What the last sample shows of its thread; None if it has none of its own.
            stack: Innermost first.
            sampled_at_s: When the sample was taken, seconds since the epoch.
            now_s: The time, likewise.
            keeper: The name and the stack of the run that keeps the thread of a suspended one.
        """
        if thread is None:
            return 0.0, ""
        stall = stall_of(thread, sampled_at_s, now_s)
        if stall is None or now_s - stall.since_s < self._look_after_s:
            limit_s = thread.soft_limit_at_s
            return 0.0, _RUNS_ON if limit_s and now_s - limit_s >= _SILENT_S else ""
        facts = self._facts(process, thread)
        before = self._known.get(key)
        activity = self._activity(stall.activity, facts, before, now_s)
        behind = self._behind(keeper)
        if thread.suspended and activity is not Activity.STOPPED:
            behind = behind or (_SOMETHING if activity is Activity.HOLDS_LOCK else None)
            activity = Activity.SUSPENDED
        if activity in (Activity.WAITS, Activity.SUSPENDED) and thread.wait is None:
            return stall.since_s, ""
        evidence = WaitEvidence(
            activity=activity, stack=stack, own=_own_line(stack, self._owner), wait=thread.wait or Wait(), facts=facts,
            short=self._owner.short, behind=behind,
        )  # fmt: skip
        sure = activity is not Activity.HOLDS_LOCK or (before is not None and facts.state != "")
        words = self.redactor.text(sentence(evidence)) if sure else ""
        known = _KnownStall(
            activity, facts.cpu_s, now_s, _cpu_of(facts.children), before.worked_at_s if before else 0.0
        )
        if _has_worked(waits_for_child(facts), before, now_s - stall.since_s):
            known.worked_at_s = now_s
        if activity is Activity.LOOPS:
            known.looped = words = (before.looped if before is not None else "") or words
        self._judged[key] = known
        if words and 0 < thread.soft_limit_at_s < stall.since_s:
            words += ", after it caught the error of its soft time limit"
        return max(stall.since_s, known.worked_at_s), words

    def _behind(self, keeper: tuple[str, Sequence[Line]] | None) -> tuple[str, Line | None] | None:
        if keeper is None:
            return None
        name, stack = keeper
        return name, stack[_own_line(stack, self._owner)] if stack else None

    def _facts(self, process: ProcessRecord, thread: ThreadSample) -> ThreadFacts:
        """Nothing, if the process is in another container: its pid may mean another process here."""
        descriptor = thread.wait.descriptor if thread.wait is not None else -1
        wanted = thread.native_id or (thread.suspended and descriptor >= 0)
        if not wanted or not self.procfs.is_process(process.pid, f"{process.uid}.lock"):
            return ThreadFacts()
        if thread.native_id:
            return self.procfs.thread(process.pid, thread.native_id)
        call = "sendto" if thread.wait is not None and thread.wait.writes else "recvfrom"
        return ThreadFacts(call=call, on=tuple(self.procfs.descriptors(process.pid, [descriptor])))

    def _activity(self, seen: Activity, facts: ThreadFacts, before: _KnownStall | None, now_s: float) -> Activity:
        """Without samples, the thread's processor time and system call show who holds Python's lock."""
        if facts.state in ("T", "t"):
            return Activity.STOPPED
        if seen is not Activity.HOLDS_LOCK or before is None or not facts.state or now_s <= before.at_s:
            return seen
        used = (facts.cpu_s - before.cpu_s) / (now_s - before.at_s)
        waits = used < _BUSY and facts.state != "R" and facts.call == "futex"
        return Activity.STARVED if waits else Activity.HOLDS_LOCK


def _own_line(stack: Sequence[Line], owner: Callable[[str], bool]) -> int:
    """The innermost line of the user's own code; of a library's task, the one that called it."""
    found = next((at for at, line in enumerate(stack) if owner(line.file)), None)
    if found is None:
        found = next((at for at, line in enumerate(stack) if line.file.endswith("celery/app/trace.py")), 0)
    return found


def _cpu_of(children: Sequence[Child]) -> dict[int, float]:
    return {child.pid: child.cpu_s for child in children}


def _has_worked(children: Sequence[Child], before: _KnownStall | None, waited_s: float) -> bool:
    """Whether a child works, or has since it was looked at last; at first, while it was waited for."""
    if any(child.runs for child in children):
        return True
    if before is None:
        return any(child.cpu_s >= _CHILD_WORKS * waited_s for child in children)
    return any(child.cpu_s - before.children.get(child.pid, 0.0) >= _CHILD_WORKS_S for child in children)
