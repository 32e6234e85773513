"""
What is measured in a traced process: a probe is one module here and one entry of :data:`PROBES`.

The recorder knows them by their hooks alone (:class:`celery_trace.runtime.probes.probe.Probe`).
"""

from __future__ import annotations

from typing import Final

from celery_trace.runtime.probes.heap_probe import HeapProbe
from celery_trace.runtime.probes.log_probe import LogProbe
from celery_trace.runtime.probes.memory_probe import MemoryProbe
from celery_trace.runtime.probes.probe import Probe
from celery_trace.runtime.probes.profile_probe import ProfileProbe
from celery_trace.runtime.probes.stack_probe import StackProbe
from celery_trace.runtime.probes.trace_probe import TraceProbe
from celery_trace.runtime.probes.tracer_probe import TracerProbe

#: All probes. They start in this order, and a run is offered to them in this order.
PROBES: Final[tuple[type[Probe], ...]] = (
    StackProbe,
    HeapProbe,
    MemoryProbe,
    ProfileProbe,
    TraceProbe,
    LogProbe,
    TracerProbe,
)
