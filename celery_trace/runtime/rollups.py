"""The running totals of a name's runs in the current five minutes, before they become a record."""

from __future__ import annotations

from typing import Final

from celery_trace.model import Histogram, Kind, Rollup

#: A run is an outlier when it took this many times as long as 95 in 100 of its name, after this many runs.
OUTLIER_TIMES: Final = 4
OUTLIER_RUNS: Final = 40


class Totals:
    """A name's runs in the current five minutes; grows until its rollup is closed."""

    __slots__ = (
        "bucket_s", "dirty", "duration_max_s", "duration_s", "durations", "ends_at_s", "failed", "kind", "label",
        "name", "retried", "rss_max_bytes", "runs", "scatter_due_s", "slow_bucket", "tag", "traced",
    )  # fmt: skip

    def __init__(self, kind: Kind, name: str, at_s: float, label: bytes = b"") -> None:
        self.kind = kind
        self.name = name
        self.label = label  # what the black box is told of each run
        self.tag = 0  # what the heap's sampler is told of each run
        self.traced = 0  # runs that were traced by themselves, ever
        self.scatter_due_s = 0.0
        self.slow_bucket = Histogram.BUCKETS
        self.begin(at_s)

    def begin(self, at_s: float) -> None:
        """Start over for the bucket of ``at_s``; what is learned of the name (its usual duration) stays."""
        self.bucket_s = int(at_s) // Rollup.BUCKET_S * Rollup.BUCKET_S
        self.ends_at_s = self.bucket_s + Rollup.BUCKET_S
        self.runs = self.failed = self.retried = 0
        self.duration_s = self.duration_max_s = 0.0
        self.durations = [0] * Histogram.BUCKETS
        self.rss_max_bytes = 0
        self.dirty = False

    def learn_what_is_slow(self) -> None:
        """Set the duration bucket from which a run is an outlier."""
        if self.runs < OUTLIER_RUNS:
            return
        beyond = self.runs * 0.95
        seen = 0
        for bucket, count in enumerate(self.durations):
            seen += count
            if seen >= beyond:
                self.slow_bucket = bucket + OUTLIER_TIMES.bit_length()
                return

    def rollup(self, process: str, seq: int) -> Rollup:
        """The totals so far, as a record."""
        return Rollup(
            process=process,
            kind=self.kind,
            name=self.name,
            bucket_s=self.bucket_s,
            seq=seq,
            runs=self.runs,
            failed=self.failed,
            retried=self.retried,
            duration_s=self.duration_s,
            duration_max_s=self.duration_max_s,
            durations=Histogram(list(self.durations)),
            rss_max_bytes=self.rss_max_bytes,
        )
