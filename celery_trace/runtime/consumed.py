"""
The messages that a worker consumes: when they are received, when their runs begin, and what is reserved.

``task_received`` is sent for each message. That its run has begun, the pool reports to the message's request
(``Request.on_accepted``), in the worker's main process, with the time at which it began. Celery sends no signal then,
so that method is wrapped.
"""

from __future__ import annotations

import contextlib
import functools
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import ModuleType
from typing import Final, Protocol, TypeVar

from celery_trace import published
from celery_trace.failures.celery_request import number, retries_of
from celery_trace.guard import report, swallow
from celery_trace.model import Ahead, AnyRecord, Consuming, MessageStart, ProcessRecord
from celery_trace.runtime.flow import MOST_NAME, MessageFlow
from celery_trace.runtime.idle_consumer import Idle, why_idle
from celery_trace.runtime.messages import DONE, IN_PYTHON, Message, quick_messages

#: How often the state of the queues is looked at, seconds, and written if nothing has changed.
LOOK_S: Final = 10.0
LOOK_IDLE_S: Final = 30.0
WRITE_S: Final = 60.0
#: A run with a late acknowledgement that lasts longer than this, or than the visibility timeout, is written: its
#: message may be delivered again while it runs. Seconds.
LONG_S: Final = 300.0
#: Ended runs of which the ids are remembered, and runs whose end was not noticed yet.
MOST_ENDED: Final = 1000
MOST_UNNOTICED: Final = 20_000
#: Runs ahead of reserved messages in one record.
MOST_AHEAD: Final = 3

R = TypeVar("R")


class _Exchange(Protocol):
    name: str


class WorkerQueue(Protocol):
    """A queue that a worker consumes."""

    name: str
    exchange: _Exchange
    routing_key: str


class _Delivered(Protocol):
    delivery_info: Mapping[str, object]


class _Task(Protocol):
    name: str
    acks_late: object


class WorkerRequest(Protocol):
    """Celery's request of a received message, with what we keep in it."""

    id: str
    name: str
    task: _Task
    eta: datetime | None
    time_start: object
    request_dict: Mapping[str, object]
    delivery_info: Mapping[str, object]
    message: _Delivered
    trace_message: Message


