"""What a sampler of the heap hands out, whichever it is."""

from __future__ import annotations

from typing import Final, NamedTuple

from celery_trace.errors import TraceError

#: Allocations of a thread with this tag are not sampled.
IGNORED: Final = 0xFFFFFFFF
#: No task: the process's own work.
UNTAGGED: Final = 0

#: File, line and function of a frame.
Frame = tuple[str, int, str]
#: Frames, the innermost first.
Stack = tuple[Frame, ...]


class Pick(NamedTuple):
    """One sampled allocation that is still alive."""

    serial: int  # rises with each pick
    address: int
    size: int  # bytes: the block, or what it had grown by when this was picked
    weight: float  # bytes of the heap that it stands for
    born_s: float  # time.monotonic()
    tag: int
    run: int  # runs of its tag that had begun when it was born
    collections: int  # full garbage collections that had ended
    stack: int  # for Sampler.stack; -1 where there is none
    resized: int = 0  # whether its block has grown or shrunk to this, as a list's does that grows


class Pace(NamedTuple):
    """How a sampler wants to be used, by what it costs."""

    look_s: float  # how often the watch looks whether something is due
    first_pause_s: float  # the first pause between two looks that judge; each is half as long again
    longest_pause_s: float
    fewest_runs: int  # a stretch over its budget goes on until its tasks have run so often …
    longest_over_s: float  # … or for so long


class CannotSample(TraceError):
    """This process can't sample its heap; the message says why."""
