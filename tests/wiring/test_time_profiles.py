"""Where the time of runs goes: from a sampled process to the page, the JSON, the command and their files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_trace.cli.renderers.flames import flame as flame_text
from celery_trace.cli.renderers.style import Style
from celery_trace.model import Kind, Line, Measure, Role, TimeProfile, TimeStack, decode, encode
from celery_trace.profiles import files
from celery_trace.queries import Queries
from celery_trace.runtime.recorder import Recorder
from celery_trace.settings import Settings
from celery_trace.stores import Store, open_store
from tests.support import store_records as make

ALL = [Measure.WALL, Measure.CPU, Measure.LOCK]
TASK = Line("/srv/shop/tasks.py", 7, "charge", "total = compute(order)")
SLEEP = Line("/srv/shop/bank.py", 3, "ask", "time.sleep(1)")


def stacks(compute_s: float, ask_s: float) -> dict[str, Any]:
    """The fields of a profile with two stacks: one that computes, and one that waits."""
    compute_us, ask_us = round(compute_s * 1e6), round(ask_s * 1e6)
    return {
        "wall_us": compute_us + ask_us,
        "cpu_us": compute_us,
        "measures": ALL,
        "frames": [TASK, SLEEP],
        "stacks": [TimeStack([0], compute_us, compute_us), TimeStack([0, 1], ask_us)],
    }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(Settings(dir=str(tmp_path / "trace")))
    yield opened
    opened.close()


def filled(store: Store) -> Queries:
    """A day ago a run took 2 s under an earlier release; now 1 s of computing is 4 s, with another line."""
    now_s = store.clock.now_s()
    moved = Line(TASK.file, 12, TASK.function, TASK.code)

    def profile(at_s: float, runs: int, compute_s: float, ask_s: float, **fields: Any) -> TimeProfile:
        values = stacks(compute_s * runs, ask_s * runs) | fields
        return make.time_profile(0.0, began_s=at_s - 300, at_s=at_s, runs=runs, **values)

    store.write(
        [
            make.process("p1", started_at_s=now_s - 200_000),
            make.rollup(1, 20, bucket_s=int(now_s) // 300 * 300),
            profile(now_s - 95_000, 10, 1.0, 1.0, release="1.8.1"),
            profile(now_s - 60, 20, 4.0, 1.0, release="1.8.2", frames=[moved, SLEEP]),
            profile(now_s - 30, 20, 4.0, 1.0, release="1.8.2", frames=[moved, SLEEP], process="p2"),
        ]
    )
    return Queries(store)


def test_a_view_is_the_sum_of_all_records_or_a_difference_per_run(store: Store) -> None:
    queries = filled(store)
    plain = queries.profile_view("task", "shop.charge", Measure.WALL)
    assert (plain.after.total, plain.after.runs, plain.after.processes) == (220e6, 50, 2)
    assert (plain.measures, plain.a_run) == (ALL, False)
    cpu = queries.profile_view("task", "shop.charge", Measure.CPU, since_s=store.clock.now_s() - 3600)
    assert (cpu.after.total, list(cpu.after.stacks.values())) == (160e6, [160e6])
    day = queries.profile_view("task", "shop.charge", Measure.WALL, compare="1d")
    assert day.before is not None
    assert (day.after.total, day.before.total, day.a_run, day.before_is) == (5e6, 0.0, True, "1 d ago")
    release = queries.profile_view("task", "shop.charge", Measure.WALL, compare="release:1.8.1")
    assert release.before is not None
    assert (release.after.total, release.before.total) == (5e6, 2e6)
    assert list(release.stacks.values()) == [3e6], "the line has moved, the function is the same; waiting is unchanged"


def test_two_times_are_compared_by_the_hour_before_each(store: Store) -> None:
    queries = filled(store)
    now_s = store.clock.now_s()
    hour = make.time_profile(
        0.0, began_s=now_s - 90_500, at_s=now_s - 88_000, runs=5, process="p3", **stacks(10.0, 5.0)
    )
    store.write([hour])
    view = queries.profile_view("task", "shop.charge", Measure.WALL, compare="1d")
    assert view.before is not None
    assert view.before.total == 3e6, "15 s in 5 runs; the profile of 25 hours ago is not part of that hour"


def test_a_sum_of_the_latest_records_says_that_there_are_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = filled(store)
    assert not queries.profile_view("task", "shop.charge", Measure.WALL).after.cut
    monkeypatch.setattr("celery_trace.queries.profiles.MOST_TIMES", 2)
    view = queries.profile_view("task", "shop.charge", Measure.WALL)
    assert (view.after.cut, view.after.runs) == (True, 40)
    style = Style(now_s=store.clock.now_s())
    assert "sampled over 40 runs, the latest of more" in flame_text("shop.charge", view, None, style)


def test_a_profile_is_as_it_was_after_its_way_and_keeps_no_secret_of_the_source(tmp_path: Path) -> None:
    frame = Line("/srv/shop/tasks.py", 7, "charge", 'client = Client(password="hunter2-hunter2")')
    record = make.time_profile(3.0, frames=[frame], release="1")
    assert decode(encode(record)) == record
    recorder = Recorder.start(Settings(dir=str(tmp_path), memory="off", black_box=False), role=Role.SCRIPT)
    try:
        recorder.write(record)
    finally:
        recorder.close()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*.spool"))
    assert b"Client(password=" in written
    assert b"hunter2" not in written


# --- the monitor and the command ----------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    from tests.support.monitor_app import Client, make_monitor, serving

    with serving(lambda: make_monitor(tmp_path, roles=(), token="script-token")) as (address, application):
        filled(application.context.store)
        found = Client(address)
        found.log_in()
        yield found


def test_the_json_has_the_contracts_folded_stacks(client: Any) -> None:
    answer = client.get("/api/trace/profiles/shop.charge?kind=wall").json()
    assert answer["stacks"][0] == [["charge (/srv/shop/tasks.py:12)"], 160_000_000]
    assert (answer["kind"], answer["unit"], answer["total"], answer["runs"]) == (
        "wall",
        "microseconds",
        220_000_000,
        50,
    )
    assert answer["kinds"] == ["wall", "cpu", "lock"]
    cpu = client.get("/api/trace/profiles/shop.charge?kind=cpu").json()
    assert [len(stack) for stack, _ in cpu["stacks"]] == [1, 1], "what waits uses no processor"
    compared = client.get("/api/trace/profiles/shop.charge?kind=wall&compare=release:1.8.1").json()
    assert compared["unit"] == "microseconds a run"
    assert compared["stacks"] == [[["charge (/srv/shop/tasks.py)"], 3_000_000]]
    assert compared["compared"]["total"] == 2_000_000


@pytest.mark.parametrize(("shape", "ending"), files.ENDINGS.items())
def test_files_for_other_tools_have_their_measure_in_their_name(client: Any, shape: str, ending: str) -> None:
    answer = client.get(f"/api/trace/profiles/shop.charge?kind=cpu&format={shape}")
    assert answer.status == 200
    assert f'filename="cpu-time.{ending}"' in answer.headers["Content-Disposition"]


def test_the_pages_switch_between_the_measures_with_data(client: Any) -> None:
    wall = client.get("/trace/flame/task/shop.charge?range=all").text
    assert "Wall time by call stack" in wall, "there is no memory to show first"
    assert 'data-value="lock"' in wall
    assert 'data-value="memory"' not in wall
    cpu = client.get("/trace/flame/task/shop.charge?measure=cpu").text
    assert "CPU time by call stack" in cpu
    assert '"isTime":true' in cpu
    difference = client.get("/trace/flame/task/shop.charge?measure=wall&compare=release:1.8.1").text
    assert "takes more than with release 1.8.1" in difference
    nothing = client.get("/trace/flame/task/shop.charge?measure=memory").text
    assert "No retained memory" in nothing
    assert 'data-value="wall"' in nothing, "the way back"
    assert "Wall time by call stack" in client.get("/trace/runs/task/shop.charge").text
    chosen = client.get("/trace/runs/task/shop.charge?measure=cpu").text
    assert "CPU time by call stack" in chosen
    assert "/trace/flame/task/shop.charge?measure=cpu" in chosen
    assert client.get("/trace/runs/task/shop.charge?measure=heat").status == 200


def test_the_command_shows_lines_with_their_time(tmp_path: Path) -> None:
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
        return CliRunner().invoke(trace, ["flame", "shop.charge", *words], obj=context)

    table = run().stdout
    assert "shop.charge takes 3 min 40 s of wall time in 2 processes, sampled over 50 runs" in table
    assert "/srv/shop/tasks.py:12 in charge" in table
    assert "1 min" not in run("--measure", "lock").stdout
    compared = run("--measure", "cpu", "--compare", "release:1.8.1").stdout
    assert "takes 4 s of CPU time per run with release 1.8.2, 1 s per run with release 1.8.1" in compared
    assert json.loads(run("--format", "firefox").stdout)["meta"]["product"] == "celery-trace"
    assert json.loads(run("--measure", "cpu", "--format", "json").stdout)["need"] is None


def test_a_request_has_a_profile_too(store: Store) -> None:
    store.write([make.time_profile(2.0, kind=Kind.REQUEST, name="GET /orders")])
    assert Queries(store).profile_view("request", "GET /orders", Measure.WALL).after.total == 2e6
    assert Queries(store).profile_measures("task", "GET /orders") == []