class ConsumedMessages:
    """
    The messages of one worker.

    Args:
        process: The worker's main process.
        flow: Adds the messages up.
        write: Takes the other records.
    """

    def __init__(self, process: ProcessRecord, flow: MessageFlow, write: Callable[[AnyRecord], None]) -> None:
        self._process = process
        self._flow = flow
        self._write = write
        self._state = worker_state()
        self._consumer: object = None
        self._started: dict[str, Message] = {}
        self._ended: OrderedDict[str, tuple[Message, float, bool]] = OrderedDict()
        self._written: dict[str, Consuming] = {}
        self._idle_since: Idle | None = None
        self._mark = object()
        #: Handles the usual messages; None where there is no extension module.
        self.quick = quick_messages(
            self._mark, self._started, self._ended, MOST_UNNOTICED, published.HEADER, published.OLDEST_S
        )

    # --- a message's life

    def received(self, consumer: object, request: WorkerRequest) -> None:
        """A message was received; in Celery's consumer, for each message: every microsecond here bounds its rate."""
        try:
            if self.quick is not None and self.quick.received(consumer, request):
                return
            self._consumer = consumer
            now_s = time.time()
            headers, info, eta, task = request.request_dict, request.delivery_info, request.eta, request.task
            sent_s, problem = published.published_s(headers, now_s)
            if problem:
                self._flow.count(problem)
            message = Message()
            message.owner = self._mark
            message.name = name = task.name
            message.queue = queue = self._queue_of(request, info, name)
            message.received_s = now_s
            message.waits_since_s = sent_s
            message.retries = retries_of(headers)
            message.redelivered = bool(info.get("redelivered") or headers.get("redelivered"))
            message.late = bool(task.acks_late)
            message.written = False
            request.trace_message = message
            transfer_s = now_s - sent_s if sent_s is not None and not message.redelivered else None
            if eta is None:
                self._flow.received(queue, name, transfer_s, 0.0)
                return
            eta_s = eta.timestamp()
            if sent_s is not None:
                message.waits_since_s = max(sent_s, eta_s)
            self._flow.received(queue, name, transfer_s, max(0.0, eta_s - now_s))
        except Exception as error:
            swallow("message received", error)

    def accepted(self, request: WorkerRequest) -> None:
        """The run of a message has begun, as its pool reports; in any thread."""
        done = self.quick.accepted(request) if self.quick is not None else IN_PYTHON
        if done == DONE:
            return
        message: Message | None = getattr(request, "trace_message", None)
        started_s = number(request.time_start)
        if message is None or message.owner is not self._mark or started_s is None:
            return
        if done == IN_PYTHON:
            self._count_start(message, request, started_s)
        self._note_start(message, request.id)

    def _count_start(self, message: Message, request: WorkerRequest, started_s: float) -> None:
        since_s, eta = message.waits_since_s, request.eta
        reserved_s = message.received_s if eta is None else max(message.received_s, eta.timestamp())
        message.started_s = started_s
        message.request = weakref.ref(request)
        self._flow.started(
            message.queue,
            message.name,
            max(0.0, started_s - since_s) if since_s is not None else None,
            max(0.0, started_s - reserved_s),
            redelivered=message.redelivered,
            late=message.late,
        )

    def _note_start(self, started: Message, task_id: str) -> None:
        """Remember a start; write it if its message was delivered before, with the earlier start if it was here."""
        if len(self._started) >= MOST_UNNOTICED:
            self._note_ends(time.time())
        earlier = self._started.get(task_id)
        if earlier is not None and earlier.retries == started.retries:
            self._write_start(earlier, task_id, *self._end_of(earlier, task_id, started.started_s))
            self._write_start(started, task_id)
        elif started.redelivered or task_id in self._ended:
            ended = self._ended.get(task_id)
            if ended is not None and ended[0].retries == started.retries:
                self._write_start(ended[0], task_id, ended[1], succeeded=ended[2])
                self._write_start(started, task_id)
            elif started.redelivered:
                self._write_start(started, task_id)
        self._started[task_id] = started

    def _end_of(self, started: Message, task_id: str, now_s: float) -> tuple[float | None, bool]:
        """When a run ended, and whether it succeeded; None while it runs."""
        if self._is_running(started):
            return None, False
        return now_s, task_id in self._state.successful_requests

    def _is_running(self, started: Message) -> bool:
        request = started.request()
        return request is not None and request in self._state.active_requests

    def _note_ends(self, now_s: float) -> None:
        """Move the runs that have ended since the last look; write those that last long."""
        long_s = min(LONG_S, self._visibility_timeout_s() or LONG_S)
        ended: list[tuple[str, Message]] = []
        for task_id, started in list(self._started.items()):
            if self._is_running(started):
                if started.late and not started.written and now_s - started.started_s > long_s:
                    self._write_start(started, task_id)
                continue
            if self._started.get(task_id) is started:
                del self._started[task_id]
            if started.written:
                self._write_start(started, task_id, *self._end_of(started, task_id, now_s))
            ended.append((task_id, started))
        for task_id, started in ended[-MOST_ENDED:]:
            self._ended[task_id] = started, now_s, task_id in self._state.successful_requests
        while len(self._ended) > MOST_ENDED:
            self._ended.popitem(last=False)

    def _write_start(
        self, started: Message, task_id: str, ended_s: float | None = None, succeeded: bool = False
    ) -> None:
        started.written = True
        self._write(
            MessageStart(
                process=self._process.uid,
                worker=self._process.worker or self._process.host,
                queue=started.queue,
                name=started.name[:MOST_NAME],
                task_id=str(task_id)[:MOST_NAME],
                retries=started.retries,
                started_at_s=started.started_s,
                ended_at_s=ended_s,
                succeeded=succeeded,
                redelivered=started.redelivered,
            )
        )

    # --- the queues

    def _queues(self) -> list[WorkerQueue]:
        consumer = getattr(self._consumer, "task_consumer", None)
        return list(getattr(consumer, "queues", None) or ())

    def _queue_of(self, request: WorkerRequest, info: Mapping[str, object], name: str) -> str:
        """The queue that a message came from, remembered while the consumer's queues are the same."""
        found = getattr(getattr(self._consumer, "task_consumer", None), "_active_tags", None)
        tags: Mapping[object, object] = found or {}
        tag = request.message.delivery_info.get("consumer_tag")
        queue = self._find_queue(tags, tag, info)
        counts = self._flow.counts(queue, name) if self.quick is not None else None
        if self.quick is not None and counts is not None:
            route = tag, info.get("exchange"), info.get("routing_key"), name
            with contextlib.suppress(TypeError):  # a message can contain anything
                self.quick.learn(self._consumer, found, len(tags), route, counts)
        return queue

    def _find_queue(self, tags: Mapping[object, object], tag: object, info: Mapping[str, object]) -> str:
        if tag is not None and len(tags) < 100:
            for name, known in tags.items():
                if known == tag:
                    return str(name)[:MOST_NAME]
        exchange, key = info.get("exchange") or "", info.get("routing_key") or ""
        queues = self._queues()
        for queue in queues:
            if (queue.name == key and not exchange) or (queue.exchange.name == exchange and queue.routing_key == key):
                return str(queue.name)[:MOST_NAME]
        return str(queues[0].name if len(queues) == 1 else key)[:MOST_NAME]

    def look(self, consumer: object = None) -> None:
        """Write the state of each queue that the worker consumes, if it has changed or a minute is over."""
        state = self._state
        if consumer is not None:
            self._consumer = consumer
        now_s = time.time()
        self._note_ends(now_s)
        active = _members(state.active_requests)
        waiting = [request for request in _members(state.reserved_requests) if request not in state.active_requests]
        scheduled = _members(getattr(state, "scheduled_requests", ()))
        ahead = sorted(
            (Ahead(str(one.name)[:MOST_NAME], str(one.id)[:MOST_NAME], one.time_start) for one in active
             if number(one.time_start) is not None),
            key=lambda run: run.since_s,
        )[:MOST_AHEAD]  # fmt: skip
        timeout_s = self._visibility_timeout_s()
        idle = self._idle(len(active), len(waiting), len(scheduled), now_s)
        names = {str(queue.name)[:MOST_NAME] for queue in self._queues()}
        for queue in sorted(names):
            reserved = [request for request in waiting if _is_from(request, queue)]
            since_s = [request.trace_message.received_s for request in reserved]
            self._write_state(
                Consuming(
                    process=self._process.uid,
                    queue=queue,
                    at_s=now_s,
                    worker=self._process.worker or self._process.host,
                    running=sum(_is_from(request, queue) for request in active),
                    reserved=len(reserved),
                    scheduled=sum(_is_from(request, queue) for request in scheduled),
                    reserved_since_s=min(since_s, default=None),
                    ahead=ahead if reserved else [],
                    visibility_timeout_s=timeout_s,
                    idle_because=idle.because if idle is not None else "",
                    idle_since_s=idle.since_s if idle is not None else None,
                )
            )
        if names:  # while the worker reconnects it has none, and still consumes them all
            self._leave(set(self._written) - names, now_s)

    def _idle(self, active: int, waiting: int, scheduled: int, now_s: float) -> Idle | None:
        held = active + waiting  # Celery counts scheduled messages as reserved
        found = why_idle(self._consumer, active=active, held=held, scheduled=scheduled, now_s=now_s)
        if found is None:
            self._idle_since = None
        elif self._idle_since is None or self._idle_since.because != found.because:
            self._idle_since = Idle(found.because, found.since_s or now_s)
        return self._idle_since

    def _write_state(self, found: Consuming) -> None:
        known = self._written.get(found.queue)
        if known is None or found.at_s - known.at_s >= WRITE_S or _facts(known) != _facts(found):
            self._written[found.queue] = found
            self._write(found)

    def _leave(self, queues: Iterable[str], now_s: float) -> None:
        for queue in sorted(queues):
            del self._written[queue]
            self._write(Consuming(process=self._process.uid, queue=queue, at_s=now_s, gone=True,
                                  worker=self._process.worker or self._process.host))  # fmt: skip

    def _visibility_timeout_s(self) -> float | None:
        """The time after which the broker delivers an unacknowledged message again; None if it does not."""
        connection = getattr(self._consumer, "connection", None)
        if connection is None:
            return None
        channel = getattr(connection.get_transport_cls(), "Channel", None)
        known = [name for name in ("visibility_timeout", "default_visibility_timeout") if hasattr(channel, name)]
        if not known:  # it has none, and ignores the option
            return None
        chosen = number((connection.transport_options or {}).get("visibility_timeout"))
        return chosen or next((number(value) for name in known if number(value := getattr(channel, name))), None)

    def close(self) -> None:
        """The worker ends: write the ends of its runs, and that it no longer consumes its queues."""
        now_s = time.time()
        self._note_ends(now_s)
        self._leave(list(self._written), now_s)


