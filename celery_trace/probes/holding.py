"""
What grew in one name's runs and what keeps it: gathered from the survivors of its censuses.

Survivors that the collector knows are named by type and walked up to their root. What it does not know (texts,
bytes) is found by the containers that grew. Where neither leads to a root, caches with a bound that took the
entries in are looked for, so that a cache which is still filling is not taken for a leak.
"""

from __future__ import annotations

from celery_trace.model import TypeCount
from celery_trace.probes.census import CensusWindow, Kept, count_types, is_machinery, size_of, type_name
from celery_trace.probes.retention import BoundedCaches, Lengths, Retention, content_types, measure, who_retains
from celery_trace.probes.source import OwnCode

#: The walk to what retains it may take so long, seconds.
_RETENTION_S = 0.12

#: How the root of a path is marked that says for sure what holds the growth.
_ROOTS = ("(module)", "(class)", "(thread)")

#: A cache has taken the growth in when it gained so many entries a run; the second where most runs keep nothing.
_ENTRIES_A_RUN = 0.5
_ENTRIES_A_RARE_RUN = 0.05


class Holding:
    """
    The holder of one name's growth, as far as it is known. Used by one thread at a time.

    Args:
        own: Which files are the user's.
        rare: Whether most runs of the name keep nothing.
    """

    def __init__(self, own: OwnCode, *, rare: bool) -> None:
        self.types: list[TypeCount] = []
        self.retention = Retention([], "", "")
        self._own = own
        self._rare = rare
        self._lengths: Lengths | None = None
        self._looked = 0
        self._caches: BoundedCaches | None = None

    @property
    def bounded(self) -> str:
        """The bound of what holds it; empty where it has none or is not known."""
        return self.retention.bounded

    @property
    def is_rooted(self) -> bool:
        """Whether the path starts at something that surely lives as long as the process."""
        path = self.retention.path
        return bool(path) and path[0].endswith(_ROOTS)

    @property
    def compares(self) -> bool:
        """Whether the lengths of containers were noted, to be compared when the window is complete."""
        return self._lengths is not None

    def watch(self, window: CensusWindow, *, first: bool = False) -> None:
        """
        Look after a censused run whether the lengths of containers are to be noted.

        In the first census of a name that is not done for slight growth, which is seldom any: it takes tens of
        milliseconds, and there is another census before a verdict.

        They are noted before the last run, as other names' containers grow between two runs of this one. Where most
        runs keep nothing, the last one may be such a one: there they are noted now.
        """
        kept = window.kept[-1]
        if window.before_last is not None or self._lengths is not None or window.enough or not kept.grew:
            return
        if self._looked >= 2 or len(window.kept) < 2 or (first and kept.is_slight):
            return
        self._looked += 1
        known = sum(size_of(thing) for thing in window.find_survivors() if not is_machinery(thing))
        window.survivors = []
        if known >= 0.5 * kept.weight * (len(window.kept) - 1):
            return
        if not self._rare:
            window.before_last = lambda: self._note_lengths(window, first=first)
            return
        window.thaw()
        self._note_lengths(window, first=first)

    def _note_lengths(self, window: CensusWindow, *, first: bool) -> None:
        if not (first and window.kept[-1].is_slight):
            self._lengths = Lengths(self._own)

    def name(self, window: CensusWindow, kept: Kept) -> None:
        """Name types and holder of what a complete window's runs kept. The window is released."""
        runs = len(window.kept)
        survivors = window.find_survivors()
        try:
            types = count_types(survivors, runs=runs - 1, least_share=0.02 if self._rare else 0.5)
            retention = Retention([], "", "")
            grown_types: list[TypeCount] = []
            if self._lengths is not None:
                grown_types, grown_retention = self._grown_containers(window, self._lengths)
            over_runs = runs - 1 if window.before_last is None else 1  # those that the containers were watched for
            grown_bytes = sum(row.bytes for row in grown_types) / over_runs
            known_bytes = sum(row.bytes for row in types) / (runs - 1)
            # A container that took one more entry in one run may be anybody's: where there are survivors to show, what
            # it gained has to explain the growth.
            if grown_types and (not types or grown_bytes > max(2 * known_bytes, 0.3 * kept.weight)):
                types, retention = grown_types, grown_retention
            elif types:
                wanted = types[0].type
                sort = [thing for thing in survivors if type_name(type(thing)) == wanted]
                samples = [sort[0], sort[-1]] if len(sort) > 1 else sort
                retention = who_retains(
                    samples, within_s=_RETENTION_S, ignore=[survivors, sort, window, vars(window), samples]
                )
                del sort, samples
            if not types and not retention.path:
                retention = Retention([], "", "held from C code or from a running frame")
            known = self.retention
            if known.path and known.path[0].endswith("(module)") and retention.path[:1] != known.path[:1]:
                return  # what a module holds, and of which types it is, says more than what happens to be in flight
            if types:
                self.types = types
            if retention.path or retention.note:
                self.retention = retention
        finally:
            self._lengths = None
            window.release()

    def _grown_containers(self, window: CensusWindow, lengths: Lengths) -> tuple[list[TypeCount], Retention]:
        grown = [
            (thing, gained)
            for thing, gained in lengths.grown(1, ignore=window.bookkeeping)[:40]
            if not window.is_young(thing)
        ]
        weighed = [(sum(row.bytes for row in content_types(thing, gained)), thing, gained) for thing, gained in grown]
        if not weighed:
            return [], Retention([], "", "")
        _, container, gained = max(weighed, key=lambda entry: (entry[0], entry[2]))
        types = content_types(container, gained)
        leaf = f"{types[0].type.rpartition('.')[2]} × {measure(container)}" if types else ""
        ignore = [grown, weighed, *weighed, *grown]
        return types, who_retains([container], within_s=_RETENTION_S, ignore=ignore, inside=leaf)

    def watch_caches(self, run_number: int) -> None:
        """Where no root is known: note how full the caches with a bound are, for :meth:`find_filling_cache`."""
        if self._caches is None and not self.is_rooted and not self.bounded:
            self._caches = BoundedCaches(run_number)

    def find_filling_cache(self, run_number: int) -> None:
        """Take the cache with a bound that filled since it was watched for the holder, where no root is known."""
        caches = self._caches
        if caches is None or self.is_rooted or self.bounded:
            return
        share = _ENTRIES_A_RARE_RUN if self._rare else _ENTRIES_A_RUN
        bound = caches.filled(max(2, round(share * (run_number - caches.run_number))))
        self._caches = BoundedCaches(run_number)  # one that is full by the next verdict is not what grows then
        if bound:
            self.retention = self.retention._replace(bounded=bound, note="")
