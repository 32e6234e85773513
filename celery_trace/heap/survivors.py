"""
Survivors by line and age: what the looks at the sampled heap say, added up over a process's life.

A look sees every pick that is alive. A pick counts once some runs of its task have begun after it; until then it may
be in flight. What counts is attributed to a place, its line in the user's code, and split by the run that it was
born in: a leak leaves survivors of all times, a cache that has filled only old ones, a queue only young ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from celery_trace.heap.sampler import Pick
from celery_trace.model import Evidence

#: The usual number of runs of the same task that have to begin after an allocation before it counts.
IN_FLIGHT_RUNS: Final = 3

#: What is released is compared with what is born over the last few looks; the weight of a look after each further one.
_FADING: Final = 0.8

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
    )


class _Turnover(Struct):
    """What began to count lately and what was freed, bytes; older looks fade."""

    born: float = 0.0
    died: float = 0.0

    def look(self, born: float, died: float) -> None:
        """Add what a look has seen."""
        if born:
            self.born *= _FADING
            self.died *= _FADING
        self.born += born
        self.died += died

    @property
    def released(self) -> float:
        """The share of what was born that was freed."""
        return min(1.0, self.died / self.born) if self.born else float(self.died > 0)


class _Site(Struct):
    """One site in this process."""

    begin: int  # the run from which on births are compared
    turnover: _Turnover
    resized: _Turnover  # of blocks that were resized: one that grows is freed and born each time
    past: Evidence = Evidence()  # of earlier stretches
    now: Evidence = Evidence()


class _Counted(NamedTuple):
    """A pick that counts, as the last look saw it."""

    key: Key
    weight: float
    resized: int


class HeapHistory:
    """
    The survivors of one process over its looks.

    Args:
        place_of: The place of a stack, by its number; None for what is not to be judged, such as our own work.
    """

    def __init__(self, place_of: Callable[[int], Place | None]) -> None:
        self._place_of = place_of
        self._sites: dict[Key, _Site] = {}
        self._counted: dict[int, _Counted] = {}  # by the serial of each pick that counts
        self._began: dict[int, int] = {}  # tag: its runs when this stretch began

    def begin(self, runs: Mapping[int, int]) -> None:
        """
        A stretch of sampling begins; what earlier ones found stays.

        Args:
            runs: How many runs of each tag have begun.
        """
        self._began = dict(runs)
        self._counted = {}
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
    ) -> None:
        """
        Take in what is alive.

        Args:
            picks: All picks.
            runs: How many runs of each tag have begun.
            collections: How many full garbage collections have ended.
            thinned: Whether the whole sample was thinned out since the last look, so that any pick may be gone unfreed.
            in_flight: Runs of the same task that have to begin after an allocation before it counts.
        """
        before, self._counted = self._counted, {}
        alive: dict[Key, list[Pick]] = defaultdict(list)
        born: dict[tuple[Key, int], float] = defaultdict(float)
        died: dict[tuple[Key, int], float] = defaultdict(float)
        thinned_out: set[Key] = set()  # a pick of theirs may be gone unfreed
        for pick in picks:
            known = before.pop(pick.serial, None)
            if known is not None:
                key = known.key
                if pick.weight != known.weight:
                    thinned_out.add(key)
            elif pick.run <= runs.get(pick.tag, 0) - in_flight:
                place = self._place_of(pick.stack)
                if place is None:
                    continue
                key = (pick.tag, place)
                born[key, pick.resized] += pick.weight
            else:
                continue
            self._counted[pick.serial] = _Counted(key, pick.weight, pick.resized)
            alive[key].append(pick)
        for gone in before.values():
            if not thinned and gone.key not in thinned_out:
                died[gone.key, gone.resized] += gone.weight
        for key, resized in born.keys() | died.keys():
            site = self._sites.get(key)
            if site is None:
                site = self._sites[key] = _Site(self._began.get(key[0], 0), _Turnover(), _Turnover())
            turnover = site.resized if resized else site.turnover
            turnover.look(born[key, resized], died[key, resized])
        for key, site in self._sites.items():
            site.now = _evidence(site, alive.get(key, []), runs.get(key[0], 0) - in_flight, collections)

    def evidence(self) -> dict[Key, Evidence]:
        """What is known of each site."""
        return {
            key: together((site.past, site.now)) if site.past.runs else site.now for key, site in self._sites.items()
        }

    def counted(self, key: Key) -> set[int]:
        """The serials of the picks of a site that are alive and count."""
        return {serial for serial, one in self._counted.items() if one.key == key}


def _evidence(site: _Site, picks: list[Pick], limit: int, collections: int) -> Evidence:
    """The evidence of one stretch: survivors that were born in the runs after ``site.begin``, up to ``limit``."""
    births = sorted({pick.run for pick in picks if site.begin < pick.run <= limit})
    if births and births[0] > site.begin + (limit - site.begin) // 2:
        # Nothing of the first half is alive: it began lately, or lives only so long. What is released tells which.
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
        released=(site.turnover if site.turnover.born or site.turnover.died else site.resized).released,
    )
