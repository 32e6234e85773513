"""The store: one SQL schema for SQLite, PostgreSQL and MySQL/MariaDB."""

from celery_trace.stores.errors import StoreUnavailable
from celery_trace.stores.pruning import Pruned
from celery_trace.stores.store import Store, open_store
from celery_trace.stores.writing import Written

__all__ = ["Pruned", "Store", "StoreUnavailable", "Written", "open_store"]
