"""The sites of one process: which are worth a row, the verdict on each, and which need a search for the holder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.heap.entry_order import FEWEST_RUNS
from celery_trace.heap.long_runs import LEAST_BYTES as LEAST_BYTES_OF_LONG_RUN
from celery_trace.heap.long_runs import is_of_long_run, task_of
from celery_trace.heap.picks import UNTAGGED, Block, Pick, Stack
from celery_trace.heap.retainers import Found
from celery_trace.heap.survivors import Key
from celery_trace.heap.verdict import FEW_RELEASED, GROWS, Judgement, judge, slows
from celery_trace.model import Evidence, Holder, Verdict
from celery_trace.text.code_owner import CodeOwner

#: A site that keeps less a run, or has kept less in all, is not reported (bytes).
LEAST_BYTES_PER_RUN: Final = 16
LEAST_BYTES: Final = 4096
#: From this size on, a process that runs no tasks reports what it holds even if that does not grow (bytes).
LARGE_BYTES: Final = 16 * 2**20
#: Sites that are judged in one look, the largest ones.
MOST_SITES: Final = 300
#: The same when the process ends.
MOST_SITES_AT_END: Final = 12
#: Blocks from which the search for a holder starts.
MOST_BLOCKS: Final = 20
YOUNGEST_BLOCKS: Final = 4
#: A holder is searched for again after so many times the runs.
SEARCH_AGAIN: Final = 2.0
#: The same if it gains fewer and fewer entries, or if a block was replaced during the search.
SOONER: Final = 1.25
#: A holder is up to date if it was found when so large a share of the runs had been observed.
UP_TO_DATE: Final = 0.9
#: Sites that keep so much a run are searched at once, and judged after each of the first runs (bytes).
URGENT_BYTES: Final = 2**20
URGENT_RUNS: Final = 16


#: The path to a holder, without lengths.
_Path = tuple[str, ...]
#: A tag and that path.
_HeldBy = tuple[int, _Path]


class SiteState(Struct):
    """What was found and reported about a site."""

    stack: Stack
    found: Found | None = None
    searched_at_runs: int = 0
    judgement: Judgement = Judgement(Verdict.TOO_FEW_RUNS, 0.0, "")
    verdict: Verdict | None = None  # written last
    written_holder: Holder = Holder()  # written last
    events: int = 0  # at that time
    written_s: float = 0.0
    growth: list[tuple[float, int]] = []

    one_block: bool = False  # whether one block grows
    outdated: bool = False  # whether its holder is to be found again before it is called a leak
    of_another_task: bool = False  # whether another task fills its holder

    @property
    def slows(self) -> bool:
        """Whether its holder gains fewer entries than before, so that it may be full soon."""
        entries = self.found.holder.entries if self.found is not None else None
        return entries is not None and slows(entries)

    @property
    def holder(self) -> Holder:
        """The holder, as far as it is known."""
        holder = self.found.holder if self.found is not None else Holder()
        if not self.outdated and not self.of_another_task:
            return holder
        return replace(holder, outdated=self.outdated, of_another_task=self.of_another_task)


class SiteTable:
    """
    The sites of one process.

    Args:
        own: Recognises the user's own files.
        least_runs: Runs between a suspicion and growth being called a leak.
        runs_nothing: Whether the process runs no tasks.
    """

    def __init__(self, own: CodeOwner, least_runs: int, *, runs_nothing: bool) -> None:
        self._own = own
        self._least_runs = least_runs
        self._runs_nothing = runs_nothing
        self._sites: dict[Key, SiteState] = {}
        self._covering: dict[_HeldBy, Key] = {}  # the site that reports what a holder holds

    def tags(self) -> set[int]:
        """The tags of all sites."""
        return {tag for tag, _ in self._sites}

    def add(self, evidence: Mapping[Key, Evidence], stack_of: Callable[[Key], Stack], *, last: bool) -> None:
        """
        Judge from now on what is worth a row, of the largest sites.

        Args:
            evidence: Of all sites.
            stack_of: One way to a site.
            last: The process ends, so a site with too few runs for a verdict is reported too: others add to it.
        """
        largest = sorted(evidence, key=lambda key: -evidence[key].bytes)[: MOST_SITES_AT_END if last else MOST_SITES]
        for key in largest:
            if key not in self._sites and self._is_worth_a_row(key, evidence[key], last):
                self._sites[key] = SiteState(stack_of(key))

    def _is_worth_a_row(self, key: Key, evidence: Evidence, last: bool) -> bool:
        least_bytes = LEAST_BYTES_OF_LONG_RUN if is_of_long_run(key[0]) else LEAST_BYTES
        if evidence.bytes_per_run < LEAST_BYTES_PER_RUN or evidence.bytes < least_bytes:
            return False
        if self._is_large(key, evidence):
            return True
        verdict = judge(evidence, least_runs=self._least_runs).verdict
        if verdict is Verdict.TOO_FEW_RUNS:
            return last and evidence.events > 0
        return verdict is not Verdict.STEADY

    def _is_large(self, key: Key, evidence: Evidence) -> bool:
        """Whether a process that runs no tasks reports the site for its size alone."""
        return self._runs_nothing and key[0] == UNTAGGED and evidence.bytes >= LARGE_BYTES

    def judge(self, evidence: Mapping[Key, Evidence]) -> Iterator[tuple[Key, SiteState]]:
        """
        Judge the sites, the largest first.

        Yields:
            Those to be reported, and all of long runs.
        """
        known = [(key, site) for key, site in self._sites.items() if key in evidence]
        fillers: dict[_Path, set[int]] = defaultdict(set)  # the tasks whose objects a holder has for certain
        for key, site in known:
            holder = _holder_of(key, site)
            if holder is None:
                continue
            if key[0] != UNTAGGED and self._own(key[1][0]):
                self._covering[holder] = key
            if not site.holder.recycled:
                fillers[holder[1]].add(task_of(key[0]))
        for key, site in sorted(known, key=lambda one: -evidence[one[0]].bytes):
            site.of_another_task = _is_of_another_task(key, site, fillers)
            self._judge(site, evidence[key])
            if is_of_long_run(key[0]) or self._is_reported(key, site, evidence[key]):
                yield key, site

    def _judge(self, site: SiteState, evidence: Evidence) -> None:
        """The verdict; before the first one of a leak, its holder is searched again if that was long ago."""
        site.one_block, site.outdated = evidence.one_block, False
        site.judgement = judge(evidence, site.holder, least_runs=self._least_runs)
        # By fewer runs than that, the order of its entries says nothing.
        is_old = evidence.runs >= FEWEST_RUNS and site.searched_at_runs < UP_TO_DATE * evidence.runs
        if site.judgement.verdict is Verdict.LEAKING and site.verdict is not Verdict.LEAKING and is_old:
            site.outdated = True
            site.judgement = judge(evidence, site.holder, least_runs=self._least_runs)

    def _is_reported(self, key: Key, site: SiteState, evidence: Evidence) -> bool:
        # Outside of tasks a suspicion alone gets no row.
        grows = site.verdict is not None or site.judgement.verdict in (Verdict.GROWING, Verdict.LEAKING)
        is_held = bool(site.holder.path) and self._is_large(key, evidence)
        return (key[0] != UNTAGGED or grows or is_held) and not self._is_covered(key, site)

    def _is_covered(self, key: Key, site: SiteState) -> bool:
        """
        Whether a line of a library is covered by another site of the same holder.

        In a task that is one of the user's own lines, such as that of an exception with frames of Celery's. Else it is
        the largest: a message that a worker holds was allocated at some twenty lines of Celery's and the broker's.
        """
        holder = _holder_of(key, site)
        return holder is not None and not self._own(key[1][0]) and self._covering.setdefault(holder, key) != key

    def to_search(
        self, evidence: Mapping[Key, Evidence], alive: Mapping[Key, Iterable[Pick]], *, last: bool, waits: bool
    ) -> dict[Key, list[Block]]:
        """
        Some blocks of each growing site that needs a search for its holder; it counts as searched afterwards.

        Args:
            evidence: Of all sites.
            alive: The survivors of each site.
            last: The process ends.
            waits: Only the urgent ones, as the last search was expensive.
        """
        wanted = {}
        for key, site in self._sites.items():
            if not self._is_unsought(key, site, evidence[key], last):
                continue
            if waits and evidence[key].bytes_per_run < URGENT_BYTES:
                continue
            blocks = blocks_of(alive.get(key, ()))
            if blocks:
                wanted[key] = blocks
                site.searched_at_runs = evidence[key].runs
        return wanted

    def _is_unsought(self, key: Key, site: SiteState, evidence: Evidence, last: bool) -> bool:
        """Whether a site's holder is of interest and was not searched for recently."""
        grows = site.judgement.confidence >= GROWS and site.judgement.verdict in (Verdict.SUSPECT, Verdict.GROWING)
        is_unknown = site.found is None and (last or self._is_large(key, evidence))
        is_unclear = site.slows or (site.one_block and not site.holder.path)
        again = 1.0 if site.outdated else SOONER if is_unclear else SEARCH_AGAIN
        return (grows or is_unknown) and evidence.runs >= again * site.searched_at_runs

    def found(self, holders: Mapping[Key, Found]) -> None:
        """Note what a search has found. If a block was replaced meanwhile, an earlier one knows more."""
        for key, found in holders.items():
            site = self._sites[key]
            if found.holder.path or not (site.one_block and site.holder.path):
                site.found = found


