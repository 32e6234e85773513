"""
An investigation: what happens to a name from the moment it is suspected until there is a verdict.

Census (does it survive a collection, and what is it), locate (which line), a wait, census and
locate again, verdict. Each step takes the next runs of that name and ends with one window. After a
verdict it goes on watching, ever more rarely, so that a leak that was mended goes back to steady.
"""

from __future__ import annotations

import statistics
from enum import StrEnum

from celery_trace.model import Kind, Site, Stage, Verdict, Window, new_id
from celery_trace.probes.census import NOTHING_KEPT, CensusWindow, Kept
from celery_trace.probes.gate import GROWN_BLOCKS, GROWN_BYTES, Gate
from celery_trace.probes.holding import Holding
from celery_trace.probes.lease import STAGES, Note
from celery_trace.probes.locate import LocateWindow, Rate, TracedChange, Tracing, sites, steady_rates
from celery_trace.probes.plan import FAST_CENSUS_RUNS, Services

#: Censused runs that settle a doubt: more than the period of most buffers that are flushed when full.
_DOUBTED_RUNS = 60

#: A verdict needs growth that is still at least this share of what it was: a cache that fills slows down.
_STILL_GROWING = 0.5

#: And a verdict against it needs less than this share of what it was, over all the runs between.
_AS_BEFORE = 0.75


class Step(StrEnum):
    """Where an investigation stands."""

    CENSUS = "census"
    LOCATE = "locate"
    DEEPER = "deeper"
    WAIT = "wait"
    RECENSUS = "recensus"
    RELOCATE = "relocate"
    OVER = "over"


