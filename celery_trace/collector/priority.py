"""How the collector stands back for the tasks beside it, and what its heap does not cost them."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from pathlib import Path

#: Beside tasks that want the processor all the time, the collector gets about a tenth of a core: enough for the records
#: of some five hundred failures a second, where none at all would let the spool fill. What is more waits in the spool.
NICENESS = 10
#: New objects between two looks for garbage. A batch is up to two thousand records of a few dozen objects each, which
#: all live until it is written: at the interpreter's 700, a third of the collector's time went into looking at them.
OBJECTS = 20_000

_GROUP = Path("/proc/self/autogroup")
#: The kernel takes one group's niceness each tenth of a second, from whomever, and tells the others to come again.
_TRIES = 5
_AGAIN_S = 0.11


def lower_priority() -> None:
    """
    Take only what tasks leave of the processor, and a little: from now on, as far as the system lets us.

    Niceness alone does not do it. Where Linux groups processes by session (``sched_autogroup_enabled``, the default of
    the distributions), each session gets an equal share and niceness counts within it; and a collector has a session
    of its own. So the group is made nice as well. As a batch process the collector moreover waits for the end of a
    task's slice when it wakes up, and never cuts it short.
    """
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if os.getsid(0) == os.getpid():  # another's session is not ours to slow down
        _lower_autogroup_priority()


def _lower_autogroup_priority() -> None:
    for _ in range(_TRIES):
        try:
            _GROUP.write_text(str(NICENESS))
        except BlockingIOError:
            time.sleep(_AGAIN_S)
        except OSError:  # no groups here
            return
        else:
            return


def relax_garbage_collection() -> None:
    """Set aside what was imported, which stays, and let a whole batch come and go between two looks."""
    gc.freeze()
    gc.set_threshold(OBJECTS, 10, 10)
