"""
The collector: one process per spool folder that delivers records and adopts those of killed processes.

``process`` starts and monitors it from a worker or a monitor, ``program`` is its main program, ``rounds`` delivers
records, ``maintenance`` maintains the store, ``priority`` lowers its priority, ``adoption`` writes records for killed
processes, and ``status`` is its state.
"""

from celery_trace.collector.process import CollectorProcess
from celery_trace.collector.program import listening, main, make_transport, prepare_django, stalls_of
from celery_trace.collector.rounds import ACCOUNT_S, AnotherCollector, Collector
from celery_trace.collector.status import STATUS_FILE, Status, read_status, write_status

__all__ = [
    "ACCOUNT_S",
    "STATUS_FILE",
    "AnotherCollector",
    "Collector",
    "CollectorProcess",
    "Status",
    "listening",
    "main",
    "make_transport",
    "prepare_django",
    "read_status",
    "stalls_of",
    "write_status",
]
