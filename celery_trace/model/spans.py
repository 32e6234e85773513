"""When single runs ran, for lanes of time."""

from __future__ import annotations

from msgspec import Struct


class RunSpan(Struct, frozen=True, kw_only=True):
    """A single run of a process, from ``started_at`` for ``duration_s``; ``run`` is its id."""

    run: str
    process: str
    kind: str
    name: str
    started_at: float
    duration_s: float
    why: str  # "outlier", "sampled", "traced", "failed"
