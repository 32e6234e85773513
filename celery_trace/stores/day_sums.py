"""
What names kept in each day: the totals of five minutes, added up once more.

Both sides that bring older tables up to date (Alembic and Django) begin it from the totals that are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from celery_trace.model import stable_id

DAY_S = 86_400


def day_of(at_s: float) -> int:
    """The beginning of the day (UTC), seconds since the epoch."""
    return int(at_s // DAY_S) * DAY_S


def day_id(kind: str, name: str, day_s: int) -> str:
    """The key of a row."""
    return stable_id("day", kind, name, day_s)


def of_totals(totals: Iterable[tuple[str, str, int, int, int, int]]) -> list[dict[str, Any]]:
    """
    Rows for the table, from totals of runs that did not overlap.

    Args:
        totals: Kind, name, beginning of the five minutes, runs, measured runs and the bytes that those kept.
    """
    sums: dict[tuple[str, str, int], Counter[str]] = {}
    for kind, name, bucket_s, runs, gated, kept_bytes in totals:
        key = (str(kind), name, day_of(bucket_s))
        sums.setdefault(key, Counter()).update({"runs": runs, "gated": gated, "kept_bytes": kept_bytes})
    return [
        {
            "id": day_id(kind, name, day_s),
            "kind": kind,
            "name": name,
            "day_s": day_s,
            "runs": found["runs"],
            "gated": found["gated"],
            "kept_bytes": found["kept_bytes"],
        }
        for (kind, name, day_s), found in sorted(sums.items())
    ]
