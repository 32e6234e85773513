"""The state of the broker, as the event thread last saw it."""

from __future__ import annotations

import logging
import re
import threading

from msgspec import Struct

from celery_trace.clock import Clock
from celery_trace.guard import Guard

logger = logging.getLogger("celery_trace.monitor")

# Up to the last @ of the word, as passwords may contain @ and /.
_PASSWORD = re.compile(r"(://[^:/@\s]*:)\S+@")


def why_of(error: BaseException) -> str:
    """An error of a broker's driver as text, without a password."""
    return _PASSWORD.sub(r"\1***@", str(error)) or type(error).__name__


class BrokerState(Struct, frozen=True, kw_only=True):
    """Whether the broker is connected. ``up`` is None until the first attempt has ended."""

    up: bool | None
    since_s: float
    why: str = ""


class BrokerLink:
    """Set by the event thread, read by pages; changes are logged."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._state = BrokerState(up=None, since_s=clock.now_s())

    @property
    def state(self) -> BrokerState:
        """The latest state."""
        return self._state

    def up(self) -> None:
        """The broker is connected."""
        with self._lock:
            if self._state.up is not True:
                was_down = self._state.up is False
                self._state = BrokerState(up=True, since_s=self._clock.now_s())
                if was_down:
                    logger.info("The broker is connected again.")

    def down(self, error: BaseException) -> None:
        """The broker is not reachable, or the connection was lost."""
        why = why_of(error)
        with self._lock, Guard("broker state"):
            if self._state.up is not False:
                logger.warning(
                    "The broker is not responding (%s). Pages show stored data; live shells and Flower's own pages are "
                    "unavailable. Reconnecting every few seconds.",
                    why,
                )
                self._state = BrokerState(up=False, since_s=self._clock.now_s(), why=why)