class Investigation:
    """
    The evidence about one name in one process.

    The probe asks :attr:`window` before a run whether it is to be examined, calls that window around the run, then
    :meth:`advance`. ``over`` says that there is nothing to look for any more.
    """

    def __init__(self, services: Services, kind: Kind, name: str, *, run_number: int, rare: bool, mean: Kept) -> None:
        self._services = services
        self._plan = services.plan
        self.kind = kind
        self.name = name
        self.rare = rare
        self.step = Step.CENSUS
        self.suspect_run = run_number
        self._due_run = 0
        self._interval = services.plan.recheck_runs
        earlier = services.lease.note(kind, name)
        if earlier is not None and (earlier.fleet != services.fleet or earlier.process == services.process):
            earlier = None
        self._earlier = earlier
        self._progress_run = 0
        self.id = earlier.investigation if earlier is not None else new_id()
        self.window: CensusWindow | LocateWindow | None = self._census()
        self._holding = Holding(services.own, rare=rare)
        self._extra_runs = 0
        self._kept: Kept | None = None  # a run's growth by the first census, median or (when rare) mean
        self._meanwhile: Kept | None = None  # a run's growth by the gate, over all runs since the suspicion
        self._doubted = False
        self._evidence: list[TracedChange] = []
        self._deep_evidence = False
        self._native = False  # the first look found memory that no line accounts for
        self._bytes_repeat = False
        self._sites: list[Site] = []
        self._decided: Verdict | None = None
        self._write(Stage.SUSPECT, Verdict.SUSPECT, runs=0, run_number=run_number, kept=mean)
        self._leave_word(0)
        if earlier is not None and earlier.stage == "growing":
            self._kept = Kept(earlier.kept_blocks, earlier.kept_bytes)
            self._locate_or_wait()

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.step is Step.OVER

    @property
    def verdict(self) -> Verdict | None:
        """The last verdict, if there was one."""
        return self._decided

    def wants(self, run_number: int) -> bool:
        """Whether the run that is about to start is to be examined."""
        if self.step is Step.WAIT and run_number >= self._due_run:
            self.step = Step.RECENSUS
            self.window = self._census()
        return self.window is not None

    def _census(self) -> CensusWindow:
        services = self._services
        runs = self._plan.census_runs
        if self._earlier is not None:
            runs = min(runs, FAST_CENSUS_RUNS)  # other processes have seen it already
        return CensusWindow(runs, services.blocks, services.live_bytes)

    # --- after each examined run -------------------------------------------------------------------------

    def advance(self, run_number: int) -> None:
        """Take what the window has gathered; when it is complete, conclude and go to the next step."""
        window = self.window
        if isinstance(window, CensusWindow):
            self._holding.watch(window, first=self.step is Step.CENSUS)
            if not window.enough:
                return
            if self.rare and self._more_rare_runs(window):
                window.wanted += 1
                return
            shown = window.kept[-1].grew and self._holding.compares
            if window.before_last is not None and not shown and self._extra_runs < 4:
                self._extra_runs += 1
                window.wanted += 1  # the run that was to show what grows kept nothing, or the one before it did
                return
            self._conclude_census(window, run_number)
        elif isinstance(window, LocateWindow) and window.enough:
            self._conclude_locate(window, run_number)

    def _more_rare_runs(self, window: CensusWindow) -> bool:
        hits = sum(kept.grew for kept in window.kept)
        return hits < 3 and len(window.kept) < self._plan.rare_census_runs

    def _conclude_census(self, window: CensusWindow, run_number: int) -> None:
        started_s = self._services.clock.monotonic_s()
        self.window = None
        runs = len(window.kept)
        hits = sum(kept.grew for kept in window.kept)
        if self.rare or self._doubted:
            growing = hits >= 2 and (self.rare or hits >= 0.75 * runs)
            kept = window.usual(statistics.fmean)
        else:
            growing = hits >= 0.75 * runs
            kept = window.usual()
        if growing:
            # Like with like: from beginning to beginning as much is in flight, so what only is so adds up to nothing.
            growing = window.repeats(kept, first=self.rare)
            self._bytes_repeat = window.repeats(Kept(0, kept.bytes), first=self.rare)
        if self.step is Step.RECENSUS and self._kept is not None:
            growing = growing and kept.weight >= _STILL_GROWING * self._kept.weight
            if not self.rare and self._in_doubt(window, self._kept, growing=growing):
                return
        if growing and not (self.step is Step.CENSUS and kept.is_slight):
            self._holding.name(window, kept)
        window.release()
        took_s = self._services.clock.monotonic_s() - started_s
        if self.step is Step.CENSUS:
            self._after_first_census(kept, growing, runs, run_number, took_s)
        else:
            self._after_recensus(kept, growing, runs, run_number, took_s)

    def _in_doubt(self, window: CensusWindow, kept: Kept, *, growing: bool) -> bool:
        """
        Whether the gate saw much less growth over all the runs than the census in its few; or as much, and it none.

        In the first case something grows and is given back, again and again, and the census goes on until it has seen
        that; or it was only the garbage of other tasks, which the gate counts in whichever run the collector clears it
        away. In the second a cache filled just now; or these few runs were no fair sample, as where the C allocator
        hands out blocks that another task has freed, which no counter sees.
        """
        if self._doubted or self._meanwhile is None:
            return False
        grew_meanwhile = self._meanwhile.weight >= (_STILL_GROWING if growing else _AS_BEFORE) * kept.weight
        if grew_meanwhile is growing:
            return False
        self._doubted = True
        self.window = window
        window.wanted += _DOUBTED_RUNS
        return True

    # --- what follows from what --------------------------------------------------------------------------

    def _after_first_census(self, kept: Kept, growing: bool, runs: int, run_number: int, took_s: float) -> None:
        if not growing:
            self.step = Step.OVER
            self._decided = Verdict.STEADY
            self._services.lease.leave(self.kind, self.name, None)
            note = "what grew was garbage, or is replaced by the next run"
            self._write(Stage.CENSUS, Verdict.STEADY, runs=runs, run_number=run_number, kept=kept, note=note)
            return
        self._kept = kept
        self._holding.watch_caches(run_number)
        self._write(Stage.CENSUS, Verdict.GROWING, runs=runs, run_number=run_number, kept=kept, took_s=took_s)
        earlier = self._earlier
        if earlier is not None and earlier.stage != "decided" and self._jointly_proven(earlier):
            self._decide(run_number)
            return
        self._leave_word(run_number)
        if earlier is not None and earlier.stage in ("located", "decided"):
            self._wait()  # the line is known from another process
        else:
            self._locate_or_wait()

    def _locate_or_wait(self) -> None:
        if self._may_trace():
            self.step = Step.LOCATE
            self.window = LocateWindow(self._plan.rare_locate_runs if self.rare else self._plan.locate_runs, 1)
        else:
            self._wait()

    def _jointly_proven(self, earlier: Note) -> bool:
        """Several processes saw it grow up to their end, over as many runs as one would have waited."""
        return earlier.processes >= 3 and earlier.runs >= self._plan.recheck_runs

    def progress(self, run_number: int, gate: Gate) -> None:
        """While it waits: leave word of the growth that the gate goes on seeing, as the process may end any time."""
        if self.step is Step.WAIT and gate.seen >= 10:
            blocks, live_bytes = gate.mean
            self._meanwhile = Kept(round(blocks), round(live_bytes))
        if self.step is not Step.WAIT or self._decided is not None or run_number < self._progress_run:
            return
        since = run_number - self.suspect_run
        self._progress_run = run_number + 10
        if gate.recent_share < 0.6 and not self.rare:
            return
        self._leave_word(run_number)
        if since // 10 in (3, 6):
            self._write(
                Stage.CENSUS,
                Verdict.GROWING,
                runs=since,
                run_number=run_number,
                kept=self._kept or NOTHING_KEPT,
                note="still growing, on the way to a verdict",
            )

    def _leave_word(self, run_number: int) -> None:
        lease, earlier = self._services.lease, self._earlier
        stage = "located" if self._sites else "growing" if self._kept else "suspect"
        runs, processes = max(0, run_number - self._plan.gate.warm_up), 1
        if earlier is not None:
            runs, processes = earlier.runs + runs, earlier.processes + 1
            stage = max(stage, earlier.stage, key=STAGES.index)
        if self._decided is Verdict.LEAKING:
            stage = "decided"
        note = self._word()
        if note is not None:
            # Another process of the fleet may have come further meanwhile.
            runs, processes = max(runs, note.runs), max(processes, note.processes)
            stage = max(stage, note.stage, key=STAGES.index)
        kept = self._kept or NOTHING_KEPT
        lease.leave(
            self.kind,
            self.name,
            Note(
                investigation=self.id,
                fleet=self._services.fleet,
                process=self._services.process,
                at_s=self._services.clock.now_s(),
                stage=stage,
                runs=runs,
                processes=processes,
                kept_blocks=kept.blocks,
                kept_bytes=kept.bytes,
                bounded=self._bound(),
            ),
        )

    def _word(self) -> Note | None:
        """What a process of this worker left last about the name."""
        note = self._services.lease.note(self.kind, self.name)
        return note if note is not None and note.fleet == self._services.fleet else None

    def _bound(self) -> str:
        """
        What holds the growth and has a bound; empty where nothing is known to.

        Which sample leads to a root is chance, so where none did here, the word of an earlier process counts.
        """
        holding = self._holding
        if holding.bounded or holding.is_rooted:
            return holding.bounded
        return next((one.bounded for one in (self._word(), self._earlier) if one is not None and one.bounded), "")

    def _may_trace(self) -> bool:
        return not Tracing.too_much_foreign() and self._services.lease.acquire(self.kind, self.name)

    def _conclude_locate(self, window: LocateWindow, run_number: int) -> None:
        evidence = window.evidence(self._services.own)
        window.abandon()
        self.window = None
        rates = steady_rates(evidence, rare=self.rare)
        own = self._services.own
        if window.nframe == 1 and not (rates and own(rates[0].frames[0][0])) and (rates or not window.together):
            self.step = Step.DEEPER if self.step is Step.LOCATE else Step.RELOCATE
            self.window = LocateWindow(window.wanted, self._plan.deep_nframe)
            return
        deep = window.nframe > 1
        if deep != self._deep_evidence:
            self._evidence = []
            self._deep_evidence = deep
        again = self.step is Step.RELOCATE
        native = self._note_native(rates, run_number)
        if not self._accounts_for_it(rates) or (not window.together and self._too_much(rates)):
            rates = []
        if not rates and not native and (again or not self.rare):
            self._steady(run_number, "what grew is in flight, or replaced: no line keeps anything from run to run")
            return
        self._evidence += evidence
        self._sites = sites(steady_rates(self._evidence, rare=self.rare) or rates, own)
        if again:
            self._decide(run_number)
            return
        kept = self._kept or NOTHING_KEPT
        self._write(Stage.LOCATED, Verdict.GROWING, runs=len(evidence), run_number=run_number, kept=kept, rates=rates)
        self._leave_word(run_number)
        self._services.lease.release(self.kind, self.name)
        self._wait()

    def _accounts_for_it(self, rates: list[Rate]) -> bool:
        """
        Whether the lines keep as much as makes a run grow at all, and at least half of what the census counted.

        Crumbs that happen to add up over a short window are no leak.
        """
        if self.rare or self._kept is None:
            return True
        kept_bytes = sum(rate.bytes for rate in rates)
        kept_blocks = sum(rate.blocks for rate in rates)
        if kept_bytes < GROWN_BYTES and kept_blocks < GROWN_BLOCKS:
            return False
        return kept_blocks >= 0.5 * self._kept.blocks or kept_bytes >= 0.5 * self._kept.weight

    def _too_much(self, rates: list[Rate]) -> bool:
        """Whether runs that were traced one by one show much more than stays: a value that is replaced."""
        kept = self._kept or NOTHING_KEPT
        small = sum(rate.small_blocks for rate in rates)
        large = sum(rate.large_bytes for rate in rates)
        return small > 1.5 * kept.blocks + 8 or large > 1.5 * kept.bytes + 2048

    def _steady(self, run_number: int, note: str) -> None:
        self.step = Step.OVER
        self._decided = Verdict.STEADY
        self._services.lease.release(self.kind, self.name)
        self._services.lease.leave(self.kind, self.name, None)
        self._write(
            Stage.VERDICT, Verdict.STEADY, runs=0, run_number=run_number, kept=self._kept or NOTHING_KEPT, note=note
        )

    def _note_native(self, rates: list[Rate], run_number: int) -> bool:
        """The C allocator grows by what no traced line accounts for: some library's own memory."""
        if self._kept is None:
            return False
        untraced = self._kept.bytes - sum(rate.large_bytes for rate in rates)
        again = self.step is Step.RELOCATE
        if untraced < max(1024, 0.5 * self._kept.bytes) or not self._bytes_repeat or (again and not self._native):
            return False
        self._native = True
        verdict = Verdict.LEAKING if again else Verdict.GROWING
        self._write(
            Stage.NATIVE,
            verdict,
            runs=self._plan.census_runs,
            run_number=run_number,
            kept=Kept(0, round(untraced)),
            native="malloc",
            note="allocated by C code, which Python's tracing does not see",
        )
        return True

    def _wait(self) -> None:
        self.step = Step.WAIT
        self.window = None
        self._due_run = self.suspect_run + self._interval

    def _after_recensus(self, kept: Kept, growing: bool, runs: int, run_number: int, took_s: float) -> None:
        if not growing:
            self.step = Step.OVER
            self._decided = Verdict.STEADY
            self._services.lease.release(self.kind, self.name)
            self._services.lease.leave(self.kind, self.name, None)
            note = "it grew and has stopped growing: a cache that filled, or a leak that was mended"
            self._write(
                Stage.VERDICT, Verdict.STEADY, runs=runs, run_number=run_number, kept=kept, note=note, took_s=took_s
            )
            return
        self._kept = kept
        if self._decided is None and not (self.rare and self._sites) and self._may_trace():
            self.step = Step.RELOCATE
            nframe = self._plan.deep_nframe if self._deep_evidence else 1
            wanted = self._plan.rare_locate_runs if self.rare else self._plan.locate_runs
            self.window = LocateWindow(wanted, nframe)
        else:
            self._decide(run_number)

    def _decide(self, run_number: int) -> None:
        self._holding.find_filling_cache(run_number)
        bounded = self._bound()
        self._decided = Verdict.GROWING if bounded or not self._is_located() else Verdict.LEAKING
        rates = steady_rates(self._evidence, rare=self.rare)
        self._write(
            Stage.VERDICT,
            self._decided,
            runs=run_number - self.suspect_run,
            run_number=run_number,
            kept=self._kept or NOTHING_KEPT,
            rates=rates,
            note=f"held by something with a bound: {bounded}" if bounded else "",
        )
        self._services.lease.release(self.kind, self.name)
        if self._decided is Verdict.LEAKING:
            self._leave_word(run_number)
        self.suspect_run = run_number
        self._interval = min(self._interval * 2, 4_000)
        self._wait()

    def _is_located(self) -> bool:
        """Whether a line is known that keeps something, here or in another process."""
        if self._sites:
            return True
        note = self._services.lease.note(self.kind, self.name) or self._earlier
        return note is not None and note.stage in ("located", "decided")

    def abandon(self) -> None:
        """The process ends, or runs overlap: switch everything off."""
        if self.window is not None:
            self.window.abandon()
        self._services.lease.release(self.kind, self.name)

    def _write(
        self,
        stage: Stage,
        verdict: Verdict,
        *,
        runs: int,
        run_number: int,
        kept: Kept,
        rates: list[Rate] | None = None,
        native: str = "",
        note: str = "",
        took_s: float = 0.0,
    ) -> None:
        grows = verdict in (Verdict.GROWING, Verdict.LEAKING)
        kept_bytes = float(kept.bytes if native else kept.weight)
        kept_blocks = float(kept.blocks)
        if rates:
            kept_bytes = sum(rate.bytes for rate in rates)
            kept_blocks = sum(rate.blocks for rate in rates)
        self._services.emit(
            Window(
                id=new_id(),
                investigation=self.id,
                process=self._services.process,
                kind=self.kind,
                name=self.name,
                stage=stage,
                verdict=verdict,
                at_s=self._services.clock.now_s(),
                runs=runs,
                run_number=run_number,
                kept_blocks_per_run=kept_blocks,
                kept_bytes_per_run=kept_bytes,
                sites=self._sites if grows and not native else [],
                types=self._holding.types if grows and not native else [],
                retained_by=self._holding.retention.path if grows and not native else [],
                bounded=self._bound() if grows and not native else "",
                native=native,
                note=note or (self._holding.retention.note if grows and not native else ""),
                took_s=took_s,
            )
        )
