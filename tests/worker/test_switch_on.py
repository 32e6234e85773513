"""Each way of switching the plugin on does the same, all of them together too, and none of them does nothing."""

import subprocess
import sys

import pytest
from celery import Celery

from tests.support.processes import WorkerProcess, trace_environment

TASKS = """
from celery import Celery

app = Celery("errands")
{plugin}


@app.task
def tidy(room):
    return f"{{room}} is tidy"


@app.task
def stumble(step):
    height_cm = step * 18
    raise ValueError(f"stumbled at {{height_cm}} cm")
"""

IN_CODE = "from celery_trace import CeleryTrace\n\nCeleryTrace(app)\nCeleryTrace(app)"

WAYS = {
    "in the app's module": {"plugin": IN_CODE, "switch": False, "options": []},
    "by the environment": {"plugin": "", "switch": True, "options": []},
    "by -I": {"plugin": "", "switch": False, "options": ["-I", "celery_trace.auto"]},
    "in every way at once": {"plugin": IN_CODE, "switch": True, "options": ["-I", "celery_trace.auto"]},
}


@pytest.fixture
def project(tmp_path):
    """Write the project's one module."""
    folder = tmp_path / "project"
    folder.mkdir()

    def write(plugin=""):
        (folder / "errands.py").write_text(TASKS.format(plugin=plugin))
        return folder

    return write


@pytest.fixture
def send(own_broker_url):
    """Send a task by its name; gives its id."""
    client = Celery("sender", broker=own_broker_url, set_as_current=False)
    client.conf.task_ignore_result = True
    yield lambda name, *args: client.send_task(name, args).id
    client.close()


@pytest.mark.parametrize("way", WAYS, ids=[way.replace(" ", "-") for way in WAYS])
def test_each_run_and_each_failure_is_recorded_once(way, project, start_worker, send, records):
    chosen = WAYS[way]
    worker = start_worker("errands", project(chosen["plugin"]), switch=chosen["switch"], options=chosen["options"])
    for room in range(6):
        send("errands.tidy", room)
    stumbled = send("errands.stumble", 3)

    # Its banner names the command that shows the records.
    assert worker.output.count("[celery-trace]\n  . records go to ") == 1
    assert ". to see them: celery -A errands monitor   or: celery -A errands trace doctor\n" in worker.output
    failure = records.failure_of(stumbled, explain=worker.tail)
    records.wait(lambda _: records.runs_of("errands.tidy") >= 6, "six runs of tidy", explain=worker.tail)
    assert len(worker.children("celery_trace.collector")) == 1
    worker.stop()

    assert records.runs_of("errands.tidy") == 6
    assert records.runs_of("errands.stumble") == 1
    assert len(records.queries.failures().rows) == 1
    assert {local.name: local.value for local in failure.frames[0].locals} == {"step": "3", "height_cm": "54"}
    views = records.queries.workers().rows
    assert [view.name for view in views] == [worker.node]
    assert "child" in {process.role for process in views[0].processes}
    pids = [process.pid for process in views[0].processes]
    assert len(pids) == len(set(pids)), "a process presented itself twice"
    assert not views[0].alive


def test_without_a_switch_nothing_is_imported_and_nothing_is_written(project, start_worker, send, trace_dir):
    folder = project()
    (folder / "errands.py").write_text(
        TASKS.format(plugin="") + "\n\n@app.task\ndef imported():\n"
        "    import sys\n"
        "    from pathlib import Path\n"
        "    names = sorted(name for name in sys.modules if name.startswith('celery_trace.'))\n"
        "    Path('imported.part').write_text(' '.join(names))\n"
        "    Path('imported.part').rename('imported')\n"
    )
    worker = start_worker("errands", folder, switch=False)
    send("errands.imported")
    worker.wait_for(r"Task errands\.imported\[\S+\] succeeded")
    assert not {"celery_trace.runtime.plugin", "celery_trace.runtime.recorder"} & set(
        (folder / "imported").read_text().split()
    )
    assert not worker.children("celery_trace.collector")
    worker.stop()
    assert not trace_dir.exists()
    assert not (folder / ".celery-trace").exists()


def test_a_switch_that_says_no_leaves_the_worker_alone(project, start_worker, send, trace_dir):
    worker = start_worker("errands", project(IN_CODE), switch=False, settings={"enabled": "0"})
    send("errands.tidy", 1)
    worker.wait_for(r"Task errands\.tidy\[\S+\] succeeded")
    assert not worker.children("celery_trace.collector")
    worker.stop()
    assert not trace_dir.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"memroy": "off"}, ["CELERY_TRACE_MEMROY", "CELERY_TRACE_MEMORY"]),
        ({"memory": "sometimes"}, ["CELERY_TRACE_MEMORY", "'sometimes'", "off, rss, auto, always"]),
        ({"keep_failures": "many"}, ["CELERY_TRACE_KEEP_FAILURES", "'many'", "whole number"]),
    ],
)
def test_a_wrong_setting_ends_the_worker_with_its_name_its_value_and_what_is_allowed(
    settings, words, project, own_broker_url, trace_dir, tmp_path
):
    environment = trace_environment(broker_url=own_broker_url, trace_dir=trace_dir, settings=settings)
    with WorkerProcess("errands", cwd=project(), work=tmp_path, environment=environment) as worker:
        assert worker.wait(60) != 0
    assert "Traceback" not in worker.output, worker.tail()
    for word in words:
        assert word in worker.output, worker.tail()


def test_importing_the_package_starts_nothing(tmp_path):
    code = (
        "import sys, threading, celery_trace, celery_trace.commands\n"
        "heavy = {'sqlalchemy', 'flower', 'tornado', 'django', 'apprise', 'jedi', 'rich', 'tracemalloc'}\n"
        "heavy &= set(sys.modules)\n"
        "print(sorted(heavy), threading.active_count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "[] 1", done.stderr
    assert list(tmp_path.iterdir()) == []
