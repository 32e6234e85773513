"""
The leak table: windows of any number of processes become rows of one site each.

A pure function of the windows: the same windows give the same rows on a page, in a command and in a test, and evidence
of processes that have ended counts as much as any other.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from celery_trace.heap.survivors import together
from celery_trace.heap.verdict import Judgement, judge
from celery_trace.heap.windows import shares
from celery_trace.model import Evidence, Holder, Leak, Stage, TypeCount, Verdict, Window, leak_id

#: Observed runs without the site that refute it, once no process reports it any more; and how often it would have
#: shown in them at its rate (by chance a rare leak stays away for that long in one case of 150).
CLEAN_RUNS = 60
CLEAN_EVENTS = 5
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

    The latest window of each process on a site counts. Their evidence is added up and judged together, so many
    short-lived processes count as much as one long-lived one. A row returns to ``STEADY`` when processes have since
    run the task often enough without reporting the site.

    Args:
        windows: Windows of any names and processes, in any order.
        now_s: The reader's clock, seconds since the epoch.

    Returns:
        Rows: worst verdict first, then by ``kept_bytes_per_run`` (bytes), greatest first.
    """
    by_name: dict[tuple[str, str], list[Window]] = defaultdict(list)
    for window in windows:
        by_name[window.kind, window.name].append(window)
    rows: list[Leak] = []
    for of_name in by_name.values():
        rows += _rows(sorted(of_name, key=lambda window: (window.at_s, window.run_number)))
    return sorted(rows, key=lambda row: (_RANK[row.verdict], -row.kept_bytes_per_run, row.name, row.file, row.line))


def _rows(windows: Sequence[Window]) -> list[Leak]:
    """The rows of one name; its windows by time."""
    rows = []
    for resource in sorted({window.native for window in windows if window.native}):
        found = [window for window in windows if window.native == resource]
        opened = next((window.sites[0] for window in reversed(found) if window.sites), None)
        at = (opened.file, opened.line) if opened is not None else ("", 0)
        rows.append(_reported_row(windows, found, at, resource))
    sampled = [window for window in windows if window.stage is Stage.SAMPLED]
    sites = _by_site(sampled)
    rows += [_sampled_row(sampled, found, site) for site, found in sites.items()]
    # Traced blocks, and records of versions before the sampled heap.
    reported = [window for window in windows if window.stage is not Stage.SAMPLED and not window.native]
    for site, found in _by_site(reported).items():
        if site not in sites:
            rows.append(_reported_row(reported, found, site, ""))
    return rows


def _by_site(windows: Iterable[Window]) -> dict[tuple[str, int], list[Window]]:
    found: dict[tuple[str, int], list[Window]] = defaultdict(list)
    for window in windows:
        for site in window.sites:
            if site.bytes > 0 or window.stage in (Stage.SAMPLED, Stage.RUN):
                found[site.file, site.line].append(window)
    return found


def _latest(windows: Iterable[Window]) -> list[Window]:
    """Each process's last window, by time."""
    latest: dict[str, Window] = {}
    for window in windows:
        latest.pop(window.process, None)
        latest[window.process] = window
    return list(latest.values())


# --- sampled sites ------------------------------------------------------------------------------------


def _sampled_row(of_name: Sequence[Window], found: Sequence[Window], site: tuple[str, int]) -> Leak:
    """
    One site of a task.

    Args:
        of_name: All sampled windows of the task, by time; one without a site means that a process found nothing.
        found: Those of this site.
        site: File and line.
    """
    latest = _latest(found)
    evidence = together(window.evidence for window in latest if window.evidence is not None)
    evidence = replace(evidence, runs=evidence.runs + _runs_of_the_short_lived(of_name, found))
    holder = _holder(latest)
    judgement = _refuted(of_name, found, evidence) or judge(evidence, holder)
    if judgement.verdict is Verdict.GROWING and any(window.verdict is Verdict.LEAKING for window in latest):
        # Each process has its own setting of how many runs that takes.
        judgement = replace(judgement, verdict=Verdict.LEAKING, waits_for="")
    rate = evidence.bytes_per_run
    return _leak(of_name, found, site, "", judgement, rate, evidence.events / evidence.runs if evidence.runs else 0.0)


