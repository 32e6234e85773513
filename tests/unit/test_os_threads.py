"""Locks that a real thread shares with greenlets."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

_SHARED = """
{patch}
import time
from celery_trace import os_threads
from celery_trace.clock import SystemClock
from celery_trace.runtime.flow import MessageFlow

began = []

class Awake:
    asleep = False

def write(record):
    began.append(record)
    held = os_threads.lock()
    held.acquire()
    held.acquire(timeout=0.3)

flow = MessageFlow("process", write, SystemClock(), Awake())
flow.published("queue", "task")
os_threads.start(flow.flush, "ticker")
while not began:
    pass
flow.published("queue", "task")
print("published")
"""


@pytest.mark.parametrize(
    "patch", ["import eventlet; eventlet.monkey_patch()", "from gevent import monkey; monkey.patch_all()"]
)
def test_a_greenlet_goes_on_when_a_real_thread_has_released_a_lock(patch: str) -> None:
    if find_spec("eventlet" if "eventlet" in patch else "gevent") is None:  # not imported: eventlet's hooks would stay
        pytest.skip("the library is not installed")
    code = _SHARED.replace("{patch}", patch)
    try:
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, timeout=30
        )
    except subprocess.TimeoutExpired:
        pytest.fail("it waits for ever")
    assert ran.stdout == "published\n", ran.stderr
