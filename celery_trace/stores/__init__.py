"""
The store: one SQL schema for SQLite, PostgreSQL and MySQL/MariaDB.

Names are imported lazily: Django's models use :mod:`celery_trace.stores.schema` in every process of a site, and a
traced process loads no SQLAlchemy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from celery_trace.stores.errors import StoreUnavailable

if TYPE_CHECKING:
    from celery_trace.stores.pruning import Pruned
    from celery_trace.stores.store import Store, open_store
    from celery_trace.stores.writing import Written

__all__ = ["Pruned", "Store", "StoreUnavailable", "Written", "open_store"]

_MODULES = {"Pruned": "pruning", "Store": "store", "Written": "writing", "open_store": "store"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