def worker_state() -> ModuleType:
    """What Celery knows of the requests of this process; loaded by any worker."""
    from celery.worker import state

    found: ModuleType = state
    return found


def _members(found: Iterable[R]) -> list[R]:
    """The requests in one of Celery's weak sets, to which the main thread adds meanwhile."""
    for _ in range(5):
        try:
            return list(found)
        except RuntimeError:  # it changed during the iteration
            continue
    return []


def _is_from(request: WorkerRequest, queue: str) -> bool:
    message: Message | None = getattr(request, "trace_message", None)
    return message is not None and message.queue == queue


def _facts(state: Consuming) -> tuple[object, ...]:
    return state.running, state.reserved, state.scheduled, state.reserved_since_s, state.ahead, state.idle_because


def install(accepted: Callable[[WorkerRequest], None]) -> Callable[[], None]:
    """
    Call ``accepted`` with the request of each run that begins in a worker of this process.

    Returns:
        A function that undoes it.
    """
    from celery.worker.request import Request

    original = Request.on_accepted

    @functools.wraps(original)
    def on_accepted(self: WorkerRequest, pid: int, time_accepted: float) -> None:
        try:
            original(self, pid, time_accepted)
        finally:
            try:
                accepted(self)
            except Exception as error:
                report("run of a message begins", error)

    Request.on_accepted = on_accepted

    def undo() -> None:
        if Request.on_accepted is on_accepted:
            Request.on_accepted = original

    return undo
