"""Reads the memory of the process every ten seconds."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from celery_trace.intervals import SAMPLE_CHANGE, SAMPLE_IDLE_S, SAMPLE_S
from celery_trace.model import Role, Sample
from celery_trace.process.limits import RoomReader
from celery_trace.process.memory import read_memory, read_rss_bytes
from celery_trace.runtime.probes.probe import Host, Probe

#: How often the more expensive counters of a sample (USS, handles) are read, seconds.
SAMPLE_FULL_S: Final = 60.0


def _differs(now_bytes: int, before_bytes: int) -> bool:
    return abs(now_bytes - before_bytes) > before_bytes * SAMPLE_CHANGE


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
        """Write a sample if the memory has changed or the last one is old; the counters are read only for that."""
        host = self.host
        now_s = host.clock.monotonic_s()
        rss_bytes = read_rss_bytes()
        room = self._room.read() if self._room is not None else None
        used_bytes = room.used_bytes if room is not None and room.of == "container" else 0
        moved = _differs(rss_bytes, self._last_rss_bytes) or _differs(used_bytes, self._last_used_bytes)
        if not moved and now_s - self._last_sample_s < SAMPLE_IDLE_S:
            return
        full = now_s - self._last_full_s >= SAMPLE_FULL_S
        memory = replace(read_memory(full=full), room=room, child_limit_bytes=self.child_limit_bytes)
        self._last_rss_bytes, self._last_used_bytes = rss_bytes, used_bytes
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
