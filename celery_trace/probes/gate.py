"""
The gate: from two exact numbers a run, decide whether a name is worth an investigation.

A pure machine: it is fed the net growth of each measured run and says when it has seen enough.
Two rules, as one alone has a hole: most of the last runs grew (a steady leak), or the
low-water mark of the accumulated growth keeps rising (a leak in one run of ten, which
most runs do not show; a sawtooth and a cache that is emptied come back to their low water).
"""

from __future__ import annotations

import itertools
from collections import deque

from msgspec import Struct

#: A run grew when it left at least so much behind. Below lies the noise of Celery's own bookkeeping: a bare child
#: keeps some five blocks a run for its first forty.
GROWN_BLOCKS = 8
GROWN_BYTES = 512


class GateRules(Struct, frozen=True, kw_only=True):
    """How much evidence makes a suspicion. All counts are of measured runs of one name in one process."""

    warm_up: int = 3  # first runs import, connect and fill what stays
    samples: int = 16
    share: float = 0.75
    slow_window: int = 12  # runs that have one low-water mark
    slow_windows: int = 5  # how many marks must rise one after the other


#: For development: half the evidence, twice the false suspicions.
FAST = GateRules(warm_up=3, samples=8, slow_window=10, slow_windows=4)
THOROUGH = GateRules()


def grew(blocks: int, live_bytes: int) -> bool:
    """Whether a run's net growth is more than noise."""
    return blocks >= GROWN_BLOCKS or live_bytes >= GROWN_BYTES


class Gate:
    """The growth of one name in one process, run by run."""

    __slots__ = (
        "_blocks",
        "_bytes",
        "_low_blocks",
        "_low_bytes",
        "_marks",
        "_mask",
        "_need",
        "_ring",
        "_rules",
        "_slow_left",
        "hits",
        "rising",
        "seen",
    )

    def __init__(self, rules: GateRules = THOROUGH) -> None:
        self._rules = rules
        self._need = max(1, round(rules.samples * rules.share))
        self._ring = (1 << rules.samples) - 1
        self.seen = 0
        self.hits = 0
        self.restart(warm_up=rules.warm_up)

    def restart(self, *, warm_up: int = 0) -> None:
        """Forget what was seen: after an investigation, or when the process has changed."""
        self.seen = -warm_up
        self.hits = 0
        #: Whether the low-water mark rose when last asked, which young garbage can make it do too.
        self.rising = False
        self._mask = 0
        self._blocks = 0
        self._bytes = 0
        self._low_blocks = 1 << 62
        self._low_bytes = 1 << 62
        self._slow_left = self._rules.slow_window
        self._marks: deque[tuple[int, int]] = deque(maxlen=self._rules.slow_windows)

    def feed(self, blocks: int, live_bytes: int) -> bool:
        """
        Take one run's net growth.

        Returns:
            True when this name has become suspicious. It keeps saying so until :meth:`restart`.
        """
        self.seen += 1
        if self.seen <= 0:
            return False
        mask = self._mask << 1
        if blocks >= GROWN_BLOCKS or live_bytes >= GROWN_BYTES:
            mask |= 1
            self.hits += 1
        self._mask = mask = mask & self._ring
        self._blocks += blocks
        self._bytes += live_bytes
        if self._blocks < self._low_blocks:
            self._low_blocks = self._blocks
        if self._bytes < self._low_bytes:
            self._low_bytes = self._bytes
        self._slow_left -= 1
        if not self._slow_left:
            self.rising = self._close_slow_window()
            if self.rising:
                return True
        return self.seen >= self._rules.samples and mask.bit_count() >= self._need

    def _close_slow_window(self) -> bool:
        self._slow_left = self._rules.slow_window
        self._marks.append((self._low_blocks, self._low_bytes))
        self._low_blocks = 1 << 62
        self._low_bytes = 1 << 62
        if len(self._marks) < self._rules.slow_windows:
            return False
        return _rises([mark[0] for mark in self._marks], GROWN_BLOCKS) or _rises(
            [mark[1] for mark in self._marks], GROWN_BYTES
        )

    @property
    def promising(self) -> bool:
        """Whether the latest runs grew so often that the next ones should all be measured."""
        return (self._mask & 0b1111).bit_count() >= 3

    @property
    def mean(self) -> tuple[float, float]:
        """Blocks and bytes that a run kept, over all since the last restart: what is given back in some counts too."""
        seen = max(1, self.seen)
        return self._blocks / seen, self._bytes / seen

    @property
    def recent_share(self) -> float:
        """The share of the latest runs, of as many as a suspicion looks at, that grew."""
        return self._mask.bit_count() / min(self._rules.samples, max(1, self.seen))

    @property
    def hit_share(self) -> float:
        """The share of measured runs that grew, of those after the warm-up."""
        return self.hits / self.seen if self.seen > 0 else 0.0


def _rises(marks: list[int], step: int) -> bool:
    """Whether no mark is below the one before, and all but one are above it by a whole step."""
    rises = [later - earlier for earlier, later in itertools.pairwise(marks)]
    return all(rise >= 0 for rise in rises) and sum(rise >= step for rise in rises) >= len(rises) - 1
