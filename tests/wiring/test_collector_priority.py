"""How the collector stands back for the tasks beside it: as far as this system lets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from celery_trace.collector.priority import NICENESS

GROUP = Path("/proc/self/autogroup")
GROUPED = GROUP.exists() and "nice" in GROUP.read_text()

AS_IT_IS_NOW = """
import json, os
from pathlib import Path
from celery_trace.collector.priority import lower_priority

lower_priority()
group = Path("/proc/self/autogroup")
print(json.dumps({
    "niceness": os.getpriority(os.PRIO_PROCESS, 0),
    "policy": os.sched_getscheduler(0) if hasattr(os, "SCHED_BATCH") else None,
    "group": group.read_text().rpartition(" ")[2].strip() if group.exists() else "",
}))
"""


@pytest.fixture
def standing():
    """What a process is that gave way, in a session of its own or in one that it shares."""

    def ask(*, own_session):
        words = [sys.executable, "-c", AS_IT_IS_NOW]
        if not own_session:  # a session's leader starts it: the group is a stranger's, and none of ours
            words = [sys.executable, "-c", f"import subprocess; subprocess.run({words!r}, check=True)"]
        done = subprocess.run(words, capture_output=True, check=True, start_new_session=True, timeout=60)
        return json.loads(done.stdout)

    return ask


def test_it_is_nice_and_cuts_no_task_short(standing):
    before = os.getpriority(os.PRIO_PROCESS, 0)
    now = standing(own_session=True)
    assert now["niceness"] == min(19, before + NICENESS)
    if now["policy"] is not None:
        assert now["policy"] == os.SCHED_BATCH


def test_its_session_is_nice_too_where_sessions_share_the_processor(standing):
    if not GROUPED:
        pytest.skip("this system groups no processes by session")
    assert standing(own_session=True)["group"] == str(NICENESS)


def test_a_session_that_it_shares_with_others_stays_as_it_is(standing):
    if not GROUPED:
        pytest.skip("this system groups no processes by session")
    assert standing(own_session=False)["group"] == "0"
