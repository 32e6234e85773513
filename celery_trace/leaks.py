"""
The leak table: windows of any number of processes become rows of one site each.

A pure function of the windows, so that a page, a command and a test that hold the same windows show the same
rows, and that evidence from processes which are long gone counts as much as any other.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from celery_trace.model import Leak, Site, Stage, Verdict, Window, leak_id

#: Runs after the suspicion, over several processes that each ended before a verdict, that make one together.
RUNS_FOR_A_JOINT_VERDICT = 100
#: How many processes have to agree on it.
PROCESSES_FOR_A_JOINT_VERDICT = 3
#: A site seen in fewer runs than this has no verdict yet.
FEWEST_RUNS = 3
#: How the first word of a path ends that was followed up to a root.
_ROOTS = ("(module)", "(class)", "(thread)")
#: Points of a row's plot.
MOST_SAMPLES = 200

_RANK = {
    Verdict.LEAKING: 0,
    Verdict.GROWING: 1,
    Verdict.SUSPECT: 2,
    Verdict.TOO_FEW_RUNS: 3,
    Verdict.STEADY: 4,
}


def leak_table(windows: Iterable[Window], *, now_s: float) -> list[Leak]:  # noqa: ARG001 - the reader's clock, for callers that show ages
    """
    Rank allocation sites by the memory that each run keeps.

    A site leaks when its live bytes grow in most runs of a window, the growth survives a collection, and it still
    goes on a hundred and more runs later; a cache that replaces its value nets to zero, and one that filled
    has stopped by then. The latest word of a process is what counts of it, so a row goes back to ``STEADY`` when
    the processes that run the mended code say so.

    Args:
        windows: Windows of any names and processes, in any order.
        now_s: The reader's clock, seconds since the epoch.

    Returns:
        Rows: worst verdict first, then by ``kept_bytes_per_run`` (bytes), greatest first. A site seen in fewer than
        three runs stays listed, with verdict ``TOO_FEW_RUNS``.
    """
    by_name: dict[tuple[str, str], list[Window]] = defaultdict(list)
    for window in windows:
        by_name[window.kind, window.name].append(window)
    rows: list[Leak] = []
    for of_name in by_name.values():
        of_name.sort(key=lambda window: (window.at_s, window.run_number))
        rows += _rows(of_name)
    return sorted(rows, key=lambda row: (_RANK[row.verdict], -row.kept_bytes_per_run, row.name, row.file, row.line))


def _rows(windows: list[Window]) -> list[Leak]:
    heap = [window for window in windows if not window.native]
    rows = []
    for resource in sorted({window.native for window in windows if window.native}):
        of_resource = [window for window in windows if window.native == resource]
        rows.append(_row(windows, of_resource, None, verdict_of(of_resource), resource))
    if not heap:
        return rows
    verdict = verdict_of(heap)
    now, ever = _latest_sites(heap), _all_sites(heap)
    for key, found in ever.items():
        of_site = verdict if key in now else Verdict.STEADY
        rows.append(_row(heap, found, key, of_site, ""))
    if not ever and any(window.stage is not Stage.TRACED for window in heap):
        only_native = bool(rows) and verdict not in (Verdict.LEAKING, Verdict.GROWING)
        if not only_native:
            rows.append(_row(heap, heap, None, verdict, ""))
    return rows


# --- the verdict --------------------------------------------------------------------------------------


def verdict_of(windows: Sequence[Window]) -> Verdict:
    """
    What all windows of one name (or of one native resource of it) say together.

    Args:
        windows: By time.
    """
    traced_only = all(window.stage is Stage.TRACED for window in windows)
    if traced_only:
        return _verdict_of_traced(windows)
    latest: dict[str, Window] = {}
    for window in windows:
        if window.stage is not Stage.TRACED:
            latest[window.process] = window
    leaking = [window for window in latest.values() if window.verdict is Verdict.LEAKING]
    steady = [window for window in latest.values() if window.verdict is Verdict.STEADY]
    if leaking:
        last_leak_s = max(window.at_s for window in leaking)
        # A process looked later and found nothing, whatever came of it since: the code was mended in between.
        if any(
            window.at_s > last_leak_s and window.stage is Stage.VERDICT and window.verdict is Verdict.STEADY
            for window in windows
        ):
            return Verdict.STEADY
        return Verdict.LEAKING
    growing = [window for window in latest.values() if window.verdict is Verdict.GROWING]
    if growing:
        last_steady_s = max((window.at_s for window in steady), default=0.0)
        unrefuted = [window for window in growing if window.at_s > last_steady_s]
        together = _joint_verdict(windows, unrefuted) if unrefuted else Verdict.STEADY
        if together is not Verdict.GROWING or not _is_first_glance(windows, last_steady_s):
            return together
        return Verdict.SUSPECT if not steady else Verdict.STEADY
    if any(window.verdict is Verdict.SUSPECT for window in latest.values()):
        return Verdict.SUSPECT if not steady else Verdict.STEADY
    return Verdict.STEADY if steady else Verdict.TOO_FEW_RUNS


def _is_first_glance(windows: Sequence[Window], since_s: float) -> bool:
    """
    Whether all that was seen to grow since then is a census, one of each process, without a line.

    It can't tell what is kept from what the next run replaces; the look for the line does, mostly within seconds.
    """
    grown = [window for window in windows if window.verdict is Verdict.GROWING and window.at_s > since_s]
    if any(window.sites or window.stage is not Stage.CENSUS for window in grown):
        return False
    return len({window.process for window in grown}) == len(grown)


def _joint_verdict(windows: Sequence[Window], growing: Sequence[Window]) -> Verdict:
    """Growing in each of several processes up to its end, none of which lived to its own verdict, is leaking."""
    if any(window.bounded or window.stage is Stage.VERDICT for window in growing):
        return Verdict.GROWING
    first: dict[str, int] = {}
    for window in windows:
        if window.stage is Stage.SUSPECT:
            first.setdefault(window.process, window.run_number)
    runs = sum(max(0, window.run_number - first.get(window.process, window.run_number)) for window in growing)
    enough = len(growing) >= PROCESSES_FOR_A_JOINT_VERDICT and runs >= RUNS_FOR_A_JOINT_VERDICT
    return Verdict.LEAKING if enough else Verdict.GROWING


def _verdict_of_traced(windows: Sequence[Window]) -> Verdict:
    """Single traced runs: what one allocates and keeps may still be replaced by the next, so no more than suspect."""
    if sum(window.runs for window in windows) < FEWEST_RUNS:
        return Verdict.TOO_FEW_RUNS
    grown = sum(window.kept_blocks_per_run > 0 and window.kept_bytes_per_run > 0 for window in windows)
    return Verdict.SUSPECT if grown >= 0.75 * len(windows) else Verdict.STEADY


# --- sites --------------------------------------------------------------------------------------------


def _all_sites(windows: Sequence[Window]) -> dict[tuple[str, int], list[Window]]:
    found: dict[tuple[str, int], list[Window]] = defaultdict(list)
    for window in windows:
        for site in window.sites:
            if site.bytes > 0:
                found[site.file, site.line].append(window)
    return found


def _latest_sites(windows: Sequence[Window]) -> set[tuple[str, int]]:
    """The sites that each process named last."""
    latest: dict[str, Window] = {}
    for window in windows:
        if window.sites:
            latest[window.process] = window
    return {(site.file, site.line) for window in latest.values() for site in window.sites}


def _site(window: Window, key: tuple[str, int]) -> Site | None:
    return next((site for site in window.sites if (site.file, site.line) == key), None)


# --- one row ------------------------------------------------------------------------------------------


def _row(
    of_name: Sequence[Window],
    evidence: Sequence[Window],
    key: tuple[str, int] | None,
    verdict: Verdict,
    resource: str,
) -> Leak:
    """
    Args:
        of_name: All windows of the name, by time: how many runs there were.
        evidence: Those that speak of this site or resource.
        key: The site, or None where no line is known.
    """
    last = evidence[-1]
    site = _site(last, key) if key is not None else None
    rates, blocks = _rates(evidence, key)
    kept_bytes = statistics.median(rates) if rates else 0.0
    kept_blocks = statistics.median(blocks) if blocks else 0.0
    runs: dict[str, int] = {}
    for window in of_name:
        runs[window.process] = max(runs.get(window.process, 0), window.run_number)
    samples = _samples(of_name, kept_bytes)
    held = [window.retained_by for window in reversed(of_name) if window.retained_by and not resource]
    # A walk that met no root, as in a run that was busy with the objects, does not take back what an earlier one found.
    retained = next((path for path in held if path[0].endswith(_ROOTS)), held[0] if held else [])
    typed = next((window for window in reversed(of_name) if window.types and not resource), None)
    return Leak(
        id=leak_id(last.kind, last.name, key[0] if key else "", key[1] if key else 0, resource or None),
        kind=str(last.kind),
        name=last.name,
        verdict=verdict,
        native=bool(resource),
        file=key[0] if key else "",
        line=key[1] if key else 0,
        function=site.function if site else "",
        code=site.code if site else "",
        kept_bytes_per_run=round(kept_bytes),
        kept_blocks_per_run=round(kept_blocks, 2),
        kept_bytes_total=samples[-1][1],
        runs=sum(runs.values()),
        processes=len(runs),
        traceback=list(site.traceback) if site else [],
        types=list(typed.types) if typed else [],
        retained_by=list(retained),
        first_seen=of_name[0].at_s,
        last_seen=of_name[-1].at_s,
        samples=samples,
        resource=resource,
        bounded=next((window.bounded for window in reversed(evidence) if window.bounded), ""),
        note=last.note,
        concurrent=any(window.concurrent > 1 for window in evidence),
    )


def _rates(evidence: Sequence[Window], key: tuple[str, int] | None) -> tuple[list[float], list[float]]:
    """Bytes and blocks a run, one value a process: its latest, which rests on the most runs."""
    latest: dict[str, tuple[float, float]] = {}
    for window in evidence:
        if key is None:
            if window.verdict is not Verdict.STEADY or len(evidence) == 1:
                latest[window.process] = (window.kept_bytes_per_run, window.kept_blocks_per_run)
            continue
        site = _site(window, key)
        if site is not None:
            latest[window.process] = (float(site.bytes), float(site.blocks))
    return [rate for rate, _ in latest.values()], [blocks for _, blocks in latest.values()]


def _samples(windows: Sequence[Window], kept_bytes: float) -> list[tuple[float, int]]:
    """What the runs of all processes had kept by the time of each window, bytes."""
    runs: dict[str, int] = {}
    total = 0
    points: list[tuple[float, int]] = []
    for window in windows:
        before = runs.get(window.process, 0)
        if window.run_number > before and (window.verdict is not Verdict.STEADY or not before):
            total += window.run_number - before
        runs[window.process] = max(before, window.run_number)
        points.append((window.at_s, round(total * kept_bytes)))
    step = len(points) // MOST_SAMPLES + 1
    return points[::step] if step == 1 else [*points[:-1:step], points[-1]]