def _holder(latest: Sequence[Window]) -> Holder:
    """The holder: one that was found, before searches that found none."""
    known = [window.holder for window in latest if window.holder is not None]
    rooted = sorted(
        (holder for holder in known if holder.path),
        key=lambda holder: (not holder.outdated, holder.of_another_task),
    )
    searched = [holder for holder in known if holder.searched]
    return (rooted or searched or [Holder()])[-1]


def _runs_of_the_short_lived(of_name: Sequence[Window], found: Sequence[Window]) -> int:
    """
    Runs of processes that ended too soon to see a site that others saw. They count for its rate.

    Otherwise a leak of a kilobyte would be judged only by those children that happened to sample it.
    """
    first_s, last_s = found[0].at_s, found[-1].at_s
    reporting = {window.process for window in found}
    return sum(
        window.evidence.runs
        for window in _latest(of_name)
        if window.evidence is not None
        and window.evidence.runs < CLEAN_RUNS
        and window.process not in reporting
        and first_s <= window.at_s <= last_s
    )


def _refuted(of_name: Sequence[Window], found: Sequence[Window], evidence: Evidence) -> Judgement | None:
    """Steady, if processes that do not report the site have observed enough runs since it was last seen to grow."""
    growing = [window for window in found if window.verdict is not Verdict.STEADY]
    last_s = max((window.at_s for window in growing), default=0.0)
    reporting = {window.process for window in found}
    observed: dict[str, int] = {}
    for window in of_name:
        if window.at_s > last_s and window.process not in reporting and window.evidence is not None:
            observed[window.process] = max(window.evidence.runs, observed.get(window.process, 0))
    runs = sum(observed.values())
    if runs < CLEAN_RUNS or runs * evidence.events < CLEAN_EVENTS * evidence.runs:
        return None
    return Judgement(Verdict.STEADY, 0.0, f"not seen in {runs} runs since")


def _began_with(of_name: Sequence[Window], found: Sequence[Window]) -> tuple[str, float | None]:
    """The release that first showed a site, and when, if an earlier one ran the task without it."""
    first = found[0]
    before = [window for window in of_name if window.at_s < first.at_s and window.release != first.release]
    runs = sum(window.evidence.runs for window in before if window.evidence is not None and not window.sites)
    if not first.release or runs < CLEAN_RUNS:
        return "", None
    return first.release, min([first.at_s, *(at_s for at_s, _ in first.growth[:1])])


# --- what a process has judged by itself -----------------------------------------------------------------


def _reported_row(of_name: Sequence[Window], found: Sequence[Window], site: tuple[str, int], resource: str) -> Leak:
    latest = _latest(found)
    worst = min((window.verdict for window in latest), key=lambda verdict: _RANK[verdict])
    if all(window.stage is Stage.TRACED for window in found):
        worst = _verdict_of_traced(found)
    elif latest[-1].verdict is Verdict.STEADY:
        worst = Verdict.STEADY  # the latest verdict: it has been fixed
    rates = [_site_bytes(window, site) if not resource else window.kept_bytes_per_run for window in latest]
    blocks = statistics.median(window.kept_blocks_per_run for window in latest)
    waits_for = "the end of the run" if latest[-1].stage is Stage.RUN and worst is Verdict.GROWING else ""
    judgement = Judgement(worst, 0.0, latest[-1].note, waits_for)
    return _leak(of_name, found, site, resource, judgement, statistics.median(rates), blocks)


def _verdict_of_traced(windows: Sequence[Window]) -> Verdict:
    """Single traced runs: the next run may replace what one retains, so at most suspect."""
    if sum(window.runs for window in windows) < 3:
        return Verdict.TOO_FEW_RUNS
    grown = sum(window.kept_blocks_per_run > 0 and window.kept_bytes_per_run > 0 for window in windows)
    return Verdict.SUSPECT if grown >= 0.75 * len(windows) else Verdict.STEADY


def _site_bytes(window: Window, site: tuple[str, int]) -> float:
    return next((float(one.bytes) for one in window.sites if (one.file, one.line) == site), 0.0)


# --- one row ------------------------------------------------------------------------------------------


