"""``make demo CHECK=1`` shows every part of the main job on real processes, and leaves nothing behind."""

import re
import signal

import psutil

from tests.support.demo import Demo
from tests.support.leftovers import MARK
from tests.support.waiting import wait_until

FACTS = ("failure", "shell", "request", "killed", "leak", "alert")


def test_the_check_sees_every_fact_and_says_what_it_saw(tmp_path):
    with Demo("--check", work=tmp_path) as demo:
        status = demo.wait(180)
    said = demo.output
    assert status == 0, said
    lines = {match[1]: match[0] for match in re.finditer(r"^ok +(\w+) .*$", said, re.MULTILINE)}
    assert set(lines) == set(FACTS), said
    assert re.search(r"shop\.tasks\.remember_order keeps .* a run at shop/tasks\.py:\d+", lines["leak"])
    assert "context_data='Hello', a=5, c=6, d=10" in lines["failure"]
    assert "context_data='Hello', a=5, c=6, d=10" in lines["request"]
    assert ">>> trace.context_data  'Hello'" in lines["shell"]
    assert said.rstrip().endswith("Everything has stopped; nothing was left behind.")
    assert list(demo.folders.iterdir()) == []


def test_ctrl_c_during_the_start_leaves_nothing_behind(tmp_path):
    with Demo(work=tmp_path) as demo:
        demo.wait_for(r"Starting the worker")
        wait_until(lambda: demo.children("celery"), "the demo has started a process of Celery's")
        family = demo.family()
        demo.send(signal.SIGINT)
        demo.wait(60)
    assert "Traceback" not in demo.output
    assert demo.output.rstrip().endswith("Everything has stopped; nothing was left behind.")
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert list(demo.folders.iterdir()) == []


def test_a_process_that_dies_ends_the_demo_with_its_last_words(tmp_path):
    with Demo("--check", work=tmp_path) as demo:
        demo.wait_for(r"Started after", timeout_s=120)
        monitor = next(process for process in demo.children(" monitor ") if process.environ().get(MARK))
        monitor.kill()
        assert demo.wait(90) == 1
    assert re.search(r"^FAILED  the monitor ended with status -9; the end of the monitor's log:", demo.output, re.M)
