"""Lets the collector read the stacks of this process, where the system asks for that (Yama, Python 3.14 and later)."""

from __future__ import annotations

from typing import Final

from celery_trace.collector.status import read_status
from celery_trace.model import RUN_NOTHING
from celery_trace.process import tracing_right
from celery_trace.runtime.probes.probe import Host, Probe

#: How often it is looked whether the collector has been replaced, seconds.
LOOK_S: Final = 10.0


class TracerProbe(Probe):
    """Grants the right to the collector, and to its successor once there is one. Without Yama it does nothing."""

    name = "right to read stacks"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.needs_grant = tracing_right.needs_grant
        self.grant = tracing_right.grant
        self._granted = 0

    def start(self) -> None:
        """Follow the collector's pid, if it needs the right."""
        if self.host.process.role not in RUN_NOTHING and self.host.settings.black_box and self.needs_grant():
            self.call_every(LOOK_S)

    def every(self) -> None:
        """Grant the right to the collector that serves the spool folder now."""
        status = read_status(self.host.settings.folder)
        pid = status.pid if status is not None and status.state != "ended" else 0
        if pid > 0 and pid != self._granted:
            self.grant(pid)
            self._granted = pid
