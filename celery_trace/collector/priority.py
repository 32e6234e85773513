"""Runs the collector at low priority, with fewer garbage collections."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from pathlib import Path

#: Next to tasks that use the CPU all the time, the collector gets about a tenth of a core: enough for the records of
#: about 500 failures a second, while none at all would let the spool fill. The rest waits in the spool.
NICENESS = 10
#: New objects between two garbage collections. A batch is up to 2,000 records of a few dozen objects each, all alive
#: until it is written: with the default of 700, a third of the collector's time was spent on garbage collection.
OBJECTS = 20_000

_GROUP = Path("/proc/self/autogroup")
#: The kernel accepts one change of a group's niceness per 0.1 s, from any process, and asks others to retry.
_TRIES = 5
_AGAIN_S = 0.11


def lower_priority() -> None:
    """
    Use only the CPU time that tasks leave, and a little more, from now on, as far as the system allows.

    Niceness alone is not enough. Where Linux groups processes by session (``sched_autogroup_enabled``, the default of
    distributions), each session gets an equal share and niceness counts within it, and the collector has its own
    session. So the group's niceness is raised too. As a batch process the collector also waits for the end of a
    task's time slice when it wakes up, and never preempts it.
    """
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if os.getsid(0) == os.getpid():  # don't slow down another process's session
        _lower_autogroup_priority()


def _lower_autogroup_priority() -> None:
    for _ in range(_TRIES):
        try:
            _GROUP.write_text(str(NICENESS))
        except BlockingIOError:
            time.sleep(_AGAIN_S)
        except OSError:  # no autogroups here
            return
        else:
            return


def relax_garbage_collection() -> None:
    """Freeze imported objects, which stay, and let a whole batch pass between two collections."""
    gc.freeze()
    gc.set_threshold(OBJECTS, 10, 10)
