"""How the collector delivers records: directly into the store, or through the broker to the monitor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypedDict

from celery_trace.errors import Unavailable
from celery_trace.model import AnyRecord


class TransportUnavailable(Unavailable):
    """Records can't be delivered now; they stay in the spool."""


class BrokerOptions(TypedDict, total=False):
    """A broker's address and kombu's options for it, as plain values that another process can read."""

    hostname: str
    ssl: object
    transport_options: dict[str, object]
    failover: list[str]


class WrittenBatch(Protocol):
    """The result of writing a batch into a store."""

    @property
    def refused(self) -> list[tuple[AnyRecord, str]]:
        """Records that the store refused even alone, with the reason."""


class Transport(Protocol):
    """The collector's interface to a transport."""

    name: str

    def destination(self) -> str:
        """
        The id of the store that records go to, if this end knows it; otherwise empty.

        It changes when the store was deleted, replaced or recreated: earlier records may not be in it.

        Raises:
            TransportUnavailable: It can't be reached now.
        """

    def send(self, records: Sequence[AnyRecord]) -> list[tuple[AnyRecord, str]]:
        """
        Deliver a batch atomically; it has arrived safely when this returns.

        Returns:
            Records with refused data, with the reason; they must not be sent again.

        Raises:
            TransportUnavailable: Not now.
        """

    def maintain(self, *, idle: bool) -> None:
        """
        Maintain the store for a fraction of a second; called after each round.

        Args:
            idle: Whether the round found nothing, so that low-priority work can run.

        Raises:
            TransportUnavailable: Not now.
        """

    def close(self) -> None:
        """Close connections."""


__all__ = ["BrokerOptions", "Transport", "TransportUnavailable", "WrittenBatch"]
