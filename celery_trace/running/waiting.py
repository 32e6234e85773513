"""What a run waits for, in words."""

from __future__ import annotations

from celery_trace.model import RunningRun


def waiting_for(run: RunningRun, *, now_s: float) -> str:
    """
    What a run waits for, such as ``a lock``; empty if it works, or if that can't be seen.

    Called in the collector for runs that have lasted for a while, with their newest stack.

    Args:
        run: The run.
        now_s: The time, seconds since the epoch.
    """
    del run, now_s
    return ""
