"""Records for tests of the store, the spool and what stands between them."""

from __future__ import annotations

from typing import Any

from celery_trace.model import (
    Consuming,
    Evidence,
    ExceptionInfo,
    Failure,
    Flow,
    HeapProfile,
    HeapStack,
    Histogram,
    Holder,
    Kind,
    Line,
    Measure,
    MemoryState,
    MessageStart,
    Outcome,
    ProcessRecord,
    QueueSample,
    Role,
    Rollup,
    Run,
    RunningRun,
    RunningSnapshot,
    Sample,
    Schedule,
    Site,
    Stage,
    TimeProfile,
    TimeStack,
    Verdict,
    Window,
    failure_id,
)

NOW_S = 1_700_000_000.0


def process(uid: str = "p1", **fields: Any) -> ProcessRecord:
    known: dict[str, Any] = {"host": "h1", "pid": 11, "started_at_s": NOW_S - 60, "worker": "w1@h1", "role": Role.CHILD}
    return ProcessRecord(uid=uid, **known | fields)


def failure(task_id: str, **fields: Any) -> Failure:
    known: dict[str, Any] = {
        "id": failure_id(task_id, fields.get("retries", 0)),
        "process": "p1",
        "kind": Kind.TASK,
        "name": "shop.charge",
        "outcome": Outcome.FAILED,
        "exception": ExceptionInfo("ValueError", "builtins", "no such card"),
        "fingerprint": "fp-value",
        "worker": "w1@h1",
        "at_s": NOW_S,
    }
    return Failure(task_id=task_id, **known | fields)


def run(id: str, **fields: Any) -> Run:
    known: dict[str, Any] = {"process": "p1", "kind": Kind.TASK, "name": "shop.charge", "started_at_s": NOW_S}
    return Run(id=id, duration_s=0.5, **known | fields)


def rollup(seq: int, runs: int, **fields: Any) -> Rollup:
    known: dict[str, Any] = {
        "process": "p1",
        "kind": Kind.TASK,
        "name": "shop.charge",
        "bucket_s": int(NOW_S) // 300 * 300,
        "durations": Histogram([0, runs]),
        "duration_s": runs * 0.5,
    }
    return Rollup(seq=seq, runs=runs, **known | fields)


def sample(at_s: float, rss_bytes: int, **fields: Any) -> Sample:
    known: dict[str, Any] = {"process": "p1", "memory": MemoryState(rss_bytes=rss_bytes)}
    return Sample(at_s=at_s, **known | fields)


def flow(seq: int, started: int, wait_s: float = 1.0, **fields: Any) -> Flow:
    """Messages of which each waited as long."""
    waits = [0] * (Histogram.bucket(wait_s) + 1)
    waits[-1] = started
    known: dict[str, Any] = {
        "process": "p1",
        "queue": "mails",
        "name": "shop.mail",
        "bucket_s": int(NOW_S) // 300 * 300,
        "received": started,
        "waits": Histogram(waits),
        "wait_max_s": wait_s,
    }
    return Flow(seq=seq, started=started, **known | fields)


def queue_sample(depth: int | None, ago_s: float = 0.0, **fields: Any) -> QueueSample:
    return QueueSample(at_s=NOW_S - ago_s, depth=depth, **{"queue": "mails"} | fields)


def consuming(**fields: Any) -> Consuming:
    known: dict[str, Any] = {"process": "p2", "queue": "mails", "at_s": NOW_S, "worker": "w2@h1"}
    return Consuming(**known | fields)


def start(ago_s: float, ended_ago_s: float | None = None, **fields: Any) -> MessageStart:
    known: dict[str, Any] = {"process": "p1", "worker": "w1@h1", "queue": "mails", "name": "shop.mail", "task_id": "t1"}
    ended_at_s = None if ended_ago_s is None else NOW_S - ended_ago_s
    return MessageStart(started_at_s=NOW_S - ago_s, ended_at_s=ended_at_s, **known | fields)


