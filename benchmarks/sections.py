"""The parts of the benchmarks' page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct


class Reach(Struct, frozen=True):
    """A goal and the measured value; ``held`` is None if this run could not tell."""

    what: str
    promised: str
    measured: str
    held: bool | None


class Section(Struct, frozen=True):
    """A section of the page, in Markdown."""

    title: str
    words: str
    tables: list[str]
    reach: list[Reach]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def us(value: float) -> str:
    """Microseconds as text."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.2f} s"
    return f"{value / 1000:.1f} ms" if abs(value) >= 10_000 else f"{value:.1f} µs"
