"""
Survivors by line and age: the looks at the sampled heap, added up over a process's life.

A look reads every live pick. A pick counts once some runs of its task have begun after it; until then it may be in
flight. It is attributed to its line in the user's code and to the run that it was born in: a leak leaves survivors of
all ages, a full cache only old ones, a queue only young ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from msgspec import Struct

from celery_trace.heap.growing_blocks import GrowingBlocks, is_part
from celery_trace.heap.picks import Pick
from celery_trace.heap.verdict import grows
from celery_trace.model import Evidence

#: The usual number of runs of the same task that have to begin after an allocation before it counts.
IN_FLIGHT_RUNS: Final = 3

#: Releases are compared with births over the last few looks; a look's weight is multiplied by this at each further one.
_FADING: Final = 0.8
#: The share of births from which blocks that were not resized are enough.
_MAIN_PART: Final = 0.25
#: Picks and sites that are processed without a pause, some tenths of a millisecond.
_SLICE: Final = 100
_SLICE_OF_SITES: Final = 10

#: The file and line that a pick is attributed to.
Place = tuple[str, int]
#: A tag and a place.
Key = tuple[int, Place]


def together(evidence: Iterable[Evidence]) -> Evidence:
    """The evidence of several stretches or processes as one."""
    rows = list(evidence)
    events = sum(row.events for row in rows)
    return Evidence(
        runs=sum(row.runs for row in rows),
        early=sum(row.early for row in rows),
        late=sum(row.late for row in rows),
        bytes=sum(row.bytes for row in rows),
        picks=sum(row.picks for row in rows),
        proved=sum(row.proved for row in rows),
        released=sum(row.released * row.events for row in rows) / events if events else 0.0,
        one_block=any(row.one_block for row in rows),
    )


class _Turnover(Struct):
    """Recent births and releases, bytes; older looks fade."""

    born: float = 0.0
    died: float = 0.0

    def look(self, born: float, died: float) -> None:
        """Add a look."""
        if born:
            self.born *= _FADING
            self.died *= _FADING
        self.born += born
        self.died += died


class _SiteHistory(Struct):
    """One site in this process."""

    begin: int  # the run from which on births are compared
    turnover: _Turnover
    resized: _Turnover  # of blocks that were resized: one that grows is freed and born each time
    past: Evidence = Evidence()  # of earlier stretches
    now: Evidence = Evidence()
    block: Evidence | None = None  # if it grows by one block

    def of_survivors(self) -> Evidence:
        """The evidence of all stretches, without that of one block."""
        return together((self.past, self.now)) if self.past.runs else self.now


class HeapHistory:
    """
    The survivors of one process over its looks.

    Args:
        place_of: The place of a stack, by its number; None if it is not judged, such as our own work.
        knows_blocks: Whether a pick has the address of its own block.
    """

    def __init__(self, place_of: Callable[[int], Place | None], *, knows_blocks: bool = True) -> None:
        self._place_of = place_of
        self._knows_blocks = knows_blocks
        self._sites: dict[Key, _SiteHistory] = {}
        # Each pick that counts, by serial: its site, weight and whether it was resized.
        self._counted: dict[int, tuple[Key, float, int]] = {}
        self._began: dict[int, int] = {}  # tag: its runs when this stretch began
        self._blocks: GrowingBlocks[Key] = GrowingBlocks()
        #: The picks that count, by site, at the last look; those of one block if it is what grows.
        self.alive: dict[Key, list[Pick]] = {}

    def begin(self, runs: Mapping[int, int]) -> None:
        """
        A stretch of sampling begins; the results of earlier ones are kept.

        Args:
            runs: How many runs of each tag have begun.
        """
        self._began = dict(runs)
        self._counted = {}
        self.alive = {}
        self._blocks.begin()
        for (tag, _), site in self._sites.items():
            site.past = together((site.past, site.now)) if site.past.runs else site.now
            site.now = Evidence()
            site.begin = runs.get(tag, 0)

    def look(
        self,
        picks: Iterable[Pick],
        runs: Mapping[int, int],
        collections: int,
        *,
        thinned: bool = False,
        in_flight: int = IN_FLIGHT_RUNS,
        breathe: Callable[[], object] = lambda: None,
    ) -> None:
        """
        Read the live picks.

        Args:
            picks: All picks.
            runs: How many runs of each tag have begun.
            collections: How many full garbage collections have ended.
            thinned: Whether the whole sample was thinned out since the last look: a missing pick need not be freed.
            in_flight: Runs of the same task that have to begin after an allocation before it counts.
            breathe: Called after each short piece of work, to yield to other threads.
        """
        before, self._counted = self._counted, {}
        alive: dict[Key, list[Pick]] = defaultdict(list)
        born: dict[tuple[Key, int], float] = defaultdict(float)
        died: dict[tuple[Key, int], float] = defaultdict(float)
        parts: dict[Key, list[Pick]] = defaultdict(list)
        thinned_out: set[Key] = set()  # their missing picks need not be freed
        for number, pick in enumerate(picks, 1):
            if not number % _SLICE:
                breathe()
            if self._knows_blocks and is_part(pick) and (place := self._place_of(pick.stack)) is not None:
                parts[pick.tag, place].append(pick)
            known = before.pop(pick.serial, None)
            if known is not None:
                key, weight, _ = known
                if pick.weight != weight:
                    thinned_out.add(key)
            elif pick.run <= runs.get(pick.tag, 0) - in_flight:
                place = self._place_of(pick.stack)
                if place is None:
                    continue
                key = (pick.tag, place)
                born[key, pick.resized] += pick.weight
            else:
                continue
            self._counted[pick.serial] = (key, pick.weight, pick.resized)
            alive[key].append(pick)
        self.alive = dict(alive)
        for key, weight, resized in before.values():
            if not thinned and key not in thinned_out:
                died[key, resized] += weight
        for key, resized in born.keys() | died.keys():
            site = self._site(key)
            turnover = site.resized if resized else site.turnover
            turnover.look(born[key, resized], died[key, resized])
        for number, (key, site) in enumerate(self._sites.items(), 1):
            if not number % _SLICE_OF_SITES:
                breathe()
            site.now = _evidence(site, alive.get(key, []), runs.get(key[0], 0) - in_flight, collections)
        self._blocks.look(parts, lambda key: runs.get(key[0], 0))
        self._judge_blocks()

    def _judge_blocks(self) -> None:
        """See which sites grow by one block."""
        for site in self._sites.values():
            site.block = None
        for key in self._blocks.grown():
            block = self._blocks.main(key, self.alive.get(key, []))
            if block is None:
                continue
            evidence, site = block.evidence(), self._site(key)
            if grows(evidence) > grows(site.of_survivors()):
                site.block = evidence
                self.alive[key] = block.picks or self.alive.get(key, [])

    def _site(self, key: Key) -> _SiteHistory:
        site = self._sites.get(key)
        if site is None:
            site = self._sites[key] = _SiteHistory(self._began.get(key[0], 0), _Turnover(), _Turnover())
        return site

    def evidence(self) -> dict[Key, Evidence]:
        """The evidence of each site."""
        return {key: site.block or site.of_survivors() for key, site in self._sites.items()}


def _released(site: _SiteHistory) -> float:
    """
    The share of recent births that was freed, from 0 to 1.

    A list that grows is freed and born each time, so resized blocks count only if there are few others.
    """
    born, died = site.turnover.born, site.turnover.died
    if born < _MAIN_PART * (born + site.resized.born):
        born, died = born + site.resized.born, died + site.resized.died
    return min(1.0, died / born) if born else float(died > 0)


def _evidence(site: _SiteHistory, picks: list[Pick], limit: int, collections: int) -> Evidence:
    """The evidence of one stretch: survivors that were born in the runs after ``site.begin``, up to ``limit``."""
    births = sorted({pick.run for pick in picks if site.begin < pick.run <= limit})
    if births and births[0] > site.begin + (limit - site.begin) // 2:
        # Nothing of the first half is alive: it began recently, or lives only so long. Releases show which.
        site.begin = births[0] - 1
    middle = site.begin + (limit - site.begin) // 2
    picks = [pick for pick in picks if site.begin < pick.run <= limit]
    proved = {pick.run for pick in picks if pick.collections < collections}
    return Evidence(
        runs=max(0, limit - site.begin),
        early=sum(run <= middle for run in births),
        late=sum(run > middle for run in births),
        bytes=sum(pick.weight for pick in picks),
        picks=len(picks),
        proved=len(proved),
        released=_released(site),
    )
