"""Retrying failed tasks with their captured arguments: one, or many with progress."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NoReturn

from celery import Celery
from kombu.exceptions import OperationalError
from msgspec import Struct
from msgspec.structs import replace

from celery_trace.clock import Clock
from celery_trace.errors import Unavailable
from celery_trace.guard import report
from celery_trace.model import Failure, Kind
from celery_trace.model.triage import Retried
from celery_trace.redaction import Redactor
from celery_trace.reproduction import recipes
from celery_trace.stores import triage
from flower_plugin.auth.audit import MonitorAuditLog
from flower_plugin.store_access import StoreAccess

logger = logging.getLogger("celery_trace.monitor")

#: Orders that send at the same time; each uses a thread of the monitor.
MOST_ORDERS = 2
#: Ended orders whose result is remembered.
MOST_REMEMBERED = 50
#: Seconds between two messages of an order, so that a fault that is not fixed does not fill the queue at once.
PACE_S = 0.05
#: Reasons of refused retries that are listed.
MOST_REASONS = 5


class CannotRetry(ValueError):
    """The task can't be retried; the message has the reason."""


def _refuse(hole: recipes.Hole) -> NoReturn:
    raise CannotRetry(f"{hole.where} is not known exactly: {hole.why}.")


def retry(app: Celery, failure: Failure) -> str:
    """
    Send the task of a failure again.

    Only plain values and containers are sent: a task must not run with a value that was cut, redacted or replaced.

    Returns:
        The new task's id.

    Raises:
        CannotRetry: It is not a task, or an argument is not exactly known; the message names it.
    """
    if failure.kind is not Kind.TASK:
        raise CannotRetry(f"It is a {failure.kind}, not a task.")
    capture = failure.capture
    if capture is None or capture.args < 0 or capture.kwargs < 0:
        raise CannotRetry("Its arguments were not captured.")
    # A message has copies anyway.
    call = recipes.call_of(capture, Redactor(), copies=True)
    if recipes.is_made(call.args) or recipes.is_made(call.kwargs):
        raise CannotRetry("An argument is of a type that can't be sent again.")
    args, kwargs = (recipes.value(recipe, None, _refuse) for recipe in (call.args, call.kwargs))
    options: dict[str, str] = {}
    if failure.task is not None and failure.task.queue:
        options["queue"] = failure.task.queue
    sent = app.send_task(failure.name, args=args, kwargs=kwargs, retry=False, **options)
    return str(sent.id)


class RetryOrder(Struct, frozen=True, kw_only=True):
    """
    The progress of an order to retry failures of a group.

    Attributes:
        total: How many failures it has.
        sent: Tasks that were sent again.
        known: Failures that had been sent again already.
        refused: Failures whose arguments are not exactly known, or that no longer exist.
        reasons: Why, with the number of failures, the first five.
        ended: Empty while it goes on; then ``done``, ``stopped`` or the error that ended it.
    """

    fingerprint: str
    user: str
    at_s: float
    total: int
    sent: int = 0
    known: int = 0
    refused: int = 0
    reasons: dict[str, int] = {}
    ended: str = ""
    ended_by: str = ""

    @property
    def seen(self) -> int:
        """How many failures it has looked at."""
        return self.sent + self.known + self.refused

    def refusing(self, why: str) -> RetryOrder:
        """After a refusal."""
        reasons = self.reasons
        if why in reasons or len(reasons) < MOST_REASONS:
            reasons = {**reasons, why: reasons.get(why, 0) + 1}
        return replace(self, refused=self.refused + 1, reasons=reasons)


class CannotBegin(ValueError):
    """An order can't begin now; the message has the reason."""


