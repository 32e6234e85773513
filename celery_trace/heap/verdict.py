"""
The verdict on one site, by survivors, holder and time. Pure functions of :class:`Evidence`.

A leak leaves survivors at an even rate and they are not released. Two hypotheses are tested by the binomial
distribution: that births have almost stopped (a full cache), and that early survivors are almost gone (a queue, a
ring). A site that passes both grows. Whether it leaks depends on the holder, as a cache that still fills looks the same
until it is full.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

from celery_trace.model import EntryGrowth, Evidence, Holder, Verdict
from celery_trace.text.format import percent, size

#: Fewer observed runs get no verdict; the second is for runs that retain much.
FEWEST_RUNS: Final = 10
FEWEST_LARGE_RUNS: Final = 4
LARGE_BYTES: Final = 2**20
#: A half of the runs with fewer than this share of the births has almost none.
ALL_BUT_NONE: Final = 0.2
#: Where each run has retained something, a half has almost none if a smaller share of its runs has.
FEW_OF_ALL: Final = ALL_BUT_NONE / (1 - ALL_BUT_NONE)
#: From this confidence on a site grows, and from the next on it is a leak if its holder has no bound.
GROWS: Final = 0.9
LEAKS: Final = 0.95
#: Runs from suspicion to leak, unless set otherwise; and the observed runs by then, as a suspicion takes some too.
LEAST_RUNS: Final = 120
_WITH_SUSPICION: Final = 1.25
#: With so much held, it does not wait for that many runs: the process may be killed before (bytes).
HUGE_BYTES: Final = 64 * 2**20
#: Nor if so many runs have each retained something, and so much on average.
FEWEST_HUGE_RUNS: Final = 6
HUGE_BYTES_PER_RUN: Final = 6 * 2**20
#: Births decline, as in a table that fills with keys, if even births would look like that in fewer cases than this.
FALLS_OFF: Final = 0.05
#: The same if the holder gains entries steadily, which this site may not have allocated.
FALLS_OFF_THOUGH_STEADY: Final = 0.01
#: A container gains fewer entries if the difference of both halves is so many standard deviations; and the variance of
#: a position between two known ones.
SLOWS: Final = 1.0
ROUNDING: Final = 1.0
#: Dicts, lists, small tuples and floats come from free lists: one that was allocated at this line may be in use
#: elsewhere by now. A site that retains less than this per run, mostly of those, is not called a leak (bytes).
RECYCLED_BYTES: Final = 1024
#: Why a site is steady whose blocks have become another task's objects.
REUSED: Final = "small objects are reused: what its holder has was made by another task"
#: Without a holder it takes this confidence and so many events, some of which have survived a full collection.
LEAKS_WITHOUT_HOLDER: Final = 0.995
EVENTS_WITHOUT_HOLDER: Final = 20
PROVED: Final = 5
IN_A_FRAME: Final = "held by a function in progress"
#: Recent releases as a share of recent births: up to the first it may be a leak, from the second on it is not.
FEW_RELEASED: Final = 0.25
MANY_RELEASED: Final = 0.5


class Judgement(Struct, frozen=True):
    """A verdict with its reason and confidence."""

    verdict: Verdict
    confidence: float  # 0 to 1, that the site grows
    why: str
    waits_for: str = ""  # "" once decided


def at_most(successes: int, trials: int, chance: float) -> float:
    """The probability of at most so many successes: the cumulative binomial distribution."""
    if successes >= trials:
        return 1.0
    if trials > 400:  # the normal approximation with continuity correction
        deviation = math.sqrt(trials * chance * (1 - chance))
        return 0.5 * math.erfc((trials * chance - successes - 0.5) / (deviation * math.sqrt(2)))
    terms = (math.comb(trials, hits) * chance**hits * (1 - chance) ** (trials - hits) for hits in range(successes + 1))
    return min(1.0, math.fsum(terms))


def goes_on(evidence: Evidence) -> float:
    """The confidence that births go on: against the hypothesis that fewer than a fifth fell into the second half."""
    return _against_almost_none(evidence.late, evidence)


def stays(evidence: Evidence) -> float:
    """The confidence that early survivors stay: against the hypothesis that less than a fifth are early ones."""
    return _against_almost_none(evidence.early, evidence)


def _against_almost_none(of_a_half: int, evidence: Evidence) -> float:
    """The confidence that a half of the runs has more than almost none of the events."""
    if not of_a_half:
        return 0.0
    confidence = at_most(of_a_half - 1, evidence.events, ALL_BUT_NONE)
    if retains_in_each_run(evidence):  # that no run was without is evidence, too
        confidence = max(confidence, 1.0 - FEW_OF_ALL**of_a_half)
    return confidence


def retains_in_each_run(evidence: Evidence) -> bool:
    """Whether all observed runs have retained something."""
    return 0 < evidence.runs <= evidence.events


def grows(evidence: Evidence) -> float:
    """The confidence that a site grows: births go on, early survivors stay, and little is released."""
    return min(goes_on(evidence), stays(evidence)) * (1.0 - max(0.0, evidence.released - FEW_RELEASED))


def falls_off(evidence: Evidence, entries: EntryGrowth | None = None) -> bool:
    """
    Whether clearly fewer births fell into the second half of the runs than into the first.

    Args:
        evidence: Of the site.
        entries: Those that its holder has gained, which are counted exactly.
    """
    if entries is None:
        return at_most(evidence.late, evidence.events, 0.5) < FALLS_OFF
    return slows(entries) or at_most(evidence.late, evidence.events, 0.5) < FALLS_OFF_THOUGH_STEADY


def slows(entries: EntryGrowth) -> bool:
    """
    Whether a container has gained fewer entries in the second half of the runs than in the first.

    Each run adds one entry, or so many at most, if its key is new: a binomial distribution. A leak that adds one in
    each run varies by nothing, so that even a small difference shows.
    """
    chances = entries.runs / 2 * math.ceil(2 * max(entries.early, entries.late) / entries.runs)
    variance = sum(half * (1 - half / chances) for half in (entries.early, entries.late)) if chances else 0.0
    return entries.early - entries.late > SLOWS * math.sqrt(variance + ROUNDING)


def judge(evidence: Evidence, holder: Holder = Holder(), *, least_runs: int = LEAST_RUNS) -> Judgement:  # noqa: B008 - frozen
    """
    The verdict on one site.

    Args:
        evidence: Of one process, or of several :func:`~celery_trace.heap.survivors.together`.
        holder: What keeps the survivors alive, as far as it was searched.
        least_runs: Runs between a suspicion and growth being called a leak; a buffer that fills and is emptied in
            fewer runs would be taken for one.
    """
    least_runs = _least_runs(evidence, least_runs)
    fewest = FEWEST_LARGE_RUNS if evidence.bytes_per_run >= LARGE_BYTES else FEWEST_RUNS
    if evidence.runs < fewest:
        return Judgement(
            Verdict.TOO_FEW_RUNS, 0.0, f"{evidence.runs} runs observed", f"{fewest - evidence.runs} more runs"
        )
    confidence = grows(evidence)
    seen = _seen(evidence)
    if evidence.events < 3:
        return Judgement(Verdict.STEADY, confidence, seen)
    if evidence.released >= MANY_RELEASED:
        return Judgement(Verdict.STEADY, confidence, f"{percent(evidence.released)} of it is released again")
    if confidence < GROWS:
        return _undecided(evidence, confidence, seen)
    by_holder = _by_its_holder(holder, confidence, seen)
    if by_holder is not None:
        return by_holder
    missing = _missing_of_its_holder(evidence, holder)
    if missing:
        return Judgement(Verdict.SUSPECT, confidence, f"{seen}, {holder.why or IN_A_FRAME}", missing)
    if evidence.released > FEW_RELEASED:
        return Judgement(Verdict.GROWING, confidence, f"{seen}, {percent(evidence.released)} is released", "more runs")
    if holder.recycled and evidence.bytes_per_run < RECYCLED_BYTES:
        why = f"{seen}, but small objects are reused, so that another line may keep them"
        return Judgement(Verdict.GROWING, confidence, why, "larger objects")
    if evidence.runs < least_runs:
        return Judgement(Verdict.GROWING, confidence, seen, f"{least_runs - evidence.runs} more runs")
    if confidence < _needed(holder):
        return Judgement(Verdict.GROWING, confidence, seen, "more runs")
    if falls_off(evidence, holder.entries):
        return Judgement(Verdict.GROWING, confidence, f"{seen}, fewer and fewer recently", "more runs")
    if holder.outdated:
        return Judgement(Verdict.GROWING, confidence, seen, "another search for its holder")
    return Judgement(Verdict.LEAKING, confidence, seen if holder.path else f"{seen}, {holder.why}")


def _by_its_holder(holder: Holder, confidence: float, seen: str) -> Judgement | None:
    """The verdict on a site that grows, where its holder alone decides; None if it does not."""
    if holder.bound and holder.full:
        return Judgement(Verdict.STEADY, confidence, f"held by a full {holder.bound}")
    if holder.bound:
        return Judgement(Verdict.GROWING, confidence, f"{seen}, held by {holder.bound}", "the holder to fill")
    if not holder.searched:
        return Judgement(Verdict.SUSPECT, confidence, seen, "the search for its holder")
    return Judgement(Verdict.STEADY, confidence, REUSED) if holder.of_another_task else None


def _seen(evidence: Evidence) -> str:
    if evidence.one_block:
        return f"one block has grown by {size(evidence.bytes)} in {evidence.runs} runs"
    return f"memory of {evidence.events} of {evidence.runs} runs is still alive"


def _lasts(holder: Holder) -> bool:
    """Whether something holds it that is not just a function in progress, as that is true of what each run builds."""
    return bool(holder.path) and not holder.path[0].endswith("(frame)")


def _needed(holder: Holder) -> float:
    """The confidence from which growth is a leak: less if the holder's entries, which are exact, confirm it."""
    if not holder.path:
        return LEAKS_WITHOUT_HOLDER
    return GROWS if holder.entries is not None and not slows(holder.entries) else LEAKS


