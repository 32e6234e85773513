"""How the collector hands records on: straight into the store, or through the broker to the monitor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from celery_trace.errors import Unavailable
from celery_trace.model import AnyRecord


class TransportUnavailable(Unavailable):
    """Records can't be handed on now; they stay in the spool."""


class Transport(Protocol):
    """What the collector needs."""

    name: str

    def destination(self) -> str:
        """
        Names the store that records go to, where this end knows it; else nothing.

        It changes when the store was deleted, replaced or made anew: what was sent before may not be in it.

        Raises:
            TransportUnavailable: It can't be reached now.
        """

    def send(self, records: Sequence[AnyRecord]) -> list[tuple[AnyRecord, str]]:
        """
        Hand a batch on, all of it or nothing; it has arrived safely when this returns.

        Returns:
            Records that were refused for what is in them, with the reason; they must not be sent again.

        Raises:
            TransportUnavailable: Not now.
        """

    def maintain(self, *, idle: bool) -> None:
        """
        What the store needs besides records, for a fraction of a second; called after each round.

        Args:
            idle: Whether the round found nothing: now is the time for what can wait.

        Raises:
            TransportUnavailable: Not now.
        """

    def close(self) -> None:
        """Let go of connections."""


__all__ = ["Transport", "TransportUnavailable"]
