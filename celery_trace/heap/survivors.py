"""
Survivors by line and age: what the looks at the sampled heap say, added up over a process's life.

A look sees every pick that is alive. A pick counts once some runs of its task have begun after it; until then it may
be in flight. What counts is attributed to a place, its line in the user's code, and split by the run that it was
born in: a leak leaves survivors of all times, a cache that has filled only old ones, a queue only young ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

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


class _Site(Struct):
    """One site in this process."""

    begin: int  # the run from which on births are compared
    born: float = 0.0  # bytes that began to count lately, older looks fading
    died: float = 0.0  # bytes that were freed lately
    past: Evidence = Evidence()  # of earlier stretches
    now: Evidence = Evidence()


class HeapHistory:
    """
    The survivors of one process over its looks.

    Args:
        place_of: The place of a stack, by its number; None for what is not to be judged, such as our own work.
    """

    def __init__(self, place_of: Callable[[int], Place | None]) -> None:
        self._place_of = place_of
        self._sites: dict[Key, _Site] = {}
        self._counted: dict[int, tuple[Key, float]] = {}  # serial of each pick that counts: where, and its weight
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
            thinned: Whether the sample was thinned out since the last look, so that a pick may be gone unfreed.
            in_flight: Runs of the same task that have to begin after an allocation before it counts.
        """
        before, self._counted = self._counted, {}
        alive: dict[Key, list[Pick]] = defaultdict(list)
        born: dict[Key, float] = defaultdict(float)
        for pick in picks:
            known = before.pop(pick.serial, None)
            if known is not None:
                key = known[0]
            elif pick.run <= runs.get(pick.tag, 0) - in_flight:
                place = self._place_of(pick.stack)
                if place is None:
                    continue
                key = (pick.tag, place)
                born[key] += pick.weight
            else:
                continue
            self._counted[pick.serial] = (key, pick.weight)
            alive[key].append(pick)
        died: dict[Key, float] = defaultdict(float)
        if not thinned:
            for key, weight in before.values():
                died[key] += weight
        for key, weight in born.items():
            site = self._sites.setdefault(key, _Site(begin=self._began.get(key[0], 0)))
            site.born = site.born * _FADING + weight
            site.died = site.died * _FADING + died.pop(key, 0.0)
        for key, weight in died.items():
            self._sites[key].died += weight
        for key, site in self._sites.items():
            site.now = _evidence(site, alive.get(key, []), runs.get(key[0], 0) - in_flight, collections)

    def evidence(self) -> dict[Key, Evidence]:
        """What is known of each site."""
        return {
            key: together((site.past, site.now)) if site.past.runs else site.now for key, site in self._sites.items()
        }

    def counted(self, key: Key) -> set[int]:
        """The serials of the picks of a site that are alive and count."""
        return {serial for serial, (of, _) in self._counted.items() if of == key}


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
        released=min(1.0, site.died / site.born) if site.born else float(site.died > 0),
    )
