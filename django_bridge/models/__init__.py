"""
The store's tables as Django models, for ``trace_store = "django"``.

The tables are described in :mod:`celery_trace.stores.schema`; a test holds these models equal to it
on SQLite, PostgreSQL and MariaDB. Times are seconds since the epoch. The collector writes the
rows; Django only makes the tables and reads them.
"""

from django_bridge.models.records import (
    Failure,
    FailureValues,
    HeapProfile,
    Kept,
    Leak,
    Process,
    Queue,
    Rollup,
    Run,
    RunName,
    Sample,
    SharedCapture,
    Stats,
    Total,
    Window,
)
from django_bridge.models.state import (
    Alert,
    AuditEntry,
    Delivery,
    Group,
    LeakState,
    Shell,
    ShellLine,
    StoreFact,
    Tally,
    Trend,
)

__all__ = [
    "Alert",
    "AuditEntry",
    "Delivery",
    "Failure",
    "FailureValues",
    "Group",
    "HeapProfile",
    "Kept",
    "Leak",
    "LeakState",
    "Process",
    "Queue",
    "Rollup",
    "Run",
    "RunName",
    "Sample",
    "SharedCapture",
    "Shell",
    "ShellLine",
    "Stats",
    "StoreFact",
    "Tally",
    "Total",
    "Trend",
    "Window",
]
