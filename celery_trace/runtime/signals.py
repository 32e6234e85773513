"""All of Celery's signals that the plugin listens to, connected in one place and undone in one call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from celery import signals

#: Signal name to the method of :class:`Listener` that receives it.
RECEIVED: Final = (
    "worker_init",
    "worker_process_init",
    "worker_process_shutdown",
    "worker_ready",
    "worker_shutdown",
    "beat_init",
    "before_task_publish",
    "task_received",
    "task_prerun",
    "task_postrun",
    "task_failure",
    "task_retry",
    "task_internal_error",
    "task_revoked",
)


class Listener(Protocol):
    """Has a method ``on_<signal>`` for each signal of :data:`RECEIVED` that it wants."""


class Connection:
    """Connected receivers; :meth:`close` disconnects them all. A second call does nothing."""

    def __init__(self) -> None:
        self._undo: dict[str, Callable[[], object]] = {}

    def add(self, name: str, receiver: Callable[..., object], uid: str) -> None:
        """
        Connect one method weakly: it receives as long as its object lives.

        A finalizer could not disconnect it: the garbage collector runs finalizers anywhere, also inside
        ``Signal.connect``, which has a lock that can't be taken twice.
        """
        signal = getattr(signals, name)
        signal.connect(receiver, weak=True, dispatch_uid=uid)
        self._undo[name] = partial(signal.disconnect, dispatch_uid=uid)

    def drop(self, *names: str) -> None:
        """Disconnect the receivers of these signals."""
        for name in names:
            undo = self._undo.pop(name, None)
            if undo is not None:
                undo()

    def close(self) -> None:
        """Disconnect everything that was connected here."""
        self.drop(*list(self._undo))


def connect(listener: Listener, uid: str = "celery_trace") -> Connection:
    """
    Connect each ``on_<signal>`` of ``listener`` until it is closed or the listener is gone.

    A second call with the same ``uid`` changes nothing.
    """
    connection = Connection()
    for name in RECEIVED:
        receiver = getattr(listener, f"on_{name}", None)
        if receiver is not None:
            connection.add(name, receiver, f"{uid}.{name}")
    return connection
