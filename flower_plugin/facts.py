"""
The store, as the monitor reaches it: opened when first asked for, tried again while it is down.

Everything here blocks and runs in a thread, never on the IOLoop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from celery_trace.clock import Clock
from celery_trace.settings import Settings

#: After the store could not be opened, how long its error is repeated before the next try, seconds.
RETRY_S = 2.0

OpenStore = Callable[[Settings], Any]
MakeQueries = Callable[[Any], Any]


class Facts:
    """
    Store and queries of one monitor.

    Args:
        settings: Which store.
        open_store: Opens it; raises ``StoreUnavailable`` with ``what``, ``why`` and ``next``.
        make_queries: Reads from it.
        clock: For the wait between two tries.
    """

    def __init__(self, settings: Settings, open_store: OpenStore, make_queries: MakeQueries, clock: Clock) -> None:
        self._settings = settings
        self._open_store = open_store
        self._make_queries = make_queries
        self._clock = clock
        self._lock = threading.Lock()
        self._store: Any = None
        self._queries: Any = None
        self._error: BaseException | None = None
        self._next_try_s = 0.0
        self._closed = False

    @property
    def store(self) -> Any:
        """
        The open store.

        Raises:
            StoreUnavailable: It could not be opened.
        """
        with self._lock:
            if self._store is None:
                self._open()
            return self._store

    @property
    def queries(self) -> Any:
        """
        The open store's queries.

        Raises:
            StoreUnavailable: It could not be opened.
        """
        with self._lock:
            if self._queries is None:
                self._open()
            return self._queries

    def _open(self) -> None:
        if self._closed:
            raise RuntimeError("The monitor is closing.")
        if self._error is not None and self._clock.monotonic_s() < self._next_try_s:
            raise self._error
        try:
            store = self._open_store(self._settings)
            queries = self._make_queries(store)
        except Exception as error:
            self._error = error
            self._next_try_s = self._clock.monotonic_s() + RETRY_S
            raise
        self._error = None
        self._store, self._queries = store, queries

    def close(self) -> None:
        """Close the store; nothing opens it again."""
        with self._lock:
            self._closed = True
            if self._store is not None:
                self._store.close()
            self._store = self._queries = None


def open_facts(settings: Settings, clock: Clock) -> Facts:
    """The facts of the configured store."""
    # SQLAlchemy comes with these, so they are imported when a monitor is made and not before.
    from celery_trace.queries import Queries
    from celery_trace.stores import open_store

    return Facts(settings, open_store, Queries, clock)
