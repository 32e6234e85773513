"""
Reads the store; nothing else does.

Every method returns records or views of :mod:`celery_trace.model`; a list is a :class:`~celery_trace.model.Page`.
All block, are thread-safe, and raise :class:`~celery_trace.stores.StoreUnavailable`. An unknown cursor raises
:class:`BadCursor`.
"""

from celery_trace.queries.attempts import AttemptQueries
from celery_trace.queries.cursors import BadCursor
from celery_trace.queries.flow import FlowQueries
from celery_trace.queries.forecasts import ForecastQueries
from celery_trace.queries.heaps import HeapQueries
from celery_trace.queries.language import BadSearch
from celery_trace.queries.leaks import LeakQueries
from celery_trace.queries.monitoring import MonitoringQueries
from celery_trace.queries.running import RunningQueries
from celery_trace.queries.runs import RunQueries
from celery_trace.queries.searches import SearchQueries
from celery_trace.queries.triage import TriageQueries
from celery_trace.queries.workflows import WorkflowQueries


class Queries(
    LeakQueries,
    TriageQueries,
    RunQueries,
    RunningQueries,
    HeapQueries,
    ForecastQueries,
    FlowQueries,
    MonitoringQueries,
    WorkflowQueries,
    AttemptQueries,
    SearchQueries,
):
    """Reads one store: ``Queries(store)``."""


__all__ = ["BadCursor", "BadSearch", "Queries"]
