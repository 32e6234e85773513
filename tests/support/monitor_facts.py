"""A store full of facts for the monitor's tests: plausible ones, hostile ones, and very many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from celery_trace.heap.flamegraph import Profile, Profiles
from celery_trace.model import (
    UNSEEN,
    Ahead,
    AlertView,
    AnyRecord,
    Capture,
    CapturedException,
    Consuming,
    Delivery,
    Evidence,
    ExceptionInfo,
    Failure,
    Flow,
    Frame,
    HeapProfile,
    HeapStack,
    Histogram,
    Holder,
    Kind,
    LastSample,
    Line,
    Measure,
    MemoryState,
    MessageStart,
    Node,
    Outcome,
    ProcessRecord,
    QueueSample,
    RequestContext,
    Role,
    Rollup,
    Room,
    Run,
    RunningRun,
    RunningSnapshot,
    Sample,
    Schedule,
    ShellLine,
    ShellView,
    Site,
    Stage,
    Stats,
    TaskContext,
    TimeProfile,
    TimeStack,
    TypeCount,
    Variable,
    Verdict,
    Window,
    failure_id,
)
from celery_trace.model.logs import LogLine, LogTail

MIB = 1024 * 1024
WORKER = "celery@web-1"
PROFILE = "profile1"
#: The task that is stuck.
RUNNING = "7a1f9b3a-0000-4000-8000-000000000998"
CHILD_LIMIT = 512 * MIB

#: Strings that try to be something else: markup, scripts, templates, direction marks, control characters, length.
HOSTILE = (
    "<script>window.pwned = 1</script>",
    '"><img src=x onerror="window.pwned = 1">',
    "'; window.pwned = 1; //",
    "</script><script>window.pwned = 1</script>",
    "{{ 7 * 7 }}{% raw x %}",
    "javascript:window.pwned=1",
    "a\u202egnp.exe\u2066 \u200bhidden",
    "\x1b[31mred\x1b[0m\x07 bell \x00 nul",
    "🦑" * 40,
    "long" * 2000,
    "שלום עולם و مرحبا",
    "../../../etc/passwd",
)


def _hostile(text: str, number: int, hostile: bool) -> str:
    return HOSTILE[number % len(HOSTILE)] if hostile else text


def heap() -> list[Node]:
    """The locals of the seed example, a nested dict, a cycle, something redacted and something cut."""
    return [
        Node("str", "plain", "Hello"),
        Node("int", "plain", 5),
        Node("int", "plain", 6),
        Node("int", "plain", 10),
        Node("dict", "dict", None, [5, 6, 7, 8, 9, 10], [], 3),
        Node("str", "plain", "customer"),
        Node("shop.models.Customer", "object", None, [11, 12, 13], ["name", "email", "orders"], -1, 0, "model"),
        Node("str", "plain", "token"),
        Node("str", "redacted"),
        Node("str", "plain", "lines"),
        Node("list", "list", None, [1, 2, 3, 4], [], 5000, 4996),
        Node("str", "plain", "Ada Lovelace"),
        Node("str", "plain", "ada@example.org"),
        Node("django.db.models.query.QuerySet", "list", None, [], [], 0, 0, "queryset"),
        Node("decimal.Decimal", "text", "19.99"),
        Node("tuple", "tuple", None, [], [], 0),
        Node("str", "plain", "word " * 150, [], [], 750),
    ]


def capture(hostile: bool = False, number: int = 0) -> Capture:
    """A chain of two exceptions with frames of the user and of libraries."""
    text = _hostile("division by zero", number, hostile)
    nodes = heap()
    if hostile:
        nodes += [Node(word[:80], "plain", word) for word in HOSTILE]
    inner = Frame(
        file="/srv/shop/shop/tasks.py",
        line=42,
        function=_hostile("create_error", number + 1, hostile)[:300],
        qualname=_hostile("create_error", number + 1, hostile)[:300],
        module="shop.tasks",
        code="    return d / (a - 5)",
        context_start=36,
        context=[
            "@app.task",
            "def create_error(context_data):",
            '    """Fails on purpose, as the seed example does."""',
            "    a = 5",
            "    c = 6",
            "    d = 10",
            "    return d / (a - 5)" if not hostile else HOSTILE[number % len(HOSTILE)].replace("\n", " "),
            "",
            "",
            "@app.task",
        ],
        columns=(42, 11, 22),
        locals=[
            Variable("context_data", 0),
            Variable("a", 1),
            Variable("c", 2),
            Variable("d", 3),
            Variable("order", 4),
            Variable("price", 14),
            Variable("text", 16),
            *([Variable(HOSTILE[i][:60], len(heap()) + i) for i in range(len(HOSTILE))] if hostile else []),
        ],
    )
    library = [
        Frame(
            file="/srv/venv/lib/python3.11/site-packages/celery/app/trace.py",
            line=line,
            function=name,
            module="celery.app.trace",
            code=f"    R = retval = fun(*args, **kwargs)  # {name}",
            in_app=False,
            locals=[Variable("args", 15)],
        )
        for line, name in ((453, "trace_task"), (736, "__protected_call__"))
    ]
    return Capture(
        exceptions=[
            CapturedException(type="ZeroDivisionError", module="builtins", message=text, frames=[inner, *library]),
            CapturedException(
                type="KeyError",
                module="builtins",
                message=_hostile("'rate'", number + 3, hostile),
                frames=[inner],
                link="context",
                parent=0,
                notes=["while the rate was looked up"],
            ),
        ],
        heap=nodes,
        args=15,
        kwargs=4,
        cut_values=1,
        redacted_values=1,
    )


#: The first task of a workflow whose further tasks failed.
ROOT = "6e1f9b3a-0000-4000-8000-00000000root"


def processes(now_s: float) -> list[ProcessRecord]:
    """A prefork worker with two children and one that was killed, a silent worker, and a web process."""
    common = {"host": "web-1", "python": "3.11.7", "counters": ["allocated_blocks", "malloc_bytes"]}
    return [
        ProcessRecord(
            uid="main-0",
            pid=90,
            started_at_s=now_s - 9000,
            worker=WORKER,
            role=Role.MAIN,
            release="1.4.1",
            ended_at_s=now_s - 4010,
            ended_how="exit",
            **common,
        ),
        ProcessRecord(
            uid="main-1", pid=100, started_at_s=now_s - 4000, worker=WORKER, role=Role.MAIN, release="1.4.2", **common
        ),
        ProcessRecord(uid="child-1", pid=101, started_at_s=now_s - 7200, worker=WORKER, role=Role.CHILD, **common),
        ProcessRecord(uid="child-2", pid=102, started_at_s=now_s - 3000, worker=WORKER, role=Role.CHILD, **common),
        ProcessRecord(
            uid="child-0",
            pid=99,
            started_at_s=now_s - 7200,
            worker=WORKER,
            role=Role.CHILD,
            ended_at_s=now_s - 3100,
            ended_how="killed",
            **common,
        ),
        ProcessRecord(uid="web-1", pid=300, started_at_s=now_s - 5000, role=Role.WEB, host="web-2", python="3.12.1"),
        ProcessRecord(
            uid="gone-1", pid=77, started_at_s=now_s - 9000, worker="celery@batch-7", role=Role.SOLO, host="batch-7"
        ),
    ]


def samples(now_s: float) -> Iterator[Sample]:
    """Memory every thirty seconds for an hour and a half; the leaking child grows."""
    for step in range(180):
        at_s = now_s - 5400 + step * 30
        for uid, base, slope, name in (
            ("main-1", 60, 0.0, ""),
            ("child-1", 80, 0.9, "shop.tasks.remember_order" if step % 3 else ""),
            ("child-2", 78, 0.5 if step > 80 else 0, "shop.tasks.render"),
            ("child-0", 80, 2.5, "shop.tasks.overrun"),
        ):
            if (uid == "child-0" and step > 76) or (uid == "child-2" and step < 80):
                continue
            rss = int((base + slope * step + 3 * math.sin(step / 5)) * MIB)
            yield Sample(
                process=uid,
                at_s=at_s,
                memory=MemoryState(
                    rss_bytes=rss,
                    uss_bytes=rss - 25 * MIB,
                    fds=18 + step % 3,
                    threads=4,
                    child_limit_bytes=CHILD_LIMIT if uid.startswith("child") else None,
                    room=Room(int((400 + 1.1 * step) * MIB), 1024 * MIB) if uid == "main-1" else None,
                ),
                runs=step * 11,
                name=name,
                overhead_ratio=0.006,
            )
    yield Sample(process="gone-1", at_s=now_s - 4000, memory=MemoryState(rss_bytes=50 * MIB), runs=3)
    yield Sample(process="web-1", at_s=now_s - 8, memory=MemoryState(rss_bytes=120 * MIB, threads=9), runs=800)


def rollups(now_s: float) -> Iterator[Rollup]:
    """Runs of five names in both children."""
    first = int(now_s - 7200) // 300 * 300
    for slot in range(24):
        for uid in ("child-1", "child-2"):
            for index, (name, kept, failed, mean_s) in enumerate(
                (
                    ("shop.tasks.remember_order", 104_000, 0, 0.012),
                    ("shop.tasks.fill_cache", 9_000 if slot < 6 else 0, 0, 0.03),
                    ("shop.tasks.create_error", 0, 12, 0.004),
                    ("shop.tasks.render", -300, 0, 0.25),
                    ("shop.tasks.overrun", 40_000, 1 if slot == 20 else 0, 2.0),
                )
            ):
                runs = 12 + (slot * 7 + index) % 9
                counts = [0] * Histogram.BUCKETS
                counts[Histogram.bucket(mean_s)] = runs - 1
                counts[Histogram.bucket(mean_s * 6)] += 1
                yield Rollup(
                    process=uid,
                    kind=Kind.TASK,
                    name=name,
                    bucket_s=first + slot * 300,
                    seq=1,
                    runs=runs,
                    failed=min(failed, runs),
                    duration_s=mean_s * runs,
                    duration_max_s=mean_s * 6,
                    durations=Histogram(counts),
                    gated=runs,
                    kept_bytes=kept * runs,
                    kept_blocks=kept * runs // 80,
                    rss_max_bytes=150 * MIB,
                )


def _evidence(runs: int, kept_bytes: int) -> Evidence:
    """Of a site that keeps so much in every run."""
    return Evidence(runs, runs // 2, runs - runs // 2, float(runs * kept_bytes), runs)


def windows(now_s: float, hostile: bool = False) -> Iterator[Window]:
    """A leak with its line, a cache that filled, a native growth, and a suspect."""
    name = _hostile("shop.tasks.remember_order", 1, hostile)
    site = Site(
        file=_hostile("/srv/shop/shop/tasks.py", 11, hostile),
        line=57,
        function=_hostile("remember_order", 0, hostile),
        code=_hostile("    RECEIPTS.append(Receipt(order, text=THANKS * 800))", 2, hostile),
        bytes=104_000,
        blocks=4,
        traceback=[
            Line(_hostile("/srv/shop/shop/tasks.py", 6, hostile), 57, "remember_order", "    RECEIPTS.append(r)"),
            Line("/srv/shop/shop/receipts.py", 12, "Receipt.__init__", "        self.text = text"),
            Line("/srv/venv/lib/python3.11/site-packages/celery/app/trace.py", 453, "trace_task", "R = fun(*args)"),
        ],
    )  # fmt: skip
    holder = Holder(
        path=[
            _hostile("shop.tasks (module)", 4, hostile),
            "RECEIPTS: list[1204]",
            "shop.receipts.Receipt × 1204",
        ],
        searched=True,
    )
    for index, verdict in enumerate((Verdict.SUSPECT, Verdict.GROWING, Verdict.LEAKING)):
        for uid in ("child-1", "child-2"):
            yield Window(
                id=f"w-leak-{index}-{uid}",
                investigation=f"inv-leak-{uid}",
                process=uid,
                kind=Kind.TASK,
                name=name,
                stage=Stage.SAMPLED,
                verdict=verdict,
                at_s=now_s - 2400 + index * 900 + (40 if uid == "child-2" else 0),
                runs=37 + index * 150,
                run_number=40 + index * 150,
                kept_blocks_per_run=4.0,
                kept_bytes_per_run=104_000.0,
                sites=[site],
                types=[
                    TypeCount(_hostile("shop.receipts.Receipt", 3, hostile), 8, 448),
                    TypeCount("str", 8, 830_000),
                    TypeCount("dict", 8, 1472),
                ],
                retained_by=holder.path if index else [],
                note=f"memory of {37 + index * 150} of {37 + index * 150} runs is still alive",
                role=Role.CHILD,
                release="1.8.2",
                evidence=_evidence(37 + index * 150, 104_000),
                holder=holder if index else Holder(),
                growth=[(now_s - 2400 + step * 900, 104_000 * (40 + step * 150)) for step in range(index + 1)],
            )
    cache = Site(
        file="/srv/shop/shop/cache.py",
        line=9,
        function="lookup",
        code="@lru_cache(maxsize=500)",
        bytes=9000,
        blocks=3,
        traceback=[Line("/srv/shop/shop/cache.py", 9, "lookup", "@lru_cache(maxsize=500)")],
    )
    yield Window(
        id="w-cache", investigation="inv-cache", process="child-1", kind=Kind.TASK, name="shop.tasks.fill_cache",
        stage=Stage.SAMPLED, verdict=Verdict.STEADY, at_s=now_s - 1000, runs=697, run_number=700,
        kept_blocks_per_run=0.1, kept_bytes_per_run=12.0, sites=[cache], bounded="lru_cache (500/500)",
        retained_by=["shop.cache (module)", "lookup: lru_cache (500/500)"], evidence=_evidence(697, 12),
        holder=Holder(
            path=["shop.cache (module)", "lookup: lru_cache (500/500)"], bound="lru_cache (500/500)", full=True,
            searched=True,
        ),
    )  # fmt: skip
    yield Window(
        id="w-native", investigation="inv-native", process="child-2", kind=Kind.TASK, name="shop.tasks.open_files",
        stage=Stage.NATIVE, verdict=Verdict.GROWING, at_s=now_s - 500, runs=8, run_number=90, native="fds",
        kept_bytes_per_run=0.0, note="One descriptor a run stays open.",
    )  # fmt: skip


def heap_profiles(now_s: float, hostile: bool = False) -> Iterator[HeapProfile]:
    """What the leaking task keeps in its children: two hours ago under an earlier release, an hour ago, and now."""
    task, receipts = "/srv/shop/shop/tasks.py", "/srv/shop/shop/receipts.py"
    frames = [
        Line(_hostile(task, 6, hostile), 57, _hostile("remember_order", 0, hostile)[:400], "RECEIPTS.append(order)"),
        Line(receipts, 12, "Receipt.__init__", _hostile("self.text = text * 800", 3, hostile)[:120]),
        Line("/srv/venv/lib/python3.11/site-packages/orjson/__init__.py", 30, "dumps"),
        Line(task, 61, "remember_order", "LAST[order.id] = dumps(order)"),
        Line(receipts, 20, "Receipt.line", "self.lines.append(line)"),
        Line(_hostile(task, 9, hostile), 12, _hostile("<module>", 2, hostile)[:400], "import decimal"),
    ]
    for uid, at_s, release, runs, scale in (
        ("child-0", now_s - 3300, "1.8.1", 900, (0.02, 0.3, 0.0)),
        ("child-1", now_s - 5400, "1.8.1", 200, (0.05, 0.4, 0.1)),
        ("child-1", now_s - 60, "1.8.2", 1204, (1.0, 0.3, 0.5)),
        ("child-2", now_s - 30, "1.8.2", 700, (0.6, 0.2, 0.3)),
    ):
        receipt, last, line = (int(part * 100 * MIB) for part in scale)
        found = (([0, 1], receipt), ([0, 4], line), ([3, 2], last // 10), ([5], 90_000))
        stacks = [HeapStack(places, kept) for places, kept in found if kept]
        yield HeapProfile(
            process=uid,
            kind=Kind.TASK,
            name="shop.tasks.remember_order",
            at_s=at_s,
            release=release,
            runs=runs,
            bytes=sum(stack.bytes for stack in stacks) + 40_000,
            other_bytes=40_000,
            frames=frames,
            stacks=stacks,
            peaks={40: runs - 20, 44: 15, 52: 5},
        )


def time_profiles(now_s: float, hostile: bool = False) -> Iterator[TimeProfile]:
    """Where the time of the leaking task goes: two hours ago under an earlier release, and now it waits longer."""
    task, receipts = "/srv/shop/shop/tasks.py", "/srv/shop/shop/receipts.py"
    frames = [
        Line(_hostile(task, 6, hostile), 55, _hostile("remember_order", 0, hostile)[:400], "order = load(order_id)"),
        Line("/srv/venv/lib/python3.11/site-packages/redis/connection.py", 210, "Connection.read_response"),
        Line("/usr/lib/python3.11/socket.py", 705, "SocketIO.readinto"),
        Line(task, 57, "remember_order", "RECEIPTS.append(order)"),
        Line(receipts, 12, "Receipt.__init__", _hostile("self.text = text * 800", 3, hostile)[:120]),
        Line(receipts, 31, "Receipt.number", "with LOCK:"),
        UNSEEN,
    ]
    for uid, at_s, release, runs, scale in (
        ("child-1", now_s - 5400, "1.8.1", 900, 0.4),
        ("child-1", now_s - 60, "1.8.2", 1204, 1.0),
        ("child-2", now_s - 30, "1.8.2", 700, 0.6),
    ):
        read, made, locked, short = (round(part * scale * runs) for part in (42_000, 9000, 4000, 700))
        stacks = [
            TimeStack([0, 1, 2], read * 2 if release == "1.8.2" else read, read // 60),
            TimeStack([3, 4], made, made - made // 20),
            TimeStack([3, 5], locked, 0, locked),
            TimeStack([6], short),
        ]
        yield TimeProfile(
            process=uid,
            kind=Kind.TASK,
            name="shop.tasks.remember_order",
            began_s=at_s - 300,
            at_s=at_s,
            release=release,
            runs=runs,
            wall_us=sum(stack.wall_us for stack in stacks) + 60_000,
            cpu_us=sum(stack.cpu_us for stack in stacks) + 9000,
            lock_us=locked,
            measures=[Measure.WALL, Measure.CPU, Measure.LOCK],
            frames=frames,
            stacks=stacks,
        )


def logs(at_s: float, number: int, hostile: bool) -> LogTail:
    """The last log records of a run."""
    texts = (
        "order 4711 of ada",
        "asking the bank\nfor the second time",
        "the bank did not answer within 2 s",
        "giving up",
    )
    levels = ("INFO", "DEBUG", "WARNING", "ERROR")
    lines = [
        LogLine(
            at_s=at_s - 3 + place * 0.7, level=level, logger=_hostile("shop.orders", place, hostile)[:200],
            text=_hostile(text, number + place, hostile), file="/srv/shop/shop/tasks.py", line=31 + place,
            cut=500 if place == 2 else 0,
        )
        for place, (level, text) in enumerate(zip(levels, texts, strict=True))
    ]  # fmt: skip
    return LogTail(lines, 12)


def failures(now_s: float, hostile: bool = False, count: int = 40) -> Iterator[Failure]:
    """Failures of several kinds and groups."""
    for number in range(count):
        task_id = f"6e1f9b3a-0000-4000-8000-{number:012d}"
        at_s = now_s - 30 - number * 1700
        common = {"process": "child-1", "kind": Kind.TASK, "worker": WORKER, "pid": 101, "hostname": "web-1"}
        if number % 8 == 5:
            yield Failure(
                id=failure_id(task_id, 0), name="shop.tasks.overrun", task_id=task_id, outcome=Outcome.TIME_LIMIT,
                witness="main", at_s=at_s, fingerprint="killed-overrun", duration_s=2.0,
                last_sample=LastSample(
                    at_s=at_s - 0.1, age_s=0.12, memory=MemoryState(rss_bytes=270 * MIB),
                    stack=[Line("/srv/shop/shop/tasks.py", 88, "overrun", "    time.sleep(0.01)")],
                ),
                **common,
            )  # fmt: skip
            continue
        if number % 8 == 6:
            yield Failure(
                id=failure_id(task_id, 0), name="GET shop:error", outcome=Outcome.FAILED, witness="web",
                process="web-1", kind=Kind.REQUEST, pid=300, hostname="web-2", at_s=at_s,
                exception=ExceptionInfo("ZeroDivisionError", "builtins", "division by zero"),
                fingerprint="web-error", capture=capture(hostile, number), duration_s=0.03,
                request=RequestContext(
                    method="GET", path=_hostile("/error/", number, hostile), view="shop.views.error", user="ada",
                    status=500, headers={"Accept": "text/html", "X-Odd": _hostile("odd", 0, hostile)},
                    get={"page": [_hostile("2", 3, hostile)]}, sql_count=3, sql_s=0.002,
                ),
            )  # fmt: skip
            continue
        group = number % 3
        yield Failure(
            id=failure_id(task_id, number % 2),
            name=_hostile(("shop.tasks.create_error", "shop.tasks.charge", "shop.mail.send")[group], number, hostile),
            task_id=task_id,
            retries=number % 2,
            outcome=Outcome.RETRIED if number % 2 else Outcome.FAILED,
            exception=ExceptionInfo(
                ("ZeroDivisionError", "CardDeclined", "ConnectionRefusedError")[group],
                ("builtins", "shop.errors", "builtins")[group],
                _hostile(("division by zero", "card ending 4242 was declined", "[Errno 111]")[group], number, hostile),
            ),
            fingerprint=f"group-{group}",
            at_s=at_s,
            duration_s=0.012,
            capture=capture(hostile, number),
            task=TaskContext(
                queue="celery",
                root_id=ROOT if number < 3 else task_id,
                parent_id="" if number > 2 else ROOT if number == 0 else "6e1f9b3a-0000-4000-8000-000000000000",
            ),
            memory=MemoryState(rss_bytes=143 * MIB, uss_bytes=110 * MIB, threads=4, fds=19),
            logs=logs(at_s, number, hostile) if number % 3 == 0 else None,
            **common,
        )


def runs(now_s: float) -> Iterator[Run]:
    """Single runs of one name, and two of a workflow."""
    for task_id, name in ((ROOT, "shop.tasks.checkout"), ("receipt", "shop.mail.receipt")):
        yield Run(
            id=f"run-{name}", process="child-1", kind=Kind.TASK, name=name, task_id=task_id, root_id=ROOT,
            started_at_s=now_s - 5200, state="SUCCESS", duration_s=0.2, why="sampled", queue="orders",
        )  # fmt: skip
    for number in range(60):
        yield Run(
            id=f"run-{number}", process="child-1", kind=Kind.TASK, name="shop.tasks.remember_order",
            task_id=f"7a1f9b3a-0000-4000-8000-{number:012d}", started_at_s=now_s - number * 60, state="SUCCESS",
            queue="orders",
            duration_s=0.01 + 0.004 * (number % 7) + (0.3 if number % 17 == 0 else 0),
            why="outlier" if number % 17 == 0 else "sampled", kept_bytes=104_000 + number, kept_blocks=4,
            memory=MemoryState(rss_bytes=(90 + number) * MIB),
            top=[Site(file="/srv/shop/shop/tasks.py", line=57, bytes=104_000, blocks=4, code="RECEIPTS.append(r)")]
            if number == 3
            else [],
        )  # fmt: skip


def queues(now_s: float, hostile: bool = False) -> Iterator[AnyRecord]:
    """A queue that is read, one that nobody reads, a schedule, and a message that was started twice."""
    first = int(now_s - 3600) // 300 * 300
    orders, mails = "orders", _hostile("mails", 2, hostile)
    for slot in range(12):
        waits = [0] * Histogram.BUCKETS
        waits[12 + slot // 4] = 30
        yield Flow(
            process="main-1", queue=orders, name=_hostile("shop.tasks.render", 1, hostile), bucket_s=first + slot * 300,
            seq=1, published=32, received=31, started=30, redelivered=1, waits=Histogram(waits),
            transfers=Histogram([0] * 8 + [30]), reserved=Histogram(waits), wait_max_s=0.4 * 2 ** (slot // 4),
            eta_max_s=3000.0, acks_late=True,
        )  # fmt: skip
    yield Flow(process="web-1", queue=mails, name="shop.mail.send", bucket_s=first + 3300, seq=1, published=250)
    for step in range(60):
        at_s = now_s - 3600 + step * 60
        depth = 10 + step % 7
        yield QueueSample(queue=orders, at_s=at_s, depth=depth, oldest_age_s=depth / 4, running=2, reserved=3)
        yield QueueSample(queue=mails, at_s=at_s, depth=4 * step, consumers=0, oldest_age_s=60.0 * step)
    yield Consuming(
        process="main-1", queue=orders, at_s=now_s, worker=WORKER, running=2, reserved=3, scheduled=1,
        reserved_since_s=now_s - 40, visibility_timeout_s=3600.0,
        ahead=[Ahead(_hostile("shop.tasks.overrun", 0, hostile), "t-1", now_s - 90)],
    )  # fmt: skip
    for number, process in enumerate(("main-1", "main-2")):
        yield MessageStart(
            process=process, worker=f"celery@web-{number + 1}", queue=orders,
            name=_hostile("shop.tasks.render", 3, hostile), task_id="6e1f9b3a-0000-4000-8000-000000000099",
            started_at_s=now_s - 900 + number * 300,
            ended_at_s=now_s - 300 + number * 300, succeeded=True, redelivered=bool(number),
        )  # fmt: skip
    for entry, due_s, published in (("nightly-report", 7200.0, 1), ("every-minute", -600.0, 40)):
        yield Schedule(
            process="beat-1", entry=_hostile(entry, 1, hostile), task="shop.tasks.report", every="<crontab: 0 4 * * *>",
            at_s=now_s - 30, due_at_s=now_s + due_s, interval_s=60.0, published_at_s=now_s - 660, published=published,
            missed=published // 20,
        )  # fmt: skip


def running(now_s: float, hostile: bool = False) -> RunningSnapshot:
    """What runs on the host: one run that is stuck, and one that has just begun."""
    common = {"kind": Kind.TASK, "worker": WORKER, "hostname": "web-1", "role": Role.CHILD, "queue": "orders"}
    file = "/srv/shop/shop/tasks.py"
    later_s = now_s + 7200  # a snapshot is valid for some seconds, and tests may take longer
    return RunningSnapshot(
        place="web-1:0",
        at_s=later_s,
        runs=[
            RunningRun(
                process="child-1", pid=101, name=_hostile("shop.tasks.sync_stock", 0, hostile),
                task_id=RUNNING, thread=7, started_at_s=now_s - 2400, rss_bytes=143 * MIB, sampled_at_s=now_s - 1,
                unmoved_since_s=now_s - 2399, stalled_since_s=now_s - 2399, waiting_for=_hostile("a lock", 1, hostile),
                stack=[
                    Line("/usr/lib/python3.11/threading.py", 327, "Condition.wait", "waiter.acquire()"),
                    Line(file, 88, "sync_stock", _hostile("lock.wait(timeout=None)", 2, hostile)),
                ],
                **common,
            ),
            RunningRun(
                process="child-2", pid=102, name="shop.tasks.remember_order", thread=8, retries=2,
                task_id="7a1f9b3a-0000-4000-8000-000000000999", started_at_s=now_s - 3, rss_bytes=90 * MIB,
                sampled_at_s=now_s - 1, unmoved_since_s=later_s,
                stack=[Line(file, 57, "remember_order", "RECEIPTS.append(r)")],
                **common,
            ),
        ],
        ended={"child-1": 240, "child-2": 31},
    )  # fmt: skip


def records(now_s: float, hostile: bool = False) -> list[AnyRecord]:
    """Everything that processes write."""
    found: list[AnyRecord] = [*processes(now_s)]
    found += [*samples(now_s), *rollups(now_s), *windows(now_s, hostile), *heap_profiles(now_s, hostile)]
    found += time_profiles(now_s, hostile)
    found += [*failures(now_s, hostile), *runs(now_s), *queues(now_s, hostile), running(now_s, hostile)]
    found.append(
        Stats(
            process="child-1",
            seq=3,
            at_s=now_s,
            overhead_s=4.2,
            process_s=600.0,
            counters={"written:failure": 40, "written:rollup": 240, "cut:values": 17, "live:refused": 1},
        )
    )
    return found


def alerts(now_s: float, hostile: bool = False) -> list[AlertView]:
    """One alert in each state."""
    base = {"severity": "warning", "value": 104_000.0, "threshold": 4096.0}
    return [
        AlertView(
            id="alert-leak", rule="leak", subject=_hostile("shop.tasks.remember_order", 0, hostile), state="firing",
            text=_hostile("shop.tasks.remember_order leaks 101.6 KiB a run", 1, hostile), since=now_s - 1500,
            fired_at=now_s - 1300, resolved_at=None, link="leaks", **base,
        ),
        AlertView(
            id="alert-memory", rule="process_memory", subject=WORKER, state="pending", since=now_s - 60,
            text=f"A process of {WORKER} is above 200.0 MiB", fired_at=None, resolved_at=None, link="workers", **base,
        ),
        AlertView(
            id="alert-old", rule="lost", subject="shop.tasks.overrun", state="resolved", since=now_s - 90_000,
            text="shop.tasks.overrun was killed", fired_at=now_s - 89_000, resolved_at=now_s - 80_000, count=3, **base,
        ),
    ]  # fmt: skip


def fill(store: object, now_s: float, hostile: bool = False) -> None:
    """Write all of it into a store."""
    batch = records(now_s, hostile)
    for start in range(0, len(batch), 500):
        store.write(batch[start : start + 500])
    for alert in alerts(now_s, hostile):
        store.save_alert(alert)
    store.save_delivery(Delivery(id="d1", alert="alert-leak", channel="log:", at=now_s - 1300, ok=True))
    store.save_delivery(
        Delivery(id="d2", alert="alert-leak", channel="mailto://example.org/…", at=now_s - 1299, ok=False,
                 error=_hostile("Connection refused", 0, hostile), attempt=2)
    )  # fmt: skip
    failure = failure_id("6e1f9b3a-0000-4000-8000-000000000000", 0)
    store.add_shell(
        ShellView(id="shell-1", failure=failure, mode="live", started_at=now_s - 600, ended_at=None, users=["ada"])
    )
    lines = (("input", "trace.context_data"), ("output", "'Hello'"), ("remark", "that is what we sent"),
             ("error", "NameError: name 'x' is not defined"), ("event", "The process ended."))  # fmt: skip
    for seq, (kind, text) in enumerate(lines, 1):
        line = ShellLine(seq=seq, at=now_s - 590 + seq, user="ada", kind=kind, text=_hostile(text, seq, hostile))
        store.add_shell_line("shell-1", line)
    store.end_shell("shell-1", now_s - 500, ["ada", "bob"])


def write_profiles(folder: Path, now_s: float, hostile: bool = False) -> None:
    """A profiled run with its flamegraph, one under way and one that failed, as a worker of this host leaves them."""
    profiles = Profiles(folder)
    common = {"host": "web-1", "worker": WORKER, "pid": 101}
    name = _hostile("shop.tasks.remember_order", 1, hostile)
    profiles.write(
        Profile(id=PROFILE, name=name, at=now_s - 600, state="done", task_id="t-1", duration_s=0.8,
                peak_bytes=40 * MIB, allocations=12_345, **common)
    )  # fmt: skip
    profiles.write(Profile(id="profile2", name=name, at=now_s - 60, state="running", **common))
    why = _hostile("memray could not begin: no space left on device", 2, hostile)
    profiles.write(Profile(id="profile3", name=name, at=now_s - 6000, state="failed", why=why, **common))
    page = (
        '<!doctype html><html lang="en"><head><title>Flamegraph</title></head><body><p>A flamegraph</p></body></html>'
    )
    (profiles.folder / f"{PROFILE}.peak.html").write_text(page)
