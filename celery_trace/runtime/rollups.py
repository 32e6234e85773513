"""The totals of a name's runs in the current five minutes, until they become a record."""

from __future__ import annotations

from typing import Final

from celery_trace.model import Histogram, Kind, Rollup
from celery_trace.process.open_runs import Counted, Counts

#: A run is an outlier when it took this many times as long as 95 in 100 of its name, after this many runs.
OUTLIER_TIMES: Final = 4
OUTLIER_RUNS: Final = 40


class RunTotals(Counts):
    """A name's runs in the current five minutes; the name's usual duration is kept beyond them."""

    def __init__(self, kind: Kind, name: str, at_s: float, label: bytes = b"") -> None:
        super().__init__(label)
        self.kind = kind
        self.name = name
        self.traced = 0  # runs that were traced, since the start
        self._runs_before = 0  # this period
        self.rss_max_bytes = 0
        self.bucket_s = _bucket_s(at_s)
        self.take(self.bucket_s + Rollup.BUCKET_S)

    @property
    def all_runs(self) -> int:
        """Runs that have ended since the start of the process."""
        return self._runs_before + self.read()[0]

    def learn_slow_bucket(self) -> None:
        """Set the duration bucket from which a run is an outlier."""
        runs, *_, durations = self.read()
        if runs < OUTLIER_RUNS:
            return
        beyond = runs * 0.95
        seen = 0
        for bucket, count in enumerate(durations):
            seen += count
            if seen >= beyond:
                self.slow_bucket = bucket + OUTLIER_TIMES.bit_length()
                return

    def rollup(self, process: str, seq: int) -> Rollup:
        """The totals so far, as a record."""
        self.dirty = False  # before the read: a run that ends now sets it again, and is in the next rollup
        return self._record(process, seq, self.read())

    def next_period(self, at_s: float, process: str, seq: int) -> Rollup:
        """Begin the five minutes of ``at_s``. Returns the previous totals as a record."""
        bucket_s = _bucket_s(at_s)
        ended = self._record(process, seq, self.take(bucket_s + Rollup.BUCKET_S))
        self._runs_before += ended.runs
        self.bucket_s, self.rss_max_bytes = bucket_s, 0
        return ended

    def _record(self, process: str, seq: int, counted: Counted) -> Rollup:
        runs, failed, retried, duration_s, duration_max_s, durations = counted
        return Rollup(
            process=process,
            kind=self.kind,
            name=self.name,
            bucket_s=self.bucket_s,
            seq=seq,
            runs=runs,
            failed=failed,
            retried=retried,
            duration_s=duration_s,
            duration_max_s=duration_max_s,
            durations=Histogram(durations),
            rss_max_bytes=self.rss_max_bytes,
        )


def _bucket_s(at_s: float) -> int:
    return int(at_s) // Rollup.BUCKET_S * Rollup.BUCKET_S
