"""
What a test may not leave behind: tracing, sampling, signal receivers, threads of ours, processes.

A :class:`Census` is taken before a test and compared after it, so what a wider fixture
set up is not blamed on the test that happened to run in between.
"""

from __future__ import annotations

import _tracemalloc
import gc
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

#: The three packages whose receivers and threads may not outlive a test.
OURS = ("celery_trace", "flower_plugin", "django_bridge")

#: In the environment of every process of this test run, so that one whose parent died is still found.
MARK = "TRACE_TESTS_RUN"

_HARMLESS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")

#: Processes of fixtures that outlive a test, by pid; their children are theirs.
_long_lived: set[int] = set()


def outlives_tests(pid: int) -> None:
    """Say that a process, with all that it starts, belongs to a fixture of a wider scope than one test."""
    _long_lived.add(pid)


@contextmanager
def whose_processes_outlive_tests() -> Iterator[None]:
    """Around the part of a fixture that starts processes by way of somebody else's code."""
    before = set(_child_pids(os.getpid()))
    yield
    _long_lived.update(set(_child_pids(os.getpid())) - before)


def mark_environment() -> None:
    """
    Mark this process' environment, which the processes that tests start inherit.

    Several processes may run parts of the tests side by side (``pytest -n``): each has a mark of its own.
    """
    os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"


def _module(thing: Any) -> str:
    return getattr(thing, "__module__", None) or type(thing).__module__ or ""


def _is_ours(module: str) -> bool:
    return module.split(".", 1)[0] in OURS


def _receivers() -> set[str]:
    """Receivers of ours on Celery's signals, as text; empty while Celery is not imported."""
    signals = sys.modules.get("celery.signals")
    if signals is None:
        return set()
    found = set()
    for name in signals.__all__:
        for _key, held in list(getattr(signals, name).receivers or ()):
            receiver = held() if type(held).__name__ in {"weakref", "ReferenceType", "WeakMethod"} else held
            if receiver is not None and _is_ours(_module(receiver)):
                found.add(f"{name} -> {_module(receiver)}.{getattr(receiver, '__qualname__', receiver)}")
    return found


def _threads() -> set[threading.Thread]:
    """Living threads of ours: by name, by class or by what they run."""
    return {
        thread
        for thread in threading.enumerate()
        if thread.name.replace("-", "_").startswith(OURS)
        or _is_ours(type(thread).__module__)
        or _is_ours(_module(getattr(thread, "_target", None)))
    }


def _child_pids(pid: int) -> list[int]:
    try:
        return [int(child) for task in os.listdir(f"/proc/{pid}/task") for child in _children(pid, task)]
    except OSError:
        try:
            return [child.pid for child in psutil.Process(pid).children()]
        except psutil.Error:
            return []


def _children(pid: int, task: str) -> list[bytes]:
    with open(f"/proc/{pid}/task/{task}/children", "rb", buffering=0) as file:  # each test reads it twice: no Path
        return file.read().split()


def _descendants(pid: int) -> set[int]:
    found: set[int] = set()
    todo = [child for child in _child_pids(pid) if child not in _long_lived]
    while todo:
        child = todo.pop()
        if child not in found:
            found.add(child)
            todo += [grandchild for grandchild in _child_pids(child) if grandchild not in _long_lived]
    return found


def _under_a_long_lived_one(pid: int) -> bool:
    try:
        return any(parent.pid in _long_lived for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False


def _marked() -> set[int]:
    """Processes of this test run, whoever their parent is now."""
    mark = f"{MARK}={os.environ.get(MARK, '')}".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
        except (OSError, ValueError):
            continue
    found.discard(os.getpid())
    return {pid for pid in found - _long_lived if not _under_a_long_lived_one(pid)}


def _processes(*, thorough: bool) -> set[int]:
    return _descendants(os.getpid()) | (_marked() if thorough else set())


def _describe(pid: int) -> str | None:
    """A living process as text; None for one that has ended or that does no harm."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        words = process.cmdline()
    except psutil.Error:
        return None
    line = " ".join(words) or process.name()
    return None if any(word in line for word in _HARMLESS) else f"{pid}: {line[:300]}"


def _sampler() -> Any:
    """The extension module that samples the heap; None while nobody has used it."""
    return sys.modules.get("celery_trace.heap._sampler")


def _samples() -> bool:
    module = _sampler()
    return module is not None and bool(module.is_on())


def _counts_collections() -> bool:
    module = _sampler()
    return module is not None and module.note_collection in gc.callbacks


def _tag() -> int:
    """The run that the sampler takes this thread to be in; 0 for none."""
    module = _sampler()
    if module is None:
        return 0
    tag: int = module.run(0)
    module.restore(tag)
    return tag


@dataclass
class Census:
    """What was there before a test."""

    thorough: bool = False  # look for processes by mark too; the tiers that start processes do
    tracing: bool = field(default_factory=_tracemalloc.is_tracing)
    sampling: bool = field(default_factory=_samples)
    counting: bool = field(default_factory=_counts_collections)
    tag: int = field(default_factory=_tag)
    gc_enabled: bool = field(default_factory=gc.isenabled)
    frozen: int = field(default_factory=gc.get_freeze_count)
    receivers: set[str] = field(default_factory=_receivers)
    threads: set[threading.Thread] = field(default_factory=_threads)
    processes: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.processes = _processes(thorough=self.thorough)

    def left_behind(self, *, grace_s: float = 10.0) -> list[str]:
        """
        What is there now and was not before, one sentence each.

        Threads and processes that are on their way out get ``grace_s``; what remains then is
        put in order (tracing stopped, processes ended), so that one test's fault stays its own.
        """
        deadline = time.monotonic() + grace_s
        while True:
            threads = sorted(thread.name for thread in _threads() - self.threads)
            processes = {
                pid: text
                for pid in _processes(thorough=self.thorough) - self.processes
                if (text := _describe(pid)) is not None
            }
            if not (threads or processes) or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        faults = [f"the thread {name!r} still runs" for name in threads]
        faults += [f"the process {text} still runs" for text in processes.values()]
        faults += [f"the receiver {text} is still connected" for text in sorted(_receivers() - self.receivers)]
        if _tracemalloc.is_tracing() and not self.tracing:  # the public one hides what our own fallback traces
            faults.append("tracemalloc still traces")
            tracemalloc.stop()
        if _samples() and not self.sampling:
            faults.append("the heap is still sampled")
            _sampler().stop()
        if (tag := _tag()) != self.tag:
            faults.append(f"the sampler takes this thread to be in a run (tag {tag}; {self.tag} before)")
            _sampler().restore(self.tag)
        if _counts_collections() and not self.counting:
            faults.append("the collector still calls the heap's sampler")
            gc.callbacks.remove(_sampler().note_collection)
        if gc.isenabled() != self.gc_enabled:
            faults.append(f"the garbage collector is {'on' if gc.isenabled() else 'off'}, unlike before")
            (gc.enable if self.gc_enabled else gc.disable)()
        if self.frozen == 0 and gc.get_freeze_count():
            faults.append(f"{gc.get_freeze_count()} objects are still frozen")
            gc.unfreeze()
        for pid in processes:
            try:
                psutil.Process(pid).kill()
            except psutil.Error:
                continue
        return faults
