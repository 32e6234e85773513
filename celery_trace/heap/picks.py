"""What every sampler of the heap returns."""

from __future__ import annotations

from typing import Final, NamedTuple, TypedDict

from celery_trace.errors import TraceError

#: Allocations of a thread with this tag are not sampled.
IGNORED: Final = 0xFFFFFFFF
#: Outside of tasks: the process's own work.
UNTAGGED: Final = 0

#: File, line and function of a frame.
Frame = tuple[str, int, str]
#: Frames, the innermost first.
Stack = tuple[Frame, ...]
#: Address and size (bytes) of a block.
Block = tuple[int, int]
#: A block's address, the object in it, and an object that refers to that.
Match = tuple[int, object, object]


class Pick(NamedTuple):
    """One sampled allocation that is still alive."""

    serial: int  # rises with each pick
    address: int
    size: int  # bytes: of the block, or of its growth when this was picked
    weight: float  # bytes of the heap that it represents
    born_s: float  # time.monotonic()
    tag: int
    run: int  # runs of its tag that had begun when it was born
    collections: int  # full garbage collections that had ended
    stack: int  # for Sampler.stack; -1 for none
    resized: int = 0  # whether its block was resized, as that of a growing list


class Pace(NamedTuple):
    """How a sampler is used, by its cost."""

    look_s: float  # how often the watch checks what is due
    first_pause_s: float  # the first pause between two looks that judge; each is half as long again
    longest_pause_s: float
    fewest_runs: int  # a stretch over its budget goes on until its tasks have run so often …
    longest_over_s: float  # … or for so long
    calm_look_s: float  # how often it checks while it searches no holder


class SamplerStats(TypedDict):
    """Counters since the process began; ``mean_bytes``, ``live`` and ``stacks`` as they are now."""

    calls: int
    mean_bytes: float
    live: int
    stacks: int
    taken: int
    died: int
    dropped: int
    thinned: int
    collections: int
    pick_s: float


class CannotSample(TraceError):
    """This process can't sample its heap; the message is the reason."""
