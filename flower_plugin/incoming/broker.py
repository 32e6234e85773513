"""How the broker is, as the event thread last saw it."""

from __future__ import annotations

import logging
import re
import threading

from msgspec import Struct

from celery_trace.clock import Clock
from celery_trace.guard import Guard

logger = logging.getLogger("celery_trace.monitor")

# Up to the last @ of the word: people write passwords with @ and / in them.
_PASSWORD = re.compile(r"(://[^:/@\s]*:)\S+@")


class BrokerState(Struct, frozen=True, kw_only=True):
    """Whether events flow. ``up`` is None until the first try ended."""

    up: bool | None
    since_s: float
    why: str = ""


class BrokerLink:
    """Written by the event thread, read by the pages; each change is logged once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._state = BrokerState(up=None, since_s=clock.now_s())

    @property
    def state(self) -> BrokerState:
        """The latest state."""
        return self._state

    def up(self) -> None:
        """Events flow."""
        with self._lock:
            if self._state.up is not True:
                was_down = self._state.up is False
                self._state = BrokerState(up=True, since_s=self._clock.now_s())
                if was_down:
                    logger.info("The broker answers again.")

    def down(self, error: BaseException) -> None:
        """The broker did not answer, or the connection broke."""
        why = _PASSWORD.sub(r"\1***@", str(error)) or type(error).__name__
        with self._lock, Guard("broker state"):
            if self._state.up is not False:
                logger.warning(
                    "The broker does not answer (%s). Pages show what the store holds; live shells and Flower's own "
                    "pages wait. Trying again every few seconds.",
                    why,
                )
                self._state = BrokerState(up=False, since_s=self._clock.now_s(), why=why)