def _holder_of(key: Key, site: SiteState) -> _HeldBy | None:
    """The tag and the path to the holder, without lengths; None without one."""
    path = tuple(step.partition("[")[0] for step in site.holder.path[:-1])
    return (key[0], path) if path else None


def _is_of_another_task(key: Key, site: SiteState, fillers: Mapping[_Path, set[int]]) -> bool:
    """
    Whether the site's survivors are most likely objects of another task, with the same holder.

    A dict, list or small tuple that is freed goes to a free list of the interpreter, and the next one that is made
    takes its block, which still counts for the first one's line. What holds certain objects of another task alone
    is therefore filled by that task.
    """
    holder = _holder_of(key, site)
    if holder is None or not site.holder.recycled or holder[1] not in fillers:
        return False
    return task_of(key[0]) not in fillers[holder[1]]


def urgent_tags(evidence: Mapping[Key, Evidence]) -> set[int]:
    """The tasks that seem to retain so much in each of their first runs that their next run is judged at once."""
    return {
        tag
        for (tag, _), one in evidence.items()
        if tag != UNTAGGED and not is_of_long_run(tag) and one.runs < URGENT_RUNS
        and one.bytes_per_run >= URGENT_BYTES and one.released <= FEW_RELEASED
    }  # fmt: skip


def blocks_of(picks: Iterable[Pick]) -> list[Block]:
    """
    Some blocks of a site: the youngest, which are at the head of a chain, and others of all ages, one of each run.

    A first run may retain many more, such as a connection, under another holder.
    """
    of_runs = {pick.run: pick for pick in sorted(picks)}
    blocks = [(pick.address, pick.size) for pick in sorted(of_runs.values(), reverse=True)]
    return [*blocks[:YOUNGEST_BLOCKS], *blocks[YOUNGEST_BLOCKS :: len(blocks) // MOST_BLOCKS + 1]]