def _leak(
    of_name: Sequence[Window],
    found: Sequence[Window],
    site: tuple[str, int],
    resource: str,
    judgement: Judgement,
    bytes_per_run: float,
    blocks_per_run: float,
) -> Leak:
    last = found[-1]
    here = next((one for window in reversed(found) for one in window.sites if (one.file, one.line) == site), None)
    runs: dict[str, int] = {}
    for window in of_name:
        runs[window.process] = max(runs.get(window.process, 0), window.run_number)
    holding = next((window for window in reversed(found) if window.retained_by), None)
    samples = _samples(found, bytes_per_run)
    release, began_at_s = _began_with(of_name, found)
    return Leak(
        id=leak_id(last.kind, last.name, *site, resource or None),
        kind=str(last.kind),
        name=last.name,
        verdict=judgement.verdict,
        native=bool(resource),
        file=site[0],
        line=site[1],
        function=here.function if here else "",
        code=here.code if here else "",
        kept_bytes_per_run=round(bytes_per_run),
        kept_blocks_per_run=round(blocks_per_run, 2),
        kept_bytes_total=samples[-1][1],
        runs=sum(runs.values()),
        processes=len(runs),
        traceback=list(here.traceback) if here else [],
        types=_types(found, samples[-1][1]),
        retained_by=list(holding.retained_by) if holding else [],
        first_seen=found[0].at_s,
        last_seen=found[-1].at_s,
        samples=samples,
        role=last.role,
        confidence=round(judgement.confidence, 3),
        why=judgement.why,
        waits_for=judgement.waits_for,
        began_with=release,
        began_at=began_at_s,
        resource=resource,
        bounded=next((window.bounded for window in reversed(found) if window.bounded), ""),
        note=(last.holder.why if last.holder is not None else last.note)
        or _meaning(holding.retained_by if holding else ()),
        concurrent=any(window.concurrent > 1 for window in found),
    )


def _types(found: Sequence[Window], total_bytes: int) -> list[TypeCount]:
    """The total, divided among the types that the latest searches of all processes have found; greatest first."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for window in _latest(window for window in found if window.types):
        for row in window.types:
            counts[row.type][0] += row.count
            counts[row.type][1] += row.bytes
    ordered = sorted(counts.items(), key=lambda item: (-item[1][1], item[0]))
    return shares(((kind, count, weight) for kind, (count, weight) in ordered), total_bytes)


#: What Celery and kombu hold, by attribute, explained for users who don't know their internals.
_MEANINGS = {
    "requests": "messages that the worker has taken and not finished; one with an ETA or a countdown stays until then",
    "_delivered": "messages that the worker has taken and not acknowledged; one with an ETA or a countdown stays until "
    "then",
    "revoked": "ids of revoked tasks",
    "channels": "results that were never fetched: the worker keeps listening for them",
    "pending_unsubscribe_channels": "results that were never fetched: the worker never reads the unsubscribe replies",
    "_pending_results": "results that were never fetched",
}
_OF_CELERY = ("celery.", "kombu.", "billiard.", "redis.")


def _meaning(path: Sequence[str]) -> str:
    """What a path to one of Celery's own objects means; empty for others."""
    names = [step.partition(":")[0] for step in path]
    inside = path and (path[0].startswith(_OF_CELERY) or any(step.endswith(": Celery") for step in path))
    return next((_MEANINGS[name] for name in reversed(names) if name in _MEANINGS), "") if inside else ""


def _samples(found: Sequence[Window], bytes_per_run: float) -> list[tuple[float, int]]:
    """What all processes had kept by the time of each point, bytes."""
    points: list[tuple[float, str, int]] = []
    for window in _latest(found):
        growth = window.growth or [(window.at_s, round(window.run_number * bytes_per_run))]
        points += [(at_s, window.process, kept) for at_s, kept in growth]
    kept_by: dict[str, int] = {}
    samples: list[tuple[float, int]] = []
    for at_s, process, kept in sorted(points):
        kept_by[process] = max(kept, kept_by.get(process, 0))
        samples.append((at_s, sum(kept_by.values())))
    step = len(samples) // MOST_SAMPLES + 1
    return samples[::step] if step == 1 else [*samples[:-1:step], samples[-1]]
