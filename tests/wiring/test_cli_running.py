"""``celery trace running`` and ``top``."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_trace.commands import trace
from celery_trace.model import Line, ProcessRecord, Role
from celery_trace.settings import Settings
from celery_trace.stores import Store, open_store
from tests.support import store_records as make
from tests.support.processes import REPOSITORY, trace_environment
from tests.unit.test_running_requests import TracedProcess

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture
def run(folder: Path) -> Run:
    def run_it(*words: str) -> Result:
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.update({"trace_dir": str(folder)})
        context = CLIContext(app=app, no_color=True, workdir=None)
        return CliRunner().invoke(trace, list(words), obj=context, auto_envvar_prefix="CELERY_TRACE")

    return run_it


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    opened = open_store(Settings(dir=str(folder)))
    now_s = time.time()
    stuck = make.running_run(
        "stuck-1", started_at_s=now_s - 600, unmoved_since_s=now_s - 600, sampled_at_s=now_s, queue="orders",
        rss_bytes=5 * 2**20, waiting_for="a lock",
    )  # fmt: skip
    fresh = make.running_run(
        "fresh-1", name="shop.refund", started_at_s=now_s - 2, sampled_at_s=now_s, unmoved_since_s=now_s, retries=2,
        stack=[Line("/srv/shop/tasks.py", 9, "refund", "send()")], worker="w2@h2",
    )  # fmt: skip
    opened.write([make.snapshot(stuck, fresh, at_s=now_s)])
    yield opened
    opened.close()


@pytest.mark.parametrize("name", ["running", "top"])
def test_what_runs_is_a_table_with_stuck_runs_first(run: Run, store: Store, name: str) -> None:
    answer = run(name)
    assert answer.exit_code == 0, answer.output
    head, _, stuck, fresh = answer.output.splitlines()
    assert head.split()[:3] == ["TASK", "STATE", "FOR"]
    assert stuck.split()[:4] == ["shop.charge", "stuck", "10", "min"]
    for word in ("a lock", "tasks.py:7", "orders", "5.0 MiB", "stuck-1", "w1@h1"):
        assert word in stuck
    assert fresh.split()[:2] == ["shop.refund", "running"]
    assert "w2@h2" in fresh


def test_as_json_it_is_the_list_of_the_api(run: Run, store: Store) -> None:
    answer = json.loads(run("running", "--format", "json").output)
    assert answer["next"] is None
    assert [(row["task_id"], row["stuck"]) for row in answer["running"]] == [("stuck-1", True), ("fresh-1", False)]
    only = json.loads(run("running", "--name", "shop.refund", "--format", "json").output)
    assert [row["task_id"] for row in only["running"]] == ["fresh-1"]
    assert json.loads(run("top", "--worker", "w1@h1", "--format", "json").output)["running"][0]["task_id"] == "stuck-1"


def test_without_a_run_it_says_so(run: Run, store: Store) -> None:
    store.write([make.snapshot(at_s=time.time() + 1)])
    assert run("running").output == "Nothing is running.\n"


def test_a_stack_is_read_from_the_process_with_locals(run: Run, store: Store, folder: Path) -> None:
    spool = Settings(dir=str(folder)).spool_folder
    spool.mkdir(parents=True, exist_ok=True)
    with TracedProcess(spool) as process:
        uid = process.answers._process
        store.write(
            [
                ProcessRecord(uid=uid, host="h1", pid=os.getpid(), started_at_s=time.time(), role=Role.CHILD),
                make.snapshot(
                    make.running_run("id-1", process=uid, started_at_s=time.time()), at_s=time.time(), place="h1:1"
                ),
            ]
        )
        answer = run("running", "--stack", "id-1")
        rows: dict[str, Any] = json.loads(run("running", "--stack", "id-1", "--format", "json").output)
    assert answer.exit_code == 0, answer.output
    assert "> self.over.wait(30)" in answer.output
    assert "order = 4711" in answer.output
    assert "password = (redacted)" in answer.output
    assert "hunter2" not in answer.output
    assert rows["stack_by"] == "process"
    assert any(local["name"] == "order" for line in rows["stack"] for local in line["locals"])


def test_a_task_that_does_not_run_is_refused(run: Run, store: Store) -> None:
    answer = run("running", "--stack", "nothing")
    assert answer.exit_code == 1
    assert "No task with the id nothing is running." in answer.output


def test_a_host_that_takes_no_requests_is_said_with_what_to_do(run: Run, store: Store) -> None:
    answer = run("running", "--stack", "stuck-1")
    assert answer.exit_code == 1
    assert "the collector of h1 takes no requests" in answer.output
    assert "celery -A shop trace running --stack ID" in answer.output


def test_top_draws_on_a_terminal_until_q(store: Store, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shop_top.py").write_text("from celery import Celery\napp = Celery('shop', broker='memory://')\n")
    environment = trace_environment(broker_url="memory://", trace_dir=folder, switch=False, settings=None)
    environment |= {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}", "TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "shop_top", "trace", "top"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    drawn = b""
    try:
        while b"q quits" not in drawn or b"shop.charge" not in drawn:
            drawn += os.read(ours, 65536)
        os.write(ours, b"q")
        assert program.wait(20) == 0
    finally:
        program.kill()
        program.wait()
        os.close(ours)
    assert b"2 runs in progress, 1 stuck" in drawn
