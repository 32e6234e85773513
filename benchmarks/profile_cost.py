"""
The cost of the profiles of time: processor time of a sample that is counted, paired with that of the black box alone.

One process, in which a task runs in a thread of its own: it computes, or waits. The sampling thread reads its stack for
the black box, and then counts it; both parts are timed by the thread's processor clock, sample by sample. Added to that
is what writing the records takes. Reported: the share of a core, at the rate of a worker.

    python benchmarks/profile_cost.py [--samples 3000] [--depth 30] [--names 10] [--json]
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rig import command
from celery_trace.intervals import PROFILE_S
from celery_trace.model import Kind, Role
from celery_trace.runtime.probes.stack_probe import STACK_COUNTED_S, StackProbe
from celery_trace.runtime.recorder import Recorder
from celery_trace.settings import Settings

#: The share of a core that the profiles may add.
GOAL: float = 0.001


@contextmanager
def running(recorder: Recorder, name: str, depth: int, work: Callable[[], object]) -> Iterator[None]:
    """A run of a task in a thread of its own, so many frames deep."""
    stop = threading.Event()

    def descend(left: int) -> None:
        if left:
            descend(left - 1)
            return
        while not stop.is_set():
            work()

    def run() -> None:
        token = recorder.run_started(Kind.TASK, name, "id")
        descend(depth)
        recorder.run_ended(token, "SUCCESS")

    thread = threading.Thread(target=run)
    thread.start()
    while not recorder.open_runs.count:
        time.sleep(0.001)
    try:
        yield
    finally:
        stop.set()
        thread.join()


def samples_us(recorder: Recorder, samples: int) -> dict[str, float]:
    """Medians of the processor time of a sample for the black box, and of counting it, microseconds."""
    probe = recorder.probe(StackProbe)
    assert probe.box is not None
    assert probe.times is not None
    box, counted = [], []
    for _ in range(samples):
        time.sleep(0.0005)
        before_s = time.thread_time()
        stacks = probe.box.sample()
        between_s = time.thread_time()
        probe.times.look(stacks, recorder.open_runs.take_missed(), math.inf)
        counted.append(time.thread_time() - between_s)
        box.append(between_s - before_s)
        assert stacks
    return {"box_us": statistics.median(box) * 1e6, "counted_us": statistics.median(counted) * 1e6}


def written_s(recorder: Recorder, names: int, stacks: int, depth: int) -> float:
    """The processor time of writing the profiles of so many tasks with so many stacks, seconds."""
    probe = recorder.probe(StackProbe)
    assert probe.box is not None
    assert probe.times is not None
    for number in range(names):
        with running(recorder, f"bench.task_{number}", depth, lambda: time.sleep(0.001)):
            (seen,) = probe.box.sample()
            for line in range(stacks):
                file, _, function = seen.frames[0]
                frames = [(file, line + 1, function), *seen.frames[1:]]
                probe.times.look([seen._replace(frames=frames)], [], math.inf)
    began_s = time.thread_time()
    for profile in probe.times.changed(at_end=True):
        recorder.write(profile)
    return time.thread_time() - began_s


def measure(*, samples: int = 3000, depth: int = 30, names: int = 10, stacks: int = 100) -> dict[str, Any]:
    """
    The cost by what the task does.

    Args:
        samples: Of each.
        depth: Frames of a stack.
        names: Tasks of which a profile is written every few minutes.
        stacks: Of each profile.
    """
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder.start(Settings(dir=folder, memory="off"), role=Role.CHILD)
        recorder.ticker.stop()
        try:
            found: dict[str, Any] = {}
            for name, work in (("waits", lambda: time.sleep(0.01)), ("computes", lambda: sum(range(100)))):
                with running(recorder, f"bench.{name}", depth, work):
                    samples_us(recorder, 100)
                    found[name] = samples_us(recorder, samples)
            written = written_s(recorder, names, stacks, depth)
        finally:
            recorder.close()
    for figures in (found["waits"], found["computes"]):
        figures["share"] = figures["counted_us"] / 1e6 / STACK_COUNTED_S + written / PROFILE_S
    return {"depth": depth, "names": names, "written_ms": written * 1e3, **found}


def held(figures: dict[str, Any]) -> bool:
    """Whether the share is within the goal."""
    return max(figures["waits"]["share"], figures["computes"]["share"]) <= GOAL


if __name__ == "__main__":
    raise SystemExit(command(__doc__, measure, held, samples=3000, depth=30, names=10, stacks=100))
