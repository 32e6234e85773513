"""``celery trace timeline``: a workflow in the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_trace.cli.renderers.timeline import drawn
from celery_trace.commands import trace
from celery_trace.model import (
    Chord,
    ExceptionInfo,
    Failure,
    Kind,
    MemoryState,
    Outcome,
    ProcessRecord,
    Role,
    Run,
    TaskContext,
)
from celery_trace.settings import Settings
from celery_trace.stores import open_store
from celery_trace.timeline import Bar

ROOT, CHILD = "a0000000-0000-4000-8000-000000000000", "b0000000-0000-4000-8000-000000000000"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    folder = tmp_path / "trace"
    now_s = time.time()
    store = open_store(Settings(dir=str(folder)))
    store.write(
        [
            ProcessRecord(uid="p", host="h", pid=1, started_at_s=now_s - 90, role=Role.CHILD, worker="w@h"),
            Run(
                id="run", process="p", kind=Kind.TASK, name="shop.start", task_id=ROOT, root_id=ROOT,
                started_at_s=now_s - 40, duration_s=20.0, state="SUCCESS", memory=MemoryState(rss_bytes=2**26),
            ),
            Failure(
                id="fails", process="p", kind=Kind.TASK, name="shop.\x1b[31mpay", task_id=CHILD, worker="w@h", pid=1,
                outcome=Outcome.FAILED, at_s=now_s - 10, duration_s=10.0, fingerprint="f",
                exception=ExceptionInfo("ValueError", "builtins", "no"),
                task=TaskContext(root_id=ROOT, parent_id=ROOT),
            ),
            Chord(group="g", at_s=now_s, root_id=ROOT, unlock="u", body="shop.total", members=[CHILD], complete=True),
        ]
    )  # fmt: skip
    store.close()

    def run_it(*words: str) -> Result:
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.update({"trace_dir": str(folder)})
        context = CLIContext(app=app, no_color=True, workdir=None)
        return CliRunner().invoke(trace, list(words), obj=context, auto_envvar_prefix="CELERY_TRACE")

    return run_it


def test_a_workflow_is_drawn_with_each_task_below_its_parent(run: Callable[..., Result]) -> None:
    result = run("timeline", CHILD)
    assert result.exit_code == 0, result.output
    start, pay = [line for line in result.output.splitlines() if line.strip().startswith("shop.")][:2]
    assert start.split()[:2] == ["shop.start", "succeeded"]
    assert "20 s" in start
    assert "64.0 MiB" in start
    assert pay.startswith("  shop.")
    assert "\x1b" not in result.output
    assert start.count("█") > pay.count("▓") > 0
    assert start.index("█") < pay.index("▓")
    assert "shop.total will not run, as a member has not succeeded:" in result.output


def test_both_ways_to_ask_for_json_give_the_monitors_objects(run: Callable[..., Result]) -> None:
    found = json.loads(run("timeline", ROOT, "--json").output)
    assert [row["id"] for row in found["rows"]] == [ROOT, CHILD]
    assert found["rows"][0]["rss_bytes"] == 2**26
    assert found["chords"][0]["blocked"] is True
    assert [row["id"] for row in json.loads(run("timeline", ROOT, "--format", "json").output)["rows"]] == [ROOT, CHILD]


def test_an_unknown_id_is_refused_with_what_to_do(run: Callable[..., Result]) -> None:
    result = run("timeline", "nothing")
    assert result.exit_code == 1
    assert "celery trace diagnose" in result.output


@pytest.mark.parametrize(
    ("bars", "line"),
    [
        ([Bar("waiting", 0.0, 0.5), Bar("running", 0.5, 1.0)], "·····█████"),
        ([Bar("running", 0.99, 1.0)], "         █"),
        ([Bar("retried", 0.0, 0.1), Bar("failed", 0.2, 0.2)], "▒ ▓"),
        ([Bar("running", -1.0, 2.0)], "██████████"),
        ([], ""),
    ],
)
def test_bars_have_their_place_and_one_column_at_least(bars: list[Bar], line: str) -> None:
    assert drawn(bars, 10) == line
