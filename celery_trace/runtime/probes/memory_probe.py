"""Reads the memory of the process every ten seconds."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from celery_trace.intervals import SAMPLE_CHANGE, SAMPLE_IDLE_S, SAMPLE_S
from celery_trace.model import Role, Sample
from celery_trace.process.limits import RoomReader
from celery_trace.process.memory import read_memory
from celery_trace.runtime.probes.probe import Host, Probe

#: How often the more expensive counters of a sample (USS, handles) are read, seconds.
SAMPLE_FULL_S: Final = 60.0


class MemoryProbe(Probe):
    """Memory samples, in all modes but ``off``."""

    name = "memory samples"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        #: The size at which Celery replaces this process, where it does.
        self.child_limit_bytes: int | None = None
        # The children of a worker share its limit, so its main process reads it.
        self._room = RoomReader() if host.process.role is not Role.CHILD else None
        self._last_rss_bytes = self._last_used_bytes = 0
        self._last_sample_s = self._last_full_s = -SAMPLE_IDLE_S

    def start(self) -> None:
        """Sample from now on."""
        if self.host.settings.memory != "off":
            self.call_every(SAMPLE_S)

    def every(self) -> None:
        """Read the memory, and write a sample if it has changed or the last one is old."""
        host = self.host
        now_s = host.clock.monotonic_s()
        full = now_s - self._last_full_s >= SAMPLE_FULL_S
        room = self._room.read() if self._room is not None else None
        memory = replace(read_memory(full=full), room=room, child_limit_bytes=self.child_limit_bytes)
        used_bytes = room.used_bytes if room is not None and room.of == "container" else 0
        moved = (
            abs(memory.rss_bytes - self._last_rss_bytes) > self._last_rss_bytes * SAMPLE_CHANGE
            or abs(used_bytes - self._last_used_bytes) > self._last_used_bytes * SAMPLE_CHANGE
        )
        if not moved and now_s - self._last_sample_s < SAMPLE_IDLE_S:
            return
        self._last_rss_bytes, self._last_used_bytes = memory.rss_bytes, used_bytes
        self._last_sample_s = now_s
        if full:
            self._last_full_s = now_s
        latest = host.open_runs.latest
        running = latest.name if latest is not None else ""
        for totals in host.totals():
            if totals.dirty or totals.name == running:
                totals.rss_max_bytes = max(totals.rss_max_bytes, memory.rss_bytes)
        host.write(
            Sample(
                process=host.process.uid,
                at_s=host.clock.now_s(),
                memory=memory,
                runs=host.runs,
                name=running,
                kept_failures=host.kept_failures,
                overhead_ratio=host.overhead_ratio,
            )
        )
