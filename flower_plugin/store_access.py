"""
The store, as the monitor reaches it: opened when first asked for, tried again while it is down.

Everything here blocks and runs in a thread, never on the IOLoop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from celery_trace.clock import Clock
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import Store, open_store

#: After the store could not be opened, how long its error is repeated before the next try, seconds.
RETRY_S = 2.0

OpenStore = Callable[[Settings], Store]


class StoreAccess:
    """
    Store and queries of one monitor.

    Args:
        settings: Which store.
        open_store: Opens it; raises ``StoreUnavailable`` with ``what``, ``why`` and ``next``.
        clock: For the wait between two tries.
    """

    def __init__(self, settings: Settings, clock: Clock, open_store: OpenStore = open_store) -> None:
        self._settings = settings
        self._open_store = open_store
        self._clock = clock
        self._lock = threading.Lock()
        self._open: tuple[Store, Queries] | None = None
        self._error: BaseException | None = None
        self._next_try_s = 0.0
        self._closed = False

    @property
    def store(self) -> Store:
        """
        The open store.

        Raises:
            StoreUnavailable: It could not be opened.
        """
        return self._opened()[0]

    @property
    def queries(self) -> Queries:
        """
        The open store's queries.

        Raises:
            StoreUnavailable: It could not be opened.
        """
        return self._opened()[1]

    def _opened(self) -> tuple[Store, Queries]:
        with self._lock:
            if self._open is None:
                self._open = self._try()
            return self._open

    def _try(self) -> tuple[Store, Queries]:
        if self._closed:
            raise RuntimeError("The monitor is closing.")
        if self._error is not None and self._clock.monotonic_s() < self._next_try_s:
            raise self._error
        try:
            store = self._open_store(self._settings)
        except Exception as error:
            self._error = error
            self._next_try_s = self._clock.monotonic_s() + RETRY_S
            raise
        self._error = None
        return store, Queries(store)

    def close(self) -> None:
        """Close the store; nothing opens it again."""
        with self._lock:
            self._closed = True
            if self._open is not None:
                self._open[0].close()
            self._open = None
