"""
The "Top 10 differences" of one run: where memory was gained or given back, by line, as tracemalloc's users know it.

Measured with tracing on for just that run and summed from the raw traces, so that it costs the run its tracing and
little more; the table reads like the one that ``Snapshot.compare_to`` prints.
"""

from __future__ import annotations

from collections.abc import Sequence

from celery_trace.model import Site
from celery_trace.probes.locate import Amount, Reading, Tracing, difference
from celery_trace.probes.source import OwnCode, SourceReader

#: Rows of the table.
TOP = 10


class TracedRun:
    """
    Traces one run.

    Args:
        nframe: Depth of the tracebacks. 1 gives the allocating line; more reaches the user's line behind a library's.
    """

    def __init__(self, nframe: int = 1) -> None:
        self._nframe = nframe
        self._tracing = Tracing()
        self._base: Reading = {}

    def begin(self) -> None:
        """Start tracing, or read what the user's own tracing holds already."""
        self._tracing.start(self._nframe)
        if self._tracing.joined:
            self._base = self._tracing.read(last=False)

    def end(self) -> Reading:
        """Stop (unless it is the user's tracing); gives what the run gained and gave back."""
        if not self._tracing.alive:
            self._tracing.stop()
            return {}
        return difference(self._tracing.read(last=True), self._base)

    def stop(self) -> None:
        """Stop without a result."""
        self._tracing.stop()
        self._base = {}


def top_differences(change: Reading, own: OwnCode | None = None, *, most: int = TOP) -> list[Site]:
    """
    The greatest changes of a run, by line, gains and losses alike.

    Args:
        change: By traceback, from :meth:`TracedRun.end`.
        own: With it, changes are summed by the user's own line; without, by the allocating line.
        most: Rows.
    """
    by_line: dict[tuple[str, int], tuple[int, int, int, tuple[tuple[str, int], ...]]] = {}
    for frames, amount in change.items():
        at = own.first(frames) if own is not None else 0
        size, blocks, greatest, longest = by_line.get(frames[at], (0, 0, -1, frames))
        if abs(amount.bytes) > greatest:
            greatest, longest = abs(amount.bytes), frames
        by_line[frames[at]] = (size + amount.bytes, blocks + amount.blocks, greatest, longest)
    ranked = sorted(by_line.items(), key=lambda item: (-abs(item[1][0]), -abs(item[1][1]), item[0]))[:most]
    source = SourceReader()
    try:
        rows = []
        for (file, line), (size, blocks, _, frames) in ranked:
            here = source.line(file, line)
            rows.append(
                Site(
                    file=file,
                    line=line,
                    function=here.function,
                    code=here.code,
                    bytes=size,
                    blocks=blocks,
                    traceback=source.lines(frames) if len(frames) > 1 else [here],
                )
            )
        return rows
    finally:
        source.close()


def total(change: Reading) -> Amount:
    """The sum of a run's changes."""
    amounts = change.values()
    return Amount(
        sum(amount.bytes for amount in amounts),
        sum(amount.blocks for amount in amounts),
        sum(amount.small_blocks for amount in amounts),
        sum(amount.large_bytes for amount in amounts),
    )


def table(rows: Sequence[Site], label: str = "") -> str:
    """
    The rows as text, in the form of tracemalloc's own display.

    Under each line stands its source, where there is any: that is what one looks for next.
    """
    lines = [f"[ Top {TOP} differences ]" + (f" {label}" if label else "")]
    for site in rows:
        each = f", average={_size(abs(site.bytes) / abs(site.blocks), False)}" if site.blocks else ""
        lines.append(f"{site.file}:{site.line}: size={_size(site.bytes, True)}, count={site.blocks:+d}{each}")
        if site.code:
            lines.append(f"    {site.code}")
    if not rows:
        lines.append("nothing was gained or given back")
    return "\n".join(lines)


def _size(size: float, sign: bool) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 100 and unit != "B":
            return f"{size:+.1f} {unit}" if sign else f"{size:.1f} {unit}"
        if abs(size) < 10 * 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:+.0f} {unit}" if sign else f"{size:.0f} {unit}"
