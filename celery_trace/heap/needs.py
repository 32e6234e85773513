"""
What a run needs: the peak of what it has allocated, and the limits that follow from it.

The sampler counts each run in a bucket by its peak (``_sampler.c``, ``peak_bucket``): four buckets an octave, so that a
figure is right to a fifth. Memory that C code allocates without Python's allocators is not in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from celery_trace.text.format import size

#: The fewest runs that a proposal is based on.
FEWEST_RUNS: Final = 20
#: Headroom of a proposal, as a factor: for what a child retains until it is replaced.
HEADROOM: Final = 1.25
_KIB: Final = 1024
_MIB: Final = 1024 * 1024


def bucket_bytes(bucket: int) -> int:
    """The most (bytes) that a run in a bucket held; 0 for runs that held nothing that was picked."""
    return round(_KIB * 2 ** (bucket / 4)) if bucket else 0


class Need(Struct, frozen=True):
    """The peaks of a name's runs, bytes: p50, p99 and the largest."""

    runs: int
    p50_bytes: int
    p99_bytes: int
    most_bytes: int


def need_of(peaks: Iterable[Mapping[int, int]]) -> Need | None:
    """What runs need, by the counts of all processes; None if no run was measured."""
    counts: Counter[int] = Counter()
    for one in peaks:
        counts.update(one)
    runs = counts.total()
    if not runs:
        return None
    return Need(runs, _percentile(counts, 0.5), _percentile(counts, 0.99), bucket_bytes(max(counts)))


def _percentile(counts: Counter[int], share: float) -> int:
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= share * counts.total():
            return bucket_bytes(bucket)
    return 0


class Proposal(Struct, frozen=True, kw_only=True):
    """Limits of a worker, and how they were calculated."""

    child_kib: int  # for ``--max-memory-per-child``
    container_bytes: int
    concurrency: int
    how: str  # the arithmetic, in one line
    fits: int | None = None  # children that fit into the current limit of the container or machine


def propose(
    *, name: str, need: Need, base_bytes: int, main_bytes: int, concurrency: int, room_bytes: int | None
) -> Proposal:
    """
    Limits for a prefork worker.

    Args:
        name: The task that needs most.
        need: Of that task.
        base_bytes: What a child holds before its first run.
        main_bytes: What the main process holds.
        concurrency: Children that run at once.
        room_bytes: The limit that the container or the machine has now.
    """
    child_bytes = (base_bytes + need.p99_bytes) * HEADROOM
    child_bytes = -(-int(child_bytes) // _MIB) * _MIB  # in whole MiB
    container_bytes = -(-int(main_bytes + concurrency * child_bytes) // _MIB) * _MIB
    how = (
        f"A child: ({size(base_bytes)} at its start + {size(need.p99_bytes)} for a run of {name}, p99) "
        f"× {HEADROOM} = {size(child_bytes)}; "
        f"the container: {size(main_bytes)} for the main process + {concurrency} × {size(child_bytes)} "
        f"= {size(container_bytes)}"
    )
    fits = max(0, int((room_bytes - main_bytes) // child_bytes)) if room_bytes else None
    return Proposal(
        child_kib=child_bytes // _KIB, container_bytes=container_bytes, concurrency=concurrency, how=how, fits=fits
    )
