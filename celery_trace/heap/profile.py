"""
"Profile the next run of this task": memray around one run, for what tracemalloc can't see.

memray records each allocation, those of C code too, and makes a run a few times slower. So it is on for one run of one
name, in the first process that takes the order. memray is not imported before.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import msgspec

from celery_trace import os_threads, private_files
from celery_trace.clock import Clock
from celery_trace.guard import Guard
from celery_trace.heap.flamegraph import MISSING, Profile, Profiles
from celery_trace.model import ProcessRecord, new_id

logger = logging.getLogger("celery_trace")


def _memray() -> ModuleType:
    return importlib.import_module("memray")


class ProfiledRun:
    """A run that is being profiled, from :meth:`NextRunProfile.started` to :meth:`NextRunProfile.ended`."""

    __slots__ = ("profile", "started_s", "tracker")

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.started_s = 0.0
        self.tracker: contextlib.AbstractContextManager[object] | None = None


@contextlib.contextmanager
def _without_greenlet_warning() -> Iterator[None]:
    """
    Keep memray from printing while it starts.

    With greenlet loaded it prints a warning, in Python, while it walks all stacks; the frames of that print change
    what it walks, and it can loop forever (seen with memray 1.20 and rich). A built-in has no frame.
    """
    inner = sys.modules.get("memray._memray")
    before = getattr(inner, "print_greenlet_warning", None)
    if inner is None or before is None:
        yield
        return
    vars(inner)["print_greenlet_warning"] = bool
    try:
        yield
    finally:
        vars(inner)["print_greenlet_warning"] = before


class NextRunProfile:
    """
    Profiles the next run of a name in this process, if that is ordered and no other process of the worker is first.

    memray can have one tracker in a process: while a run is profiled, an order for another name waits for a later run.
    If the user's own tracker runs, the order fails with that reason. No error reaches the task.

    Args:
        folder: ``trace_dir``.
        process: The process's record.
        load: Returns memray; tests return a substitute, or raise ImportError.
    """

    def __init__(
        self, folder: Path, process: ProcessRecord, clock: Clock, load: Callable[[], ModuleType] = _memray
    ) -> None:
        self._profiles = Profiles(folder)
        self._process = process
        self._clock = clock
        self._load = load
        # Re-entrant: a soft time limit may be reached while it is held.
        self._lock = os_threads.rlock()
        self._running: ProfiledRun | None = None
        #: Name to (claim, until when on the clock). Each run looks here, without the lock.
        self.armed: dict[str, tuple[Callable[[], bool], float]] = {}
        #: ``profile:taken`` and ``profile:failed``, for the process's Stats.
        self.counters: Counter[str] = Counter()

    def arm(self, name: str, claim: Callable[[], bool], left_s: float) -> None:
        """
        Profile the next run of ``name`` that begins within ``left_s`` seconds.

        Args:
            claim: True in the one process that may; called when the run begins.
        """
        with self._lock:
            self.armed = {**self.armed, name: (claim, self._clock.monotonic_s() + left_s)}

    def started(self, name: str, task_id: str) -> ProfiledRun | None:
        """A run of an armed name begins. Returns the argument of :meth:`ended`; None if this run is not profiled."""
        with Guard("profile: start"), self._lock:
            order = self.armed.get(name)
            if order is None or self._running is not None:
                return None
            claim, until_s = order
            self.armed = {other: order for other, order in self.armed.items() if other != name}
            if self._clock.monotonic_s() >= until_s or not claim():
                return None
            return self._begin(name, task_id)
        return None

    def _begin(self, name: str, task_id: str) -> ProfiledRun | None:
        run = ProfiledRun(
            Profile(
                id=new_id(),
                name=name,
                at=self._clock.now_s(),
                state="running",
                task_id=task_id,
                worker=self._process.worker,
                host=self._process.host,
                pid=os.getpid(),
            )
        )
        try:
            memray = self._load()
        except ImportError:
            self._fail(run, MISSING)
            return None
        path = self._profiles.recording(run.profile.id)
        tracker = None
        try:
            self._profiles.write(run.profile)
            # memray would create the file with the mode of the umask: create it here, for its owner alone.
            os.close(private_files.create(path))
            # Python's allocator is tracked too: memory in its pools would look retained by the task.
            tracker = memray.Tracker(
                destination=memray.FileDestination(path, overwrite=True), trace_python_allocators=True
            )
            with _without_greenlet_warning():
                tracker.__enter__()
            run.tracker = tracker
            run.started_s = time.perf_counter()
            self._running = run
        except Exception as error:
            path.unlink(missing_ok=True)
            self._fail(run, f"memray could not begin: {error}")
            return None
        except BaseException:  # a time limit was reached here: the task ends, and this profile with it
            if tracker is not None:
                with contextlib.suppress(Exception):
                    tracker.__exit__(None, None, None)
            self._running = None
            raise
        return run

    def ended(self, run: ProfiledRun) -> None:
        """The run has ended: stop recording, and write the profile's description."""
        duration_s = time.perf_counter() - run.started_s
        if run.profile.pid != os.getpid():
            return  # a child that the task forked; the recording is the parent's
        with Guard("profile: end"), self._lock:
            if self._running is not run:
                return
            self._running = None
            assert run.tracker is not None
            run.tracker.__exit__(None, None, None)
            path = self._profiles.recording(run.profile.id)
            try:
                private_files.make_private(path)  # memray packs it into a new file at the end
                with contextlib.closing(self._load().FileReader(path)) as reader:
                    peak, allocations = reader.metadata.peak_memory, reader.metadata.total_allocations
            except Exception as error:
                self._fail(run, f"memray can't read what it wrote: {error}")
                return
            self._profiles.write(
                msgspec.structs.replace(
                    run.profile,
                    state="done",
                    duration_s=duration_s,
                    peak_bytes=int(peak),
                    allocations=int(allocations),
                    file_bytes=path.stat().st_size,
                )
            )
            self.counters["profile:taken"] += 1
            logger.info("celery-trace: a run of %s was profiled with memray: %s", run.profile.name, path)

    def close(self) -> None:
        """The process ends: end the recording in progress."""
        run = self._running
        if run is not None:
            self.ended(run)

    def _fail(self, run: ProfiledRun, why: str) -> None:
        self.counters["profile:failed"] += 1
        logger.warning("celery-trace: the run of %s is not profiled: %s", run.profile.name, why)
        self._profiles.write(msgspec.structs.replace(run.profile, state="failed", why=why))