class Retries:
    """
    The orders to retry failures of a group, of one monitor. Thread-safe.

    A failure that was sent again from a monitor is not sent again by an order. That is noted after each message, so a
    monitor that is killed between the two sends one task twice.

    Args:
        capp: The Celery app that sends.
        access: The store.
        audit: Gets an entry for each message, and one for the end of an order.
        submit: Runs a function in a thread.
    """

    def __init__(
        self,
        capp: Celery,
        access: StoreAccess,
        audit: MonitorAuditLog,
        clock: Clock,
        submit: Callable[[Callable[[], object]], object],
    ) -> None:
        self._capp = capp
        self._access = access
        self._audit = audit
        self._clock = clock
        self._submit = submit
        self._lock = threading.Lock()
        self._orders: OrderedDict[str, RetryOrder] = OrderedDict()
        self._stops: dict[str, threading.Event] = {}
        self._stopped_by: dict[str, str] = {}
        self._closed = False

    def of(self, fingerprint: str) -> RetryOrder | None:
        """The latest order of a group, if it is remembered."""
        with self._lock:
            return self._orders.get(fingerprint)

    def begin(self, fingerprint: str, failures: Sequence[str], user: str) -> RetryOrder:
        """
        Begin to send these failures again.

        Raises:
            CannotBegin: One of the group goes on already, or too many orders go on.
        """
        with self._lock:
            if self._closed:
                raise CannotBegin("The monitor is about to end.")
            if fingerprint in self._stops:
                raise CannotBegin("Failures of this group are being retried already.")
            if len(self._stops) >= MOST_ORDERS:
                raise CannotBegin(f"{len(self._stops)} groups are being retried already.")
            order = RetryOrder(fingerprint=fingerprint, user=user, at_s=self._clock.now_s(), total=len(failures))
            stop = self._stops[fingerprint] = threading.Event()
            self._remember(order)
        self._submit(lambda: self._run(order, failures, stop))
        return order

    def stop(self, fingerprint: str, user: str) -> bool:
        """End an order after the message that is being sent. Returns whether one goes on."""
        with self._lock:
            stop = self._stops.get(fingerprint)
            if stop is None:
                return False
            self._stopped_by[fingerprint] = user
            stop.set()
            return True

    def close(self) -> None:
        """End all orders, and begin no more."""
        with self._lock:
            self._closed = True
            for stop in self._stops.values():
                stop.set()

    def note(self, failure: Failure, user: str, task_id: str, fingerprint: str) -> None:
        """
        Write that a failure was sent again.

        Raises:
            Unavailable: The store can't be written.
        """
        record = Retried(
            id=failure.id, fingerprint=fingerprint, at=self._clock.now_s(), user=user, task_id=task_id[:255]
        )
        self._access.store.in_transaction(lambda connection: triage.retried(connection, [record]))

    def _remember(self, order: RetryOrder) -> None:
        self._orders[order.fingerprint] = order
        self._orders.move_to_end(order.fingerprint)
        ended = [key for key in self._orders if key not in self._stops]
        for key in ended[: max(0, len(self._orders) - MOST_REMEMBERED)]:
            del self._orders[key]

    def _run(self, order: RetryOrder, failures: Sequence[str], stop: threading.Event) -> None:
        ended = "done"
        try:
            for identifier in failures:
                if stop.is_set():
                    ended = "stopped"
                    break
                order = self._send(order, identifier)
                with self._lock:
                    self._orders[order.fingerprint] = order
                stop.wait(PACE_S)
        except (OperationalError, OSError) as error:
            ended = f"The broker is not responding: {error}"
        except Unavailable as error:
            ended = str(error)
        except Exception as error:
            report("retrying failures", error)
            ended = f"Internal error: {type(error).__name__}"
        with self._lock:
            by = self._stopped_by.pop(order.fingerprint, "")
            order = replace(order, ended=ended[:500], ended_by=by)
            del self._stops[order.fingerprint]
            self._remember(order)
        self._audit.done(
            who=order.user, what=f"retries of group {order.fingerprint} ended", how=order.ended, by=by,
            sent=order.sent, known=order.known, refused=order.refused, total=order.total,
        )  # fmt: skip

    def _send(self, order: RetryOrder, identifier: str) -> RetryOrder:
        queries = self._access.queries
        if queries.retried([identifier]):
            return replace(order, known=order.known + 1)
        failure = queries.failure_record(identifier)
        if failure is None:
            return order.refusing("The failure was pruned.")
        try:
            task_id = retry(self._capp, failure)
        except CannotRetry as error:
            return order.refusing(str(error))
        self._audit.done(who=order.user, what=f"retry of failure {identifier}", failure=identifier, task_id=task_id)
        self.note(failure, order.user, task_id, order.fingerprint)
        return replace(order, sent=order.sent + 1)
