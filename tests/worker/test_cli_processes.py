"""The commands as a user gives them: real processes, a real worker and broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.support.processes import Program, clean_environment, trace_environment
from tests.support.records import Records
from tests.support.waiting import wait_until

TASKS = """
from celery import Celery

app = Celery("errands")


@app.task
def stumble(step, password="hunter2-hunter2"):
    context_data = "Hello"
    return step / 0
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "errands.py").write_text(TASKS)
    return folder


def celery(*words: str, cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "errands", *words],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_what_a_worker_recorded_is_there_for_every_command(
    project: Path, start_worker: Any, records: Records, trace_dir: Path, own_broker_url: str
) -> None:
    start_worker("errands", project)
    client = Celery("sender", broker=own_broker_url, set_as_current=False)
    client.conf.task_ignore_result = True
    task_id = client.send_task("errands.stumble", [7]).id
    client.close()
    id = records.failure_of(task_id).id
    environment = trace_environment(broker_url=own_broker_url, trace_dir=trace_dir, switch=False, settings=None)

    listed = celery("trace", "failures", "--format", "json", cwd=project, environment=environment)
    assert listed.returncode == 0, listed.stderr
    (failure,) = json.loads(listed.stdout)["failures"]
    assert (failure["id"], failure["task_id"], failure["exception"]["type"]) == (id, task_id, "ZeroDivisionError")

    shown = celery("trace", "show", id, cwd=project, environment=environment)
    assert shown.returncode == 0, shown.stderr
    assert "context_data = 'Hello'" in shown.stdout
    assert "hunter2" not in shown.stdout
    assert "\x1b" not in shown.stdout  # no terminal, no colour

    typed = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "errands", "trace", "shell", id, "--recreated"],
        input="trace.frames[0].locals['context_data']\n", cwd=project, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert typed.returncode == 0, typed.stderr
    assert "'Hello'" in typed.stdout
    assert "hunter2" not in typed.stdout
    (transcript,) = records.queries.shells().rows
    assert (transcript.failure, transcript.mode) == (id, "recreated")

    workers = celery("trace", "workers", "--format", "json", cwd=project, environment=environment)
    assert [worker["alive"] for worker in json.loads(workers.stdout)["workers"]] == [True]

    examined = celery("trace", "doctor", "--format", "json", cwd=project, environment=environment)
    assert examined.returncode == 0, examined.stdout
    levels = {finding["check"]: finding["level"] for finding in json.loads(examined.stdout)["findings"]}
    assert {levels[check] for check in ("store", "broker", "collector", "trace_dir", "python")} == {"ok"}

    fired = celery("trace", "alerts", "--evaluate", "--format", "json", cwd=project, environment=environment)
    assert {alert["rule"] for alert in json.loads(fired.stdout)["alerts"]} == {"new_failure"}


def test_the_collector_runs_in_the_foreground_until_it_is_told_to_end(
    project: Path, tmp_path: Path, trace_dir: Path, own_broker_url: str
) -> None:
    environment = trace_environment(broker_url=own_broker_url, trace_dir=trace_dir, switch=False, settings=None)
    words = [sys.executable, "-m", "celery", "-A", "errands", "trace", "collect"]
    program = Program(words, cwd=project, log=tmp_path / "collect.log", environment=environment)
    with program:
        wait_until(lambda: (trace_dir / "collector.json").exists(), "the collector's status")
        second = celery("trace", "collect", cwd=project, environment=environment)
        assert second.returncode == 1
        assert "Another collector already serves" in second.stderr
        process = program._process
        assert process is not None
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0
    assert "records were delivered" in (tmp_path / "collect.log").read_text()


def test_a_wrong_setting_ends_the_worker_at_its_start_with_the_reason(
    project: Path, trace_dir: Path, own_broker_url: str
) -> None:
    environment = trace_environment(broker_url=own_broker_url, trace_dir=trace_dir, switch=True, settings=None)
    environment["CELERY_TRACE_MEMROY"] = "auto"
    started = celery("worker", "-P", "solo", cwd=project, environment=environment)
    assert started.returncode != 0
    assert "Unknown setting CELERY_TRACE_MEMROY. Did you mean CELERY_TRACE_MEMORY?" in started.stderr
    assert "Traceback" not in started.stderr
    assert not trace_dir.exists()


def test_a_down_pipe_is_no_error(project: Path, trace_dir: Path, records: Records, own_broker_url: str) -> None:
    environment = trace_environment(broker_url=own_broker_url, trace_dir=trace_dir, switch=False, settings=None)
    piped = subprocess.run(
        f"{sys.executable} -m celery -A errands trace failures | true",
        shell=True, cwd=project, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert piped.returncode == 0
    assert piped.stderr == ""


CHEAP = """
import sys
before = set(sys.modules)
import celery_trace.commands
ours = sorted(name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names)
print(",".join(ours))
"""


def test_registering_the_commands_imports_nothing_but_click() -> None:
    for switch in (None, "1"):
        done = subprocess.run(
            [sys.executable, "-c", "import celery.bin.celery, celery.signals\n" + CHEAP],
            env=clean_environment({"CELERY_TRACE": switch}), capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        added = set(done.stdout.strip().split(",")) - {""}
        assert added <= {"celery_trace", "celery_trace.commands"}


def test_registering_the_commands_takes_no_time_worth_mentioning() -> None:
    code = (
        "import time, click, celery; t = time.perf_counter(); "
        "import celery_trace.commands; print(time.perf_counter() - t)"
    )
    took_s = min(
        float(
            subprocess.run(
                [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(3)
    )
    assert took_s < 0.05, f"{took_s * 1000:.1f} ms"


def test_without_flower_the_monitor_says_what_to_install(project: Path, trace_dir: Path, own_broker_url: str) -> None:
    environment = trace_environment(broker_url=own_broker_url, trace_dir=trace_dir, switch=False, settings=None)
    # A finder that denies Flower, as if it had not been installed; its own entry point is skipped by Celery's loader.
    (project / "sitecustomize.py").write_text(
        "import sys\n\n\nclass NoFlower:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'flower':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n\n\n"
        "sys.meta_path.insert(0, NoFlower())\n"
    )
    environment["PYTHONPATH"] = str(project)
    started = time.monotonic()
    refused = celery("monitor", "--port=0", cwd=project, environment=environment)
    assert refused.returncode == 1, refused.stdout
    assert 'pip install "celery-trace[monitor]"' in refused.stderr
    assert "Traceback" not in refused.stderr.split("Error:")[-1]
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("CELERY_TRACE_ALERT_RULES", '[{"rule": "leek"}]', "unknown rule 'leek'. Did you mean 'leak'?"),
        ("CELERY_TRACE_ALERT_CHANNELS", "https://hooks.shop.test/s3cr3t", "Write webhook+https://…"),
        ("CELERY_TRACE_RETENTION_DAYS", "two weeks", "CELERY_TRACE_RETENTION_DAYS is 'two weeks', but it must be"),
    ],
)
def test_the_monitor_refuses_a_wrong_setting_at_its_start(
    project: Path, trace_dir: Path, own_broker_url: str, name: str, value: str, says: str
) -> None:
    environment = trace_environment(broker_url=own_broker_url, trace_dir=trace_dir, switch=False, settings=None)
    refused = celery("monitor", "--port=0", cwd=project, environment=environment | {name: value})
    assert refused.returncode == 1
    assert says in refused.stderr
    assert "s3cr3t" not in refused.stderr
    assert "Traceback" not in refused.stderr
