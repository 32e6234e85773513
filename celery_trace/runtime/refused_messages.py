"""
Observes the messages that a worker refuses before they become tasks.

Celery's consumer has a method for each kind of refusal. Two of them only log, and ``task_unknown`` is not sent while
the result backend is down. So the methods themselves are wrapped, on each consumer that Celery builds.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from celery_trace.guard import report

if TYPE_CHECKING:
    from celery import Celery
    from celery.worker.consumer import Consumer
    from kombu import Message

P = ParamSpec("P")
R = TypeVar("R")

#: ``(way, message, error)``; the way is a key of :data:`WAYS`. The error is None for an unknown format.
Refused = Callable[[str, "Message", BaseException | None], None]

#: The consumer's methods, and the positions of message and error in their arguments.
WAYS: Final[dict[str, tuple[int, int | None]]] = {
    "on_decode_error": (0, 1),
    "on_unknown_message": (1, None),
    "on_unknown_task": (1, 2),
    "on_invalid_task": (1, 2),
}


def install(app: Celery, refused: Refused) -> Callable[[], None]:
    """
    Call ``refused`` for each message that a consumer of ``app`` refuses from its next start on.

    Call it before the worker builds its consumer, for example on ``worker_init``.

    Returns:
        A function that undoes it, on running consumers too.
    """
    from celery import bootsteps  # loaded by any worker

    wrapped: weakref.WeakSet[Consumer] = weakref.WeakSet()

    class RefusedMessages(bootsteps.Step):  # type: ignore[misc]
        """Wraps the methods while the consumer is built: its ``Tasks`` step takes some of them when it starts."""

        def create(self, consumer: Consumer) -> None:
            wrapped.add(consumer)
            for way, (message_at, error_at) in WAYS.items():
                method = getattr(consumer, way, None)
                if callable(method):
                    setattr(consumer, way, _around(method, way, message_at, error_at, refused))

    steps = app.steps["consumer"]
    steps.add(RefusedMessages)

    def undo() -> None:
        steps.discard(RefusedMessages)
        for consumer in list(wrapped):
            for way in WAYS:
                vars(consumer).pop(way, None)

    return undo


def _around(
    method: Callable[P, R], way: str, message_at: int, error_at: int | None, refused: Refused
) -> Callable[P, R]:
    @functools.wraps(method)
    def intercepted(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return method(*arguments, **named)
        finally:  # it may raise while the broker or the result backend is down
            try:
                error = arguments[error_at] if error_at is not None else None
                refused(way, arguments[message_at], error if isinstance(error, BaseException) else None)
            except Exception as failed:
                report("refused message", failed)

    return intercepted