def schedule(due_in_s: float, **fields: Any) -> Schedule:
    known: dict[str, Any] = {
        "process": "p4", "entry": "nightly", "task": "shop.report", "every": "60 s", "at_s": NOW_S - 5,
        "interval_s": 60.0, "published_at_s": NOW_S + due_in_s - 60, "published": 3,
    }  # fmt: skip
    return Schedule(due_at_s=NOW_S + due_in_s, **known | fields)


def site(file: str, **fields: Any) -> Site:
    known: dict[str, Any] = {"line": 7, "function": "charge", "code": "seen.append(x)", "bytes": 4096, "blocks": 2}
    return Site(file=file, **known | fields)


def running_run(task_id: str, **fields: Any) -> RunningRun:
    """A run in progress that began ten seconds ago and has not moved since."""
    known: dict[str, Any] = {
        "process": "p1",
        "kind": Kind.TASK,
        "name": "shop.charge",
        "worker": "w1@h1",
        "hostname": "h1",
        "pid": 7,
        "role": Role.CHILD,
        "started_at_s": NOW_S - 10,
        "sampled_at_s": NOW_S,
        "unmoved_since_s": NOW_S - 9.5,
        "stalled_since_s": NOW_S - 9.5,
        "stack": [Line("/srv/shop/tasks.py", 7, "charge", "lock.acquire()")],
    }
    return RunningRun(task_id=task_id, **known | fields)


def snapshot(*runs: RunningRun, **fields: Any) -> RunningSnapshot:
    """What runs on a host."""
    known: dict[str, Any] = {"place": "h1:0", "at_s": NOW_S, "runs": list(runs)}
    return RunningSnapshot(**known | fields)


def heap_profile(kept_bytes: int, **fields: Any) -> HeapProfile:
    """What a process says that its runs keep, by one stack."""
    known: dict[str, Any] = {
        "process": "p1",
        "kind": Kind.TASK,
        "name": "shop.charge",
        "at_s": NOW_S,
        "runs": 10,
        "bytes": kept_bytes,
        "frames": [Line("/srv/shop/tasks.py", 7, "charge", "seen.append(x)")],
        "stacks": [HeapStack([0], kept_bytes)],
    }
    return HeapProfile(**known | fields)


def time_profile(wall_s: float, **fields: Any) -> TimeProfile:
    """What a process says where the time of its runs went: one stack, half of it processor time."""
    wall_us = round(wall_s * 1_000_000)
    known: dict[str, Any] = {
        "process": "p1",
        "kind": Kind.TASK,
        "name": "shop.charge",
        "began_s": NOW_S,
        "at_s": NOW_S,
        "runs": 10,
        "wall_us": wall_us,
        "cpu_us": wall_us // 2,
        "measures": [Measure.WALL, Measure.CPU],
        "frames": [Line("/srv/shop/tasks.py", 7, "charge", "seen.append(x)")],
        "stacks": [TimeStack([0], wall_us, wall_us // 2)],
    }
    return TimeProfile(**known | fields)


def window(id: str, **fields: Any) -> Window:
    """The word of a process on a site that keeps 4 KiB a run, or, if steady, has kept something in two runs alone."""
    runs = fields.get("run_number", 300)
    events = 2 if fields.get("verdict") is Verdict.STEADY else runs
    known: dict[str, Any] = {
        "investigation": "i1",
        "process": "p1",
        "kind": Kind.TASK,
        "name": "shop.charge",
        "stage": Stage.SAMPLED,
        "verdict": Verdict.LEAKING,
        "at_s": NOW_S,
        "runs": runs,
        "run_number": 300,
        "evidence": Evidence(runs, events // 2, events - events // 2, 4096.0 * runs, events),
        "holder": Holder(path=["shop.tasks (module)", "seen: list[300]", "str × 300"], searched=True),
        "kept_bytes_per_run": 4096.0,
        "kept_blocks_per_run": 2.0,
        "sites": [site("/srv/shop/tasks.py")],
    }
    return Window(id=id, **known | fields)
