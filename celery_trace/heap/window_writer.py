"""Writes what is known of the sites of one process as windows, when that has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from celery_trace.heap.long_runs import task_of
from celery_trace.heap.picks import UNTAGGED
from celery_trace.heap.retainers import Found
from celery_trace.heap.sites import SiteState
from celery_trace.heap.survivors import IN_FLIGHT_RUNS, Key
from celery_trace.heap.watched_process import WatchedProcess
from celery_trace.heap.windows import shares, site_at
from celery_trace.model import Evidence, Holder, Stage, Verdict, Window, new_id, stable_id
from celery_trace.text.format import duration
from celery_trace.text.format import size as format_size

#: An unchanged row is written again after so many seconds.
REPEAT_S: Final = 60.0
#: Points of a site's curve.
MOST_POINTS: Final = 40


def with_point(growth: list[tuple[float, int]], point: tuple[float, int]) -> list[tuple[float, int]]:
    """A curve with one more point, thinned out when it gets long."""
    growth = [*growth, point]
    return growth if len(growth) <= MOST_POINTS else [*growth[:-1:2], growth[-1]]


class WindowWriter:
    """
    The windows of one process.

    Args:
        watched: The process.
        emit: Takes the windows.
    """

    def __init__(self, watched: WatchedProcess, emit: Callable[[Window], None]) -> None:
        self._watched = watched
        self._process = watched.record
        self._counts = watched.counts
        self._emit = emit
        self._clean: dict[int, int] = {}  # tag: observed runs that were reported to retain nothing

    def write(self, key: Key, site: SiteState, evidence: Evidence, runs: Mapping[int, int], now_s: float) -> None:
        """Write a site, if its verdict or holder is new, if it has grown by a quarter, or after a minute."""
        tag, judgement = key[0], site.judgement
        is_new = judgement.verdict is not site.verdict or site.holder != site.written_holder
        has_more = evidence.events > 1.25 * site.events
        if not (is_new or has_more or (now_s - site.written_s >= REPEAT_S and evidence.events != site.events)):
            return
        site.verdict, site.written_holder, site.written_s = judgement.verdict, site.holder, now_s
        site.events = evidence.events
        rate = evidence.bytes_per_run
        total = round(evidence.bytes + rate * self._counts.unobserved(tag, runs))
        site.growth = with_point(site.growth, (self._watched.clock.now_s(), total))
        self._write(
            key,
            site,
            Stage.SAMPLED,
            judgement.verdict,
            runs=evidence.runs,
            run_number=runs[tag],
            blocks=evidence.events,
            rate=rate,
            total=total,
            note=judgement.why,
            evidence=evidence,
        )

    def write_long_run(
        self, key: Key, site: SiteState, evidence: Evidence, runs: Mapping[int, int], *, lasted_s: float, now_s: float
    ) -> None:
        """
        Report what a run in progress holds, once it grows, and when that has ended.

        Args:
            key: The site, with the tag of a long run.
            site: What is known of it.
            evidence: Of the run's slices.
            runs: How many runs of each tag have begun.
            lasted_s: How long the run has lasted, seconds; 0 where it has ended.
            now_s: Monotonic time.
        """
        grows = lasted_s > 0 and site.judgement.verdict in (Verdict.GROWING, Verdict.LEAKING)
        verdict = Verdict.GROWING if grows else Verdict.STEADY
        is_new = verdict is not site.verdict or site.holder != site.written_holder
        if (site.verdict is None and not grows) or not (is_new or (grows and now_s - site.written_s >= REPEAT_S)):
            return
        size = round(evidence.bytes)
        why = f"{format_size(size)} in one run of {duration(lasted_s)}" if grows else "the run has released it"
        site.verdict, site.written_holder, site.written_s = verdict, site.holder, now_s
        site.growth = with_point(site.growth, (self._watched.clock.now_s(), size))
        tag, place = key
        self._write(
            (task_of(tag), place),
            site,
            Stage.RUN,
            verdict,
            runs=1,
            run_number=runs[task_of(tag)],
            blocks=evidence.picks,
            rate=evidence.bytes,
            total=size,
            note=why,
        )

    def write_clean(self, runs: Mapping[int, int], reported: set[int], fewest: int) -> None:
        """
        Report that observed runs of a task have retained nothing, which refutes reports of other processes.

        It is repeated after twice as many runs: a single process may have to refute a rare leak.

        Args:
            runs: How many runs of each tag have begun.
            reported: The tags that have sites.
            fewest: Observed runs that are worth a report.
        """
        for tag, number in runs.items():
            observed = self._counts.earlier(tag) + self._counts.in_stretch(tag, runs) - IN_FLIGHT_RUNS
            if tag == UNTAGGED or tag in reported or observed < max(fewest, 2 * self._clean.get(tag, 0)):
                continue
            self._clean[tag] = observed
            kind, name = self._watched.tags.name_of(tag)
            self._emit(
                Window(
                    id=new_id(),
                    investigation=stable_id("heap", self._process.uid, kind, name),
                    process=self._process.uid,
                    kind=kind,
                    name=name,
                    stage=Stage.SAMPLED,
                    verdict=Verdict.STEADY,
                    at_s=self._watched.clock.now_s(),
                    runs=observed,
                    run_number=number,
                    role=self._process.role,
                    release=self._process.release,
                    evidence=Evidence(runs=observed),
                )
            )

    def _write(
        self,
        key: Key,
        site: SiteState,
        stage: Stage,
        verdict: Verdict,
        *,
        runs: int,
        run_number: int,
        blocks: int,
        rate: float,
        total: int,
        note: str,
        evidence: Evidence | None = None,
    ) -> None:
        tag, (file, line) = key
        kind, name = self._watched.tags.name_of(tag)
        found = site.found or Found(Holder())
        self._emit(
            Window(
                id=new_id(),
                investigation=stable_id("heap", self._process.uid, kind, name, file, line, stage),
                process=self._process.uid,
                kind=kind,
                name=name,
                stage=stage,
                verdict=verdict,
                at_s=self._watched.clock.now_s(),
                runs=runs,
                run_number=run_number,
                kept_blocks_per_run=round(blocks / runs, 3) if runs else 0.0,
                kept_bytes_per_run=rate,
                sites=[site_at(file, line, site.stack, size=rate, blocks=blocks)],
                types=shares(found.types, total),
                retained_by=found.holder.path,
                bounded=found.holder.bound,
                concurrent=self._watched.most_open(),
                by_site=self._watched.runs_several,
                note=note,
                role=self._process.role,
                release=self._process.release,
                evidence=evidence,
                holder=site.holder,
                growth=site.growth,
            )
        )
