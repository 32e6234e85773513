"""The transport ``direct``: the collector writes into the store itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from celery_trace.guard import report
from celery_trace.model import AnyRecord
from celery_trace.refusals import Unavailable
from celery_trace.transports import TransportUnavailable


class Sink(Protocol):
    """A store, as far as this transport is concerned."""

    def token(self) -> str:
        """Names it; see :meth:`celery_trace.transports.Transport.destination`."""

    def write(self, records: Sequence[AnyRecord]) -> Any:
        """Write a batch; the answer has ``refused``."""

    def close(self) -> None:
        """Let go of connections."""


class DirectTransport:
    """
    Opens the store at the first batch, and anew after it was lost.

    Args:
        open_sink: Opens the store.
        after: Called with the store after each batch.
    """

    name = "direct"

    def __init__(self, open_sink: Callable[[], Sink], after: Callable[[Any], None] | None = None) -> None:
        self._open = open_sink
        self._after = after
        self._sink: Sink | None = None

    def destination(self) -> str:
        """The store's token; the store is opened for it."""
        try:
            if self._sink is None:
                self._sink = self._open()
            return self._sink.token()
        except Unavailable as error:
            self.close()
            raise TransportUnavailable(error.what, error.why, error.next) from error

    def send(self, records: Sequence[AnyRecord]) -> list[tuple[AnyRecord, str]]:
        """Write a batch in one transaction."""
        try:
            if self._sink is None:
                self._sink = self._open()
            refused: list[tuple[AnyRecord, str]] = self._sink.write(records).refused
            if self._after is not None:
                try:
                    self._after(self._sink)
                except Unavailable:
                    raise
                except Exception as error:  # the records are written: they must not come again for this
                    report("computing what follows from new records", error)
        except Unavailable as error:
            self.close()
            raise TransportUnavailable(error.what, error.why, error.next) from error
        return refused

    def close(self) -> None:
        """Close the store."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()
