"""
Samples the heap with tracemalloc, for interpreters without the extension module.

The same interface as :class:`~celery_trace.heap.sampler.Sampler`, with less information. tracemalloc knows where every
live block was allocated, but not when nor by which task. So births are the difference between two looks, and tasks are
found in the tracebacks: by :meth:`TracedSampler.mark`, while the tag of :meth:`TracedSampler.run` only counts runs.
Tracing slows a program that only allocates about a hundredfold; see :meth:`TracedSampler.stats` for how this is
accounted.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Final

from celery_trace import os_threads
from celery_trace.heap.picks import IGNORED, UNTAGGED, Block, CannotSample, Match, Pace, Pick, SamplerStats, Stack

try:
    import _tracemalloc
except ImportError as error:  # another implementation of Python
    raise CannotSample(f"this interpreter has no tracemalloc: {error}") from None

#: Frames of a traceback. More cost more: parsing JSON takes 6 times as long with 1, 21 with 10, 52 with 25.
FRAMES: Final = 16
#: Synthetic picks and stacks that are kept; beyond, new picks are dropped and counted.
_MOST_PICKS: Final = 4096
_MANY_STACKS: Final = 4096

#: The share of the processor time that tracing takes of a program that allocates all the time (0.984 to 0.994 in
#: benchmarks/heap_cost.py), and the nominal cost of one call, seconds. Their quotient turns processor time into calls.
_SHARE: Final = 0.99
_CALL_S: Final = 1e-6

#: What was allocated with a frame of this module among so many of the innermost is our own bookkeeping.
_OWN_FRAMES: Final = 4
#: Longest search for referrers, seconds of processor time. Asking where an object was allocated costs 20 µs and more.
_SEARCH_S: Final = 5.0

#: After others have traced, they may again: so long it stays off, seconds.
_AFTER_OTHERS_S: Final = 2.0

#: As tracemalloc hands them out: file and line, innermost first.
_Frames = Sequence[tuple[str, int]]


class TracedSampler:
    """
    The sampler of this process, by tracemalloc.

    It is never on while other code traces, and stops only what it has started. While it is on,
    ``tracemalloc.start`` and ``is_tracing`` are replaced: callers see that nothing is traced, and a caller that starts
    tracing, such as the program or a traced block, gets it at once and alone. A program that has imported these two
    functions by name gets this sampler's traces, as its call then does nothing.
    """

    #: The whole process is many times slower while this is on, so stretches are short and looks frequent.
    sees_all = False
    #: Whether a pick has the address of its own block.
    knows_blocks = False
    pace = Pace(look_s=0.2, first_pause_s=0.2, longest_pause_s=0.2, fewest_runs=20, longest_over_s=1.0, calm_look_s=0.2)

    def __init__(self) -> None:
        self._pid = 0
        self._canary: bytes | None = None  # traced as long as our tracing is on
        self._not_before_s = 0.0  # by the monotonic clock
        self._lent = (self._start_of_others, self._is_traced_by_others)
        self._threads = threading.local()
        self._lock = os_threads.rlock()
        self._runs: dict[int, int] = defaultdict(int)
        self._marks: dict[str, list[tuple[int, int, int, str]]] = defaultdict(list)
        self._collections = 0
        self._serial = 0
        self._on_s = 0.0  # processor time of earlier stretches
        self._began_s = 0.0
        self._look_s = 0.0
        self._taken = self._died = self._dropped = 0
        self._picks: dict[_Frames, list[Pick]] = {}  # oldest first
        self._stacks: list[_Frames] = []
        self._numbers: dict[_Frames, int] = {}
        self._tags: dict[_Frames, int] = {}
        os.register_at_fork(after_in_child=self._after_fork)

    def start(self, mean_bytes: float, seed: int = 0) -> None:  # noqa: ARG002 - the interface's; all blocks are seen
        """Trace from now on, unless it is on or other code traces. ``mean_bytes`` is not used."""
        if self.is_on():
            return
        self._release()
        if _tracemalloc.is_tracing():
            return
        if time.monotonic() < self._not_before_s:
            return
        _tracemalloc.start(FRAMES)
        self._canary = os.urandom(64)
        self._pid = os.getpid()
        self._began_s = time.process_time()
        tracemalloc.start, tracemalloc.is_tracing = self._lent

    def stop(self) -> None:
        """Stop and drop all picks. Tracing that other code has started continues."""
        self._stop_tracing()
        self._release()

    def stop_at(self, *codes: CodeType) -> None:
        """Does nothing: tracemalloc has one depth for all stacks."""

    def coarsen(self) -> None:
        """Does nothing: all blocks are traced."""

    def plain(self, blocks: Iterable[Block]) -> set[int]:  # noqa: ARG002 - the interface's
        """Empty: picks have no addresses here."""
        return set()

    def is_on(self) -> bool:
        """Whether allocations are traced, by us."""
        return self._pid == os.getpid() and self._is_ours()

    def run(self, tag: int) -> int:
        """A run begins in this thread. Returns the tag before, for :meth:`restore`."""
        before: int = getattr(self._threads, "tag", UNTAGGED)
        self._threads.tag = tag
        if tag not in (UNTAGGED, IGNORED):
            self._runs[tag] += 1
        return before

    def restore(self, tag: int) -> None:
        """A run has ended; this thread has the tag that :meth:`run` returned."""
        self._threads.tag = tag

    def runs(self, tag: int) -> int:
        """How many runs with this tag have begun."""
        return self._runs.get(tag, 0)

    def mark(self, code: CodeType, tag: int) -> bool:
        """What is allocated below this function has ``tag``; the outermost one counts."""
        lines = [line for _, _, line in code.co_lines() if line is not None]
        last = max([code.co_firstlineno, *lines])
        with self._lock:
            marks = self._marks[code.co_filename]
            marks[:] = [mark for mark in marks if mark[:2] != (code.co_firstlineno, last)]
            marks.append((code.co_firstlineno, last, tag, code.co_qualname))
            self._tags.clear()
        return True

    def peaks(self, tag: int) -> dict[int, int]:  # noqa: ARG002 - the interface's
        """Empty: peaks between two looks are not known."""
        return {}

    def note_collection(self, phase: str, info: Mapping[str, int]) -> None:
        """For ``gc.callbacks``: counts full collections."""
        if phase == "stop" and info.get("generation") == 2:
            self._collections += 1

    def picks(self) -> Iterator[Pick]:
        """
        What is alive, a pick for what each line has gained from one look to the next.

        Per traceback, what was gained since the last look is born now, and what was lost is taken from the youngest.
        The address is not one of memory; only :meth:`referrers` understands it.
        """
        if not self.is_on():
            return iter(())
        with self._lock:
            began_s = time.process_time()
            self._look()
            self._look_s += time.process_time() - began_s
            return iter([pick for picks in self._picks.values() for pick in picks])

    def stack(self, number: int) -> Stack:
        """The frames of a pick, innermost first; empty if unknown. Only marked functions have names."""
        with self._lock:
            if not 0 <= number < len(self._stacks):
                return ()
            return tuple((file, line, self._name(file, line)) for file, line in self._stacks[number])

    def codes(self, number: int) -> list[CodeType]:  # noqa: ARG002 - the interface's
        """Empty: tracemalloc keeps file names and lines only."""
        return []

    def holding_frames(self, objects: list[object]) -> list[tuple[int, CodeType, str]]:  # noqa: ARG002 - the interface's
        """Empty: the variables of a running function can't be read without the extension module."""
        return []

    def sweep(self) -> bool:
        """Drop unused stacks, if they are many. True if the numbers of stacks have changed."""
        with self._lock:
            if len(self._stacks) < _MANY_STACKS:
                return False
            kept = [frames for frames in self._stacks if self._picks.get(frames)]
            self._stacks = kept
            self._numbers = {frames: number for number, frames in enumerate(kept)}
            self._tags.clear()
            for frames, picks in self._picks.items():
                if picks:
                    number = self._numbers[frames]
                    picks[:] = [pick._replace(stack=number, address=_handle(number)) for pick in picks]
            return True

    def stats(self) -> SamplerStats:
        """
        Counters, as those of the extension module.

        ``calls`` is not a count: ``calls`` times :meth:`cost_s` is 0.99 of the processor time that the process has used
        while this was on, the share of tracing in a program that only allocates. ``pick_s`` is the time of the looks.
        """
        on_s = self._on_s + (time.process_time() - self._began_s if self.is_on() else 0.0)
        return {
            "calls": int(max(0.0, on_s - self._look_s) * _SHARE / _CALL_S),
            "mean_bytes": 1.0,
            "live": sum(map(len, self._picks.values())),
            "stacks": len(self._stacks),
            "taken": self._taken,
            "died": self._died,
            "dropped": self._dropped,
            "thinned": 0,
            "collections": self._collections,
            "pick_s": self._look_s,
        }

    def cost_s(self) -> float:
        """What one of ``calls`` costs, seconds; 0 while it is off."""
        return _CALL_S if self.is_on() else 0.0

    def referrers(
        self,
        blocks: list[Block],
        most: int,
        climb: bool = False,  # noqa: ARG002 - the interface's; each pass goes up by one here
    ) -> list[Match]:
        """
        Which objects refer to something that was allocated where a pick was, or to an object.

        A block is identified by its traceback here, so this finds everything alive of a line. Python 3.11 knows where
        strings and containers were allocated, but not instances of plain classes. The youngest objects are searched
        first, for at most 5 seconds of processor time.

        Args:
            blocks: Address and size of each pick, or the address of an object.
            most: Referrers of one block, at most.

        Returns:
            The block's address, the object, and the object that refers to it.
        """
        addresses = {address for address, _ in blocks}
        with self._lock:
            lines = {
                self._stacks[_number(address)]: address
                for address in addresses
                if 0 <= _number(address) < len(self._stacks)
            }
        addresses -= set(lines.values())
        room = dict.fromkeys([*lines.values(), *addresses], most)
        found: list[Match] = []
        origin = _tracemalloc._get_object_traceback
        elsewhere: set[int] = set()  # objects that were allocated on another line
        missing = most * len(room)
        until_s = time.thread_time() + _SEARCH_S
        for referrer in (*gc.get_objects(0), *gc.get_objects(1), *reversed(gc.get_objects(2))):
            if not missing or time.thread_time() > until_s:
                break
            for referent in gc.get_referents(referrer):
                address: int | None = id(referent)
                if address not in addresses:
                    if not lines or address in elsewhere:
                        continue
                    frames = origin(referent)
                    address = lines.get(frames) if frames is not None else None
                    if address is None:
                        elsewhere.add(id(referent))
                if address is not None and room[address] > 0:
                    room[address] -= 1
                    missing -= 1
                    found.append((address, referent, referrer))
        return found

    # --- others -----------------------------------------------------------------------------------------

    def _start_of_others(self, nframe: int = 1) -> None:
        """``tracemalloc.start`` while this is on: stop, so that the caller can trace."""
        self._stop_tracing()
        if self._pid == os.getpid():
            self._on_s += time.process_time() - self._began_s
        self._pid = 0  # the picks are dropped at the next look, which may be in progress
        self._not_before_s = time.monotonic() + _AFTER_OTHERS_S
        _tracemalloc.start(nframe)

    def _is_traced_by_others(self) -> bool:
        """``tracemalloc.is_tracing`` while this is on: whether other code traces."""
        return _tracemalloc.is_tracing() and not self._is_ours()

    def _stop_tracing(self) -> None:
        if (tracemalloc.start, tracemalloc.is_tracing) == self._lent:
            tracemalloc.start, tracemalloc.is_tracing = _tracemalloc.start, _tracemalloc.is_tracing
        if self._is_ours():
            _tracemalloc.stop()

    # --- its own ----------------------------------------------------------------------------------------

    def _is_ours(self) -> bool:
        return (
            self._canary is not None
            and _tracemalloc.is_tracing()
            and _tracemalloc._get_object_traceback(self._canary) is not None
        )

    def _release(self) -> None:
        """Account for the stretch that has ended, and drop its picks."""
        if self._canary is not None and self._pid == os.getpid():
            self._on_s += time.process_time() - self._began_s
        self._canary = None
        self._pid = 0
        self._forget()

    def _forget(self) -> None:
        self._picks = {}
        self._stacks = []
        self._numbers = {}
        self._tags = {}

    def _after_fork(self) -> None:
        self._stop_tracing()
        self._lock = os_threads.rlock()  # another thread may have held it
        self._canary = None
        self._on_s = 0.0
        self._threads.tag = UNTAGGED
        self._forget()

    def _look(self) -> None:
        bytes_of: dict[int, int] = defaultdict(int)
        frames_of: dict[int, _Frames] = {}
        traces = _tracemalloc._get_traces()
        # Equal tracebacks are one object here: its address spares the hash of sixteen frames a block.
        for trace in traces:
            frames = trace[2]
            key = id(frames)
            bytes_of[key] += trace[1]
            frames_of[key] = frames
        now: dict[_Frames, int] = defaultdict(int)
        for key, size in bytes_of.items():
            frames = frames_of[key]
            if all(file != __file__ for file, _ in frames[:_OWN_FRAMES]):
                now[frames] += size
        del traces, frames_of, bytes_of
        room = _MOST_PICKS - sum(map(len, self._picks.values()))
        for frames in [*self._picks.keys() - now.keys(), *now]:
            room += self._compare(frames, now.get(frames, 0), room)

    def _compare(self, frames: _Frames, size: int, room: int) -> int:
        """Bring the picks of one traceback to ``size`` bytes. Returns by how many picks there are fewer."""
        picks = self._picks.setdefault(frames, [])
        before = len(picks)
        gained = size - sum(pick.size for pick in picks)
        if gained > 0 and room <= 0:
            self._dropped += 1
        elif gained > 0:
            picks.append(self._born(frames, gained))
        while gained < 0:
            youngest = picks.pop()
            gained += youngest.size
            if gained > 0:
                picks.append(youngest._replace(size=gained, weight=float(gained)))
            else:
                self._died += 1
        if not picks:
            del self._picks[frames]
        return before - len(picks)

    def _born(self, frames: _Frames, size: int) -> Pick:
        self._serial += 1
        self._taken += 1
        number = self._numbers.get(frames)
        if number is None:
            number = self._numbers[frames] = len(self._stacks)
            self._stacks.append(frames)
        tag = self._tag(frames)
        return Pick(
            serial=self._serial,
            address=_handle(number),
            size=size,
            weight=float(size),
            born_s=time.monotonic(),
            tag=tag,
            run=self._runs.get(tag, 0),
            collections=self._collections,
            stack=number,
        )

    def _tag(self, frames: _Frames) -> int:
        tag = self._tags.get(frames)
        if tag is None:
            tag = UNTAGGED
            for file, line in reversed(frames):
                found = [mark for mark in self._marks.get(file, ()) if mark[0] <= line <= mark[1]]
                if found:
                    tag = max(found)[2]  # the innermost of nested functions
                    break
            self._tags[frames] = tag
        return tag

    def _name(self, file: str, line: int) -> str:
        found = [mark for mark in self._marks.get(file, ()) if mark[0] <= line <= mark[1]]
        return max(found)[3] if found else ""


def _handle(number: int) -> int:
    """A substitute for an address: aligned like one, and never 0."""
    return (number + 1) << 4


def _number(handle: int) -> int:
    return (handle >> 4) - 1
