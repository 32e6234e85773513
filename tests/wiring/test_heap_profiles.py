"""Kept memory by call stack: from a sampled heap to the page, the JSON, the command and their files."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from celery_trace.clock import SystemClock
from celery_trace.heap import needs, sampling
from celery_trace.heap.watch import watch_heap
from celery_trace.model import HeapProfile, Kind, Line, Measure, ProcessRecord, Role, decode, encode
from celery_trace.queries import Queries
from celery_trace.runtime.recorder import Recorder
from celery_trace.settings import Settings
from celery_trace.stores import Store, open_store
from tests.support import heaps
from tests.support import store_records as make
from tests.support.heap_runs import AMPLE

HERE = str(Path(__file__))
numbers = count()
_kept: list[bytes] = []


def pack(size: int) -> bytes:
    return bytes(size)


def keep(size: int) -> None:
    _kept.append(pack(size))


def profiles_of(role: Role, runs: int, kept_bytes: int, needed_bytes: int = 0) -> list[HeapProfile]:
    """What a process writes at its end, after so many runs of a task that keeps something."""
    heaps.referrers()
    found: list[HeapProfile] = []
    with patch.object(sampling, "MEAN_BYTES", 128.0):
        watch = watch_heap(
            Settings(memory_budget=AMPLE),
            ProcessRecord(uid="p", host="host", pid=1, started_at_s=0.0, role=role, release="1.8.2"),
            lambda _: None,
            SystemClock(),
            emit_profile=found.append,
        )
    assert watch is not None
    name = f"shop.keep_{next(numbers)}"
    tag = watch.tag(Kind.TASK, name, (keep.__code__,))
    for _ in range(runs):
        before = watch.run(tag)
        keep(kept_bytes)
        bytes(needed_bytes)
        watch.restore(before)
    # Another thread looks, as the ticker does.
    closing = threading.Thread(target=watch.close)
    closing.start()
    closing.join()
    _kept.clear()
    return [one for one in found if one.name == name]


def test_a_process_says_at_its_end_what_its_runs_have_left_alive_and_where() -> None:
    (profile,) = profiles_of(Role.CHILD, runs=53, kept_bytes=20_000)
    assert profile.runs == 50
    assert profile.bytes == pytest.approx(50 * 20_000, rel=0.1)
    assert profile.release == "1.8.2"
    largest = profile.stacks[0]
    assert [profile.frames[place].function for place in largest.frames][-2:] == ["keep", "pack"]
    assert profile.frames[largest.frames[-1]].file == HERE
    assert profile.frames[largest.frames[-1]].code == "return bytes(size)"
    assert sum(stack.bytes for stack in profile.stacks) + profile.other_bytes == profile.bytes


def test_what_runs_hold_at_most_is_said_where_one_runs_at_a_time() -> None:
    (profile,) = profiles_of(Role.CHILD, runs=40, kept_bytes=10_000, needed_bytes=3_000_000)
    need = needs.need_of([profile.peaks])
    assert need is not None
    assert need.runs == 40
    assert 3_000_000 < need.p50_bytes < 4_300_000
    (shared,) = profiles_of(Role.THREADS, runs=40, kept_bytes=10_000, needed_bytes=3_000_000)
    assert shared.peaks == {}


def test_literal_secrets_in_the_code_of_frames_stay_in_the_process(tmp_path: Path) -> None:
    recorder = Recorder.start(Settings(dir=str(tmp_path), memory="off", black_box=False), role=Role.SCRIPT)
    try:
        frame = Line("/srv/shop/tasks.py", 7, "charge", 'client = Client(password="hunter2-hunter2")')
        recorder.write(make.heap_profile(9000, frames=[frame]))
    finally:
        recorder.close()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*.spool"))
    assert b"Client(password=" in written
    assert b"hunter2" not in written


def test_a_record_is_as_it_was_after_its_way_through_the_spool() -> None:
    record = make.heap_profile(9000, peaks={40: 3, 41: 5}, other_bytes=7)
    assert decode(encode(record)) == record


# --- readers -----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(Settings(dir=str(tmp_path / "trace")))
    yield opened
    opened.close()


def filled(store: Store) -> Queries:
    """One child under two releases; a task with a leak since the second one."""
    now_s = store.clock.now_s()
    moved = Line("/srv/shop/tasks.py", 9, "charge", "seen.append(x)")
    store.write(
        [
            make.process("old", started_at_s=now_s - 9000, ended_at_s=now_s - 7000, ended_how="exit", release="1.8.1"),
            make.process("new", started_at_s=now_s - 6900, release="1.8.2"),
            make.sample(now_s - 1, 1, process="new"),
            make.heap_profile(1000, process="old", at_s=now_s - 7100, release="1.8.1", runs=100, peaks={40: 50}),
            make.heap_profile(5000, process="new", at_s=now_s - 5000, release="1.8.2", runs=10, peaks={40: 10}),
            make.heap_profile(
                90_000, process="new", at_s=now_s - 100, release="1.8.2", runs=100, frames=[moved], peaks={44: 100}
            ),
        ]
    )
    return Queries(store)


def test_a_view_is_of_the_latest_words_or_the_difference_to_a_time_or_a_release(store: Store) -> None:
    queries = filled(store)
    plain = queries.profile_view("task", "shop.charge", Measure.MEMORY)
    assert (plain.after.total, plain.after.processes, plain.before) == (91_000, 2, None)
    hour = queries.profile_view("task", "shop.charge", Measure.MEMORY, compare="1h")
    assert hour.before is not None
    assert (hour.after.total, hour.before.total, hour.before_is) == (90_000, 5000, "1 h ago")
    release = queries.profile_view("task", "shop.charge", Measure.MEMORY, compare="release:1.8.1")
    assert release.before is not None
    assert (release.after.total, release.before.total, release.a_run) == (900.0, 10.0, True)
    assert [round(change) for change in release.stacks.values()] == [890], "lines have moved, the function is the same"
    back = queries.profile_view("task", "shop.charge", Measure.MEMORY, compare="release:1.8.2..1.8.1")
    assert [round(change) for change in back.stacks.values()] == [-890]


@pytest.mark.parametrize("compare", ["yesterday", "-1h", "release:", "1h; drop"])
def test_what_cannot_be_compared_with_is_refused_in_words(store: Store, compare: str) -> None:
    if compare == "release:":
        store.write([make.heap_profile(5, release="only")])
        with pytest.raises(ValueError, match="no other release than 'only'"):
            Queries(store).profile_view("task", "shop.charge", Measure.MEMORY, compare="release:only")
        return
    with pytest.raises(ValueError, match="invalid comparison"):
        Queries(store).profile_view("task", "shop.charge", Measure.MEMORY, compare=compare)


def test_the_need_of_a_name_is_of_all_its_processes(store: Store) -> None:
    need = filled(store).need("task", "shop.charge")
    assert need is not None
    assert (need.runs, need.p50_bytes) == (150, needs.bucket_bytes(44))


def test_limits_are_proposed_for_a_worker_by_its_largest_task(store: Store) -> None:
    now_s = store.clock.now_s()
    mib = 1024 * 1024
    store.write(
        [
            make.process("main", role=Role.MAIN, pid=1, started_at_s=now_s - 600),
            make.process("child", started_at_s=now_s - 600),
            make.sample(now_s - 590, 60 * mib, process="child"),
            make.sample(now_s - 5, 300 * mib, process="child"),
            make.sample(now_s - 5, 70 * mib, process="main"),
            make.heap_profile(0, process="child", at_s=now_s - 5, name="shop.report", peaks={60: 30, 70: 30}),
            make.heap_profile(0, process="child", at_s=now_s - 5, name="shop.seldom", peaks={90: 3}),
        ]
    )  # fmt: skip
    queries = Queries(store)
    (worker,) = queries.workers().rows
    proposal = queries.proposal(worker)
    assert proposal is not None
    need_mib = needs.bucket_bytes(70) / mib
    assert proposal.child_kib / 1024 == pytest.approx((60 + need_mib) * 1.25, abs=1)
    assert "shop.report" in proposal.how
    assert proposal.concurrency == 1


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    from tests.support.monitor_app import Client, make_monitor, serving

    with serving(lambda: make_monitor(tmp_path, roles=(), token="script-token")) as (address, application):
        filled(application.context.store)
        found = Client(address)
        found.log_in()
        yield found


def test_the_json_has_the_contracts_folded_stacks(client: Any) -> None:
    answer = client.get("/api/trace/profiles/shop.charge?kind=memory").json()
    assert answer["stacks"] == [
        [["charge (/srv/shop/tasks.py:9)"], 90_000],
        [["charge (/srv/shop/tasks.py:7)"], 1000],
    ]
    assert (answer["kind"], answer["unit"], answer["runs"]) == ("memory", "bytes", 200)
    compared = client.get("/api/trace/profiles/shop.charge?compare=release:1.8.1").json()
    assert compared["unit"] == "bytes a run"
    assert compared["stacks"] == [[["charge (/srv/shop/tasks.py)"], 890]]


def test_files_for_other_tools_are_sent_as_such(client: Any) -> None:
    address = "/api/trace/profiles/shop.charge?kind=memory&format="
    assert client.get(f"{address}collapsed").text.splitlines()[0] == "charge (/srv/shop/tasks.py:9) 90000"
    assert json.loads(client.get(f"{address}speedscope").text)["exporter"] == "celery-trace"
    pprof = client.get(f"{address}pprof")
    assert "attachment" in pprof.headers["Content-Disposition"]


@pytest.mark.parametrize("query", ["kind=heat", "format=svg", "of=thing", "compare=nonsense"])
def test_a_wrong_parameter_is_refused_with_what_is_allowed(client: Any, query: str) -> None:
    answer = client.get(f"/api/trace/profiles/shop.charge?{query}")
    assert answer.status == 400
    assert answer.json()["error"]["why"]


def test_the_pages_show_the_graph_its_difference_and_where_there_is_none(client: Any) -> None:
    assert 'id="flame-data"' in client.get("/trace/flame/task/shop.charge").text
    difference = client.get("/trace/flame/task/shop.charge?compare=release:1.8.1").text
    assert "retains more than with release 1.8.1" in difference
    assert "No retained memory" in client.get("/trace/flame/task/shop.nothing").text
    refused = client.get("/trace/flame/task/shop.charge?compare=nonsense")
    assert refused.status == 404
    assert "Nothing to compare with." in refused.text


def test_a_pprof_file_from_the_command_needs_a_place(tmp_path: Path) -> None:
    from celery import Celery
    from celery.bin.base import CLIContext
    from click.testing import CliRunner

    from celery_trace.commands import trace

    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update({"trace_dir": str(tmp_path / "trace")})
    store = open_store(Settings(dir=str(tmp_path / "trace")))
    filled(store)
    store.close()

    def run(*words: str) -> Any:
        context = CLIContext(app=app, no_color=True, workdir=None)
        return CliRunner().invoke(trace, ["flame", "shop.charge", "--measure", "memory", *words], obj=context)

    table = run().stdout
    assert "shop.charge retains 88.9 KiB in 2 processes, sampled over 200 runs" in table
    assert "/srv/shop/tasks.py:9 in charge" in table
    assert "890 B" not in table
    compared = run("--compare", "release:1.8.1").stdout
    assert "retains 900 B per run with release 1.8.2, 10 B per run with release 1.8.1" in compared
    assert json.loads(run("--format", "json").stdout)["need"]["runs"] == 150
    assert run("--format", "collapsed").stdout.startswith("charge (/srv/shop/tasks.py:9) 90000\n")
    assert json.loads(run("--format", "speedscope").stdout)["profiles"][0]["endValue"] == 91_000
    refused = run("--format", "pprof")
    assert refused.exit_code == 1
    assert "add --output FILE" in refused.output
    written = run("--format", "pprof", "--output", str(tmp_path / "kept.pb.gz"))
    assert written.exit_code == 0, written.output
    assert gzip.decompress((tmp_path / "kept.pb.gz").read_bytes())
    assert (tmp_path / "kept.pb.gz").stat().st_mode & 0o777 == 0o600
    bad = run("--compare", "whenever")
    assert bad.exit_code == 1
    assert "invalid comparison" in bad.output
