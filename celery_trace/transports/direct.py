"""The transport ``direct``: the collector writes into the store itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from celery_trace.errors import Unavailable
from celery_trace.guard import report
from celery_trace.model import AnyRecord
from celery_trace.transports import TransportUnavailable, WrittenBatch


class DirectStore(Protocol):
    """What this transport needs of a store."""

    def token(self) -> str:
        """Its id; see :meth:`celery_trace.transports.Transport.destination`."""

    def write(self, records: Sequence[AnyRecord]) -> WrittenBatch:
        """Write a batch."""

    def close(self) -> None:
        """Close connections."""


StoreT = TypeVar("StoreT", bound=DirectStore)


class DirectTransport(Generic[StoreT]):
    """
    Writes to the store, which it opens with the first batch and again after it was lost.

    Args:
        open_sink: Opens the store.
        after: Called with the store after each batch.
        maintenance: Called with the store after each round, and whether that found nothing.
    """

    name = "direct"

    def __init__(
        self,
        open_sink: Callable[[], StoreT],
        after: Callable[[StoreT], None] | None = None,
        maintenance: Callable[[StoreT, bool], None] | None = None,
    ) -> None:
        self._open = open_sink
        self._after = after
        self._upkeep = maintenance
        self._sink: StoreT | None = None

    @contextmanager
    def _opened(self) -> Iterator[StoreT]:
        """The store. It is closed after an error, and opens itself with the next use."""
        try:
            if self._sink is None:
                self._sink = self._open()
            yield self._sink
        except Unavailable as error:
            if self._sink is not None:
                self._sink.close()
            raise TransportUnavailable(error.what, error.why, error.next) from error

    def destination(self) -> str:
        """The store's token; opens the store."""
        with self._opened() as sink:
            return sink.token()

    def send(self, records: Sequence[AnyRecord]) -> list[tuple[AnyRecord, str]]:
        """Write a batch in one transaction."""
        with self._opened() as sink:
            refused = sink.write(records).refused
            if self._after is not None:
                with _reported("computing results of new records"):  # an error must not send them again
                    self._after(sink)
            return refused

    def maintain(self, *, idle: bool) -> None:
        """Run the maintenance function of the constructor."""
        if self._upkeep is not None:
            with self._opened() as sink, _reported("store maintenance"):
                self._upkeep(sink, idle)

    def close(self) -> None:
        """Close the store."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Report our own errors; an unavailable store is not one."""
    try:
        yield
    except Unavailable:
        raise
    except Exception as error:
        report(what, error)
