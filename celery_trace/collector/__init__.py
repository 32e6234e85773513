"""
The collector: one process per spool folder that hands records on, and adopts what dead processes left.

``process`` starts it and looks after it from a worker or a monitor, ``program`` is what runs there, ``rounds`` what it
does, ``priority`` how it stands back for tasks, ``adoption`` what it says for the dead, and ``status`` what it says of
itself.
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
