"""The guard that proves that no test leaves something behind."""

import gc
import subprocess
import sys
import threading
import tracemalloc

from tests.support import heaps
from tests.support.leftovers import Census


def test_a_running_tracemalloc_is_found_and_stopped():
    before = Census()
    tracemalloc.start()
    assert before.left_behind(grace_s=0) == ["tracemalloc still traces"]
    assert not tracemalloc.is_tracing()


def test_a_heap_that_is_still_sampled_is_found_and_left_alone_from_then_on():
    sampler = heaps.sampler()
    before = Census()
    sampler.start(1e6)
    gc.callbacks.append(sampler.note_collection)
    assert before.left_behind(grace_s=0) == [
        "the heap is still sampled",
        "the collector still calls the heap's sampler",
    ]
    assert not sampler.is_on()
    assert before.left_behind(grace_s=0) == []


def test_a_thread_of_ours_is_found_and_one_of_others_is_not():
    before = Census()
    release = threading.Event()
    threads = [threading.Thread(target=release.wait, name=name) for name in ("celery-trace ticker", "theirs")]
    for thread in threads:
        thread.start()
    try:
        assert before.left_behind(grace_s=0) == ["the thread 'celery-trace ticker' still runs"]
    finally:
        release.set()
        for thread in threads:
            thread.join()
    assert before.left_behind(grace_s=0) == []


def test_a_process_is_found_and_ended():
    before = Census()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    faults = before.left_behind(grace_s=0)
    assert len(faults) == 1
    assert str(child.pid) in faults[0]
    assert child.wait(10) != 0


def test_an_orphan_is_found_by_its_mark():
    before = Census(thorough=True)
    parent = subprocess.run(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; "
            "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
            "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    faults = before.left_behind(grace_s=0)
    assert len(faults) == 1
    assert parent.stdout.strip() in faults[0]


def test_a_receiver_of_ours_is_found():
    from celery import signals

    def receiver(**_):
        """Stands for one of the plugin's."""

    receiver.__module__ = "celery_trace.runtime.plugin"
    before = Census()
    signals.task_prerun.connect(receiver, weak=False, dispatch_uid="a test's")
    try:
        faults = before.left_behind(grace_s=0)
    finally:
        signals.task_prerun.disconnect(receiver, dispatch_uid="a test's")
    assert len(faults) == 1
    assert faults[0].startswith("the receiver task_prerun -> celery_trace.runtime.plugin.")
    assert before.left_behind(grace_s=0) == []