def _missing_of_its_holder(evidence: Evidence, holder: Holder) -> str:
    """What else it takes if no holder was found, or not one that lasts; empty if nothing."""
    if evidence.one_block:
        return "" if _lasts(holder) else "a holder"
    if not (holder.path or holder.outside) and evidence.proved < PROVED:
        return "a full garbage collection"
    if not holder.path and evidence.events < EVENTS_WITHOUT_HOLDER:
        return f"{EVENTS_WITHOUT_HOLDER - evidence.events} more such runs"
    return ""


def _least_runs(evidence: Evidence, least_runs: int) -> int:
    """The observed runs before growth is called a leak: less for one that may end the process."""
    if evidence.bytes_per_run >= HUGE_BYTES_PER_RUN and retains_in_each_run(evidence):
        return FEWEST_HUGE_RUNS
    return FEWEST_RUNS if evidence.bytes >= HUGE_BYTES else round(_WITH_SUSPICION * least_runs)


def _undecided(evidence: Evidence, confidence: float, seen: str) -> Judgement:
    """Not enough evidence of growth."""
    enough = evidence.events >= 8
    if enough and goes_on(evidence) < 1 - GROWS:
        return Judgement(Verdict.STEADY, confidence, "growth has stopped")
    if enough and stays(evidence) < 1 - GROWS:
        return Judgement(Verdict.STEADY, confidence, "only recent memory is alive")
    # Even births of n events reach a confidence of 0.9 with some seven, as (4, 3) of 7.
    return Judgement(Verdict.SUSPECT, confidence, seen, f"{max(1, 8 - evidence.events)} more such runs")
