"""
The collector: one process per spool folder that hands records on, and adopts what dead processes left.

``process`` starts and watches it from a worker or a monitor, ``program`` is what runs there, ``rounds`` delivers the
records, ``maintenance`` looks after the store, ``priority`` lowers its priority, ``adoption`` writes records for killed
processes, and ``status`` is its own state.
"""

from celery_trace.collector.process import CollectorProcess
from celery_trace.collector.program import main, make_transport, prepare_django
from celery_trace.collector.rounds import ACCOUNT_S, AnotherCollector, Collector
from celery_trace.collector.status import STATUS_FILE, Status, read_status, write_status

__all__ = [
    "ACCOUNT_S",
    "STATUS_FILE",
    "AnotherCollector",
    "Collector",
    "CollectorProcess",
    "Status",
    "main",
    "make_transport",
    "prepare_django",
    "read_status",
    "write_status",
]
