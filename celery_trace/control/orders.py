"""
Orders to running workers: measure a task in another mode for a while, profile its next run, release failures.

Celery's remote control (pidbox) trusts everyone who can publish on the broker. Ours does not: an order is signed for
one worker's main process, checked there once, audited, and written to a file that only the worker's user can read.
The processes that run tasks poll that file's date; it is signed too.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from kombu.serialization import prepare_accept_content
from msgspec import Struct

from celery_trace import private_files
from celery_trace.clock import Clock, SystemClock
from celery_trace.control import files
from celery_trace.control.audit import AuditLog
from celery_trace.control.files import LONGEST_S
from celery_trace.control.signing import MessageRefused, RefusalLimit, ReplayCache, load_key, sign, verify
from celery_trace.guard import Guard
from celery_trace.heap import flamegraph
from celery_trace.model import AuditEntry, ProcessRecord, new_id
from celery_trace.settings import Settings
from celery_trace.text.format import duration
from celery_trace.transports.raw import RawRefusal, check_messages, checked_channel

if TYPE_CHECKING:
    import kombu
    import kombu.pidbox
    from celery import Celery
    from celery.worker.consumer import Consumer
    from kombu.transport.virtual import Channel

    _OnMessage = Callable[[object, kombu.Message], None]

logger = logging.getLogger("celery_trace.control")

#: Names of the remote control commands.
HELLO, ORDER = "trace_hello", "trace_order"
#: Most orders in force in a worker; a further one replaces the oldest.
MOST_ORDERS = 50
ANSWER_S = 2.0
#: Size limit of a remote control message, bytes. Celery's own are small, but may name many tasks to revoke.
MOST_COMMAND_BYTES = 8 * 1024 * 1024
MODES = ("off", "rss", "auto", "always")
ACTIONS = ("mode", "profile", "drop")


class Order(Struct, frozen=True, omit_defaults=True):
    """
    An order to a worker.

    ``mode`` measures runs of ``name`` in ``mode`` until ``until_s``; ``profile`` runs memray around the next run of
    ``name``; ``drop`` releases the kept failure ``failure``, or all if that is empty.
    """

    action: str
    id: str = ""
    name: str = ""
    mode: str = ""
    failure: str = ""
    until_s: float = 0.0  # wall clock


class Answer(Struct, frozen=True):
    """The result of an order in one worker."""

    worker: str
    ok: bool
    why: str = ""


class _OrderFile(Struct, frozen=True):
    orders: list[Order]


_orders = msgspec.json.Decoder(Order)
_order_file = msgspec.json.Decoder(_OrderFile)
_answers = msgspec.json.Decoder(Answer)


def orders_file(settings: Settings, main_uid: str) -> Path:
    """The file of a worker's orders, by the uid of its main process."""
    return files.file(settings.folder, main_uid)


class RemoteControlFilter:
    """
    Filters the messages of a worker's remote control queue, which Celery reads from any publisher.

    Messages that are compressed, which commands never are, or larger than :data:`MOST_COMMAND_BYTES` are dropped
    before kombu decompresses or decodes them.
    """

    def __init__(self, clock: Clock) -> None:
        self._refusals = RefusalLimit(clock, per_minute=1)
        #: ``control:refused`` and ``control:refused:<why>``, for the process's Stats.
        self.counters: Counter[str] = Counter()
        self._step: type[object] | None = None

    def install(self, app: Celery) -> None:
        """Install the filter in the app's worker. To be called before the worker creates its consumer."""
        from celery import bootsteps
        from celery.worker.consumer.control import Control

        message_filter = self

        class FilterStep(bootsteps.StartStopStep):  # type: ignore[misc]
            requires = (Control,)

            def create(self, parent: Consumer) -> FilterStep:
                with Guard("control: message filter"):
                    for step in parent.steps:
                        if isinstance(step, Control):
                            message_filter._filter_messages(step.box.node)
                return self

            def start(self, parent: Consumer) -> None:
                """Nothing to do: :meth:`create` has wrapped the node's ``listen``."""

            def stop(self, parent: Consumer) -> None:
                """Nothing to do either."""

        self._step = FilterStep
        app.steps["consumer"].add(FilterStep)

    def uninstall(self, app: Celery) -> None:
        """Don't install the filter in further workers of the app."""
        app.steps["consumer"].discard(self._step)

    def _filter_messages(self, node: kombu.pidbox.Node) -> None:
        """Check the node's messages first, each time that it starts to listen on a new channel."""
        listen = node.listen

        def listen_filtered(channel: Channel | None = None, callback: _OnMessage | None = None) -> object:
            with Guard("control: message filter"):
                check_messages(channel or node.channel, MOST_COMMAND_BYTES)
            on_message = callback or node.handle_message

            def filtered(body: object, message: kombu.Message) -> None:
                refused = getattr(message, "refused", None)
                if refused is None:
                    on_message(body, message)
                else:
                    self._refuse(refused)

            return listen(channel=channel, callback=filtered)

        node.listen = listen_filtered

    def _refuse(self, refused: RawRefusal) -> None:
        self.counters["control:refused"] += 1
        self.counters[f"control:refused:{refused.why}"] += 1
        if self._refusals.admit():
            logger.warning(
                "celery-trace: a message for remote control was dropped unread (%s): %s", refused.why, refused.text
            )


class OrderReceiver:
    """
    Receives orders in a worker's main process, checks them and writes them to its file.

    Args:
        process: The main process; its uid is the target that orders must name.
        emit: Sends audit records to the store.
    """

    def __init__(
        self,
        settings: Settings,
        process: ProcessRecord,
        clock: Clock,
        emit: Callable[[AuditEntry], None] | None = None,
    ) -> None:
        self._process = process
        self._clock = clock
        self._key = load_key(settings)
        self._folder = settings.folder
        self._path = orders_file(settings, process.uid)
        self._replays = ReplayCache()
        self._refusals = RefusalLimit(clock)
        self._audit = AuditLog(settings.folder, "worker", clock, emit)
        self._orders: list[Order] = []
        #: ``control:done``, ``control:refused`` and ``control:refused:<why>``, for the process's Stats.
        self.counters: Counter[str] = Counter()

    def install(self) -> None:
        """Register Celery's remote control commands. They are global to the process; the last receiver gets them."""
        from celery.worker.control import control_command, inspect_command

        def hello(_state: object, **_: object) -> dict[str, str]:
            return {"uid": self._process.uid}

        def order(_state: object, message: str = "", **_: object) -> dict[str, str]:
            return {"message": self.receive(message)}

        inspect_command(name=HELLO)(hello)
        control_command(name=ORDER, args=[("message", str)])(order)

    def close(self) -> None:
        """Orders end with their worker."""
        from celery.worker.control import Panel

        for name in (HELLO, ORDER):
            Panel.data.pop(name, None)
            Panel.meta.pop(name, None)
        with Guard("control: orders' file"):
            files.forget(self._folder, self._process.uid)

    def receive(self, message: str) -> str:
        """
        Check a message and put its order in force.

        Returns:
            A signed :class:`Answer`, or an empty text if the message's signature was invalid.
        """
        claims = None
        try:
            accepted = verify(
                self._key,
                message.encode("utf-8", "backslashreplace") if isinstance(message, str) else b"",
                kind="order",
                target=self._process.uid,
                now_s=self._clock.now_s(),
                replays=self._replays,
            )
            claims = accepted.claims
            try:
                order = _checked(_orders.decode(accepted.body), self._clock.now_s())
            except (msgspec.DecodeError, ValueError) as error:
                raise MessageRefused("malformed", str(error), claims) from None
            if order.action == "profile" and not flamegraph.available():
                raise MessageRefused("unavailable", flamegraph.MISSING, claims)
            self._audit.note(accepted.body, process=self._process.uid, user=claims.user)
            self._save(order)
            self.counters["control:done"] += 1
            answer = Answer(self._process.worker, True)
        except MessageRefused as refused:
            self.counters["control:refused"] += 1
            self.counters[f"control:refused:{refused.code}"] += 1
            claims = claims or refused.claims
            if self._refusals.admit():
                logger.warning("celery-trace: an order was refused (%s): %s", refused.code, refused)
                self._audit.note(
                    claims.action if claims else "",
                    verdict=f"refused: {refused.code}: {refused}",
                    process=self._process.uid,
                    user=claims.user if claims else "",
                    stranger=claims is None,
                )
            if claims is None:
                return ""
            answer = Answer(self._process.worker, False, f"{refused.code}: {refused}")
        except OSError as error:
            answer = Answer(self._process.worker, False, f"the worker can't write {self._path}: {error.strerror}")
        if claims is None:
            return ""
        data, _nonce = sign(
            self._key,
            kind="reply",
            target=claims.nonce,
            action="answer",
            now_s=self._clock.now_s(),
            body=msgspec.json.encode(answer).decode("utf-8"),
            answers=claims.nonce,
        )
        return data.decode("utf-8")

    def _save(self, order: Order) -> None:
        now_s = self._clock.now_s()
        expired = [one for one in self._orders if one.until_s <= now_s]
        still = [
            one
            for one in self._orders
            if one.until_s > now_s and (one.action, one.name, one.failure) != (order.action, order.name, order.failure)
        ]
        self._orders = [*still, order][-MOST_ORDERS:]
        data, _nonce = sign(
            self._key,
            kind="standing",
            target=self._process.uid,
            action="orders",
            now_s=now_s,
            body=msgspec.json.encode(_OrderFile(self._orders)).decode("utf-8"),
            valid_s=LONGEST_S,
        )
        private_files.make_part(self._path.parent)
        private_files.replace(self._path, data)
        for old in expired:
            files.mark(self._folder, self._process.uid, old.id).unlink(missing_ok=True)


def _checked(order: Order, now_s: float) -> Order:
    """
    Validate an order.

    Raises:
        ValueError: It is invalid.
    """
    if order.action not in ACTIONS:
        raise ValueError(f"unknown order {order.action[:40]!r}; known are {', '.join(ACTIONS)}")
    if order.action == "mode" and order.mode not in MODES:
        raise ValueError(f"unknown mode {order.mode[:40]!r}; known are {', '.join(MODES)}")
    if order.action in ("mode", "profile") and not 0 < len(order.name) <= 500:
        raise ValueError("it names no task")
    if not order.id.isalnum() or len(order.id) > 40:
        raise ValueError("its id is invalid")
    if not now_s < order.until_s <= now_s + LONGEST_S + 60:
        raise ValueError(f"it must end within {duration(LONGEST_S)}")
    return order


class OrderPoller:
    """
    Polls for new orders in a process that runs tasks. The ticker calls :meth:`poll`.

    Args:
        main_uid: The uid of the worker's main process (this one's own if it runs the tasks itself).
        on_mode: Called with (name, mode, seconds left).
        on_profile: Called with (name, claim, seconds left). The process for which ``claim()`` is True profiles the
            next run, so that only one process of the worker does.
        on_drop: Called with a failure's id, or "" for all.
    """

    def __init__(
        self,
        settings: Settings,
        main_uid: str,
        clock: Clock,
        *,
        on_mode: Callable[[str, str, float], None],
        on_profile: Callable[[str, Callable[[], bool], float], None] | None = None,
        on_drop: Callable[[str], None] | None = None,
    ) -> None:
        self._settings = settings
        self._main_uid = main_uid
        self._clock = clock
        self._path = orders_file(settings, main_uid)
        self._on_mode = on_mode
        self._on_profile = on_profile
        self._on_drop = on_drop
        self._seen: tuple[int, int] | None = None
        self._carried_out: dict[str, float] = {}
        self._key: bytes | None = None
        #: ``control:refused`` and its reasons: a file that was not written by our worker.
        self.counters: Counter[str] = Counter()

    def poll(self) -> None:
        """Execute new orders. Costs one ``stat`` if there are none."""
        with Guard("control: orders"):
            try:
                status = os.lstat(self._path)
            except (FileNotFoundError, NotADirectoryError):
                return
            seen = (status.st_mtime_ns, status.st_ino)
            if seen == self._seen:
                return
            self._seen = seen
            for order in self._read():
                self._carry_out(order)

    def _read(self) -> list[Order]:
        if self._key is None:
            self._key = load_key(self._settings)
        try:
            message = verify(
                self._key,
                private_files.read(self._path),
                kind="standing",
                target=self._main_uid,
                now_s=self._clock.now_s(),
                longest_s=LONGEST_S + 1,
            )
            return _order_file.decode(message.body).orders
        except MessageRefused as refused:
            self.counters["control:refused"] += 1
            self.counters[f"control:refused:{refused.code}"] += 1
            logger.warning("celery-trace: the orders in %s were refused (%s): %s", self._path, refused.code, refused)
            return []
        except private_files.NotOurs as refused:
            self.counters["control:refused"] += 1
            self.counters["control:refused:file"] += 1
            logger.warning("celery-trace: the orders were refused: %s", refused)
            return []

    def _carry_out(self, order: Order) -> None:
        now_s = self._clock.now_s()
        left_s = order.until_s - now_s
        if order.id in self._carried_out or left_s <= 0:
            return
        self._carried_out = {known: until_s for known, until_s in self._carried_out.items() if until_s > now_s}
        self._carried_out[order.id] = order.until_s
        with Guard(f"control: {order.action}"):
            if order.action == "mode":
                self._on_mode(order.name, order.mode, left_s)
            elif order.action == "profile" and self._on_profile is not None:
                self._on_profile(order.name, lambda: self._claim(order.id), left_s)
            elif order.action == "drop" and self._on_drop is not None:
                self._on_drop(order.failure)

    def _claim(self, order_id: str) -> bool:
        """True for the first process of the worker that calls it."""
        try:
            path = files.mark(self._settings.folder, self._main_uid, order_id)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError:
            return False
        return True


# --- giving orders --------------------------------------------------------------------------------------

#: Size limit of a reply, bytes, and most messages that are read while waiting for replies.
MOST_REPLY_BYTES = 16 * 1024
MOST_REPLIES = 4000


class _StopWaiting(Exception):
    """Stop waiting for replies."""


def _no_reply(message: kombu.Message, accept: set[str]) -> str:
    """Why a message can't be a worker's reply, or an empty text."""
    message.accept = accept
    if not isinstance(message.decode(), dict):
        return "it is not a mapping"
    ticket, clock, expires = (message.headers.get(name) for name in ("ticket", "clock", "expires"))
    # Kombu computes with them. Its clock keeps the larger number, so a huge one would stay.
    plausible = all(isinstance(value or 0, int | float) and (value or 0) < 2**53 for value in (clock, expires))
    if not isinstance(ticket, str) or not plausible:
        return "its headers are not those of a reply"
    return ""


class OrderClient:
    """
    Sends orders to running workers over Celery's remote control. Each call blocks for some seconds.

    Args:
        app: The Celery app whose broker the workers share.
    """

    def __init__(self, app: Celery, settings: Settings, clock: Clock | None = None) -> None:
        self._app = app
        self._key = load_key(settings)
        self._clock = clock or SystemClock()

    def workers(self, timeout_s: float = 1.0) -> dict[str, str]:
        """The workers that reply, with the uid of each one's main process."""
        found: dict[str, str] = {}

        def on_reply(reply: dict[str, object]) -> bool:
            for worker, answered in reply.items():
                if isinstance(answered, dict) and isinstance(answered.get("uid"), str):
                    found[str(worker)] = answered["uid"]
            return False

        self._ask(HELLO, on_reply, timeout_s=timeout_s)
        return found

    def _ask(
        self,
        command: str,
        on_reply: Callable[[dict[str, object]], bool],
        *,
        timeout_s: float,
        worker: str = "",
        arguments: dict[str, str] | None = None,
    ) -> None:
        """
        Send a command to one worker, or to all, and read replies until none came for ``timeout_s``.

        Anyone may publish on the reply queue. Compressed or too large messages and non-replies are dropped unread.

        Args:
            on_reply: Called with each reply; True ends the wait.
        """

        def on_message(reply: dict[str, object]) -> None:
            if on_reply(reply):
                raise _StopWaiting

        accept = prepare_accept_content(self._app.conf.accept_content)
        # Our own control object: the app's keeps unrequested replies forever.
        control = type(self._app.control)(self._app)
        with self._app.connection_for_write() as connection, contextlib.suppress(_StopWaiting):
            control.broadcast(
                command,
                arguments=arguments,
                destination=[worker] if worker else None,
                reply=True,
                timeout=timeout_s,
                limit=MOST_REPLIES,  # foreign messages count too, so it is not the number of workers
                callback=on_message,
                connection=connection,
                channel=checked_channel(
                    connection.channel(), MOST_REPLY_BYTES, accepts=lambda message: _no_reply(message, accept)
                ),
            )

    def give(self, order: Order, *, user: str, workers: dict[str, str] | None = None) -> list[Answer]:
        """
        Send an order to each worker; returns each one's answer.

        A worker without an answer, or with one not signed with our key, has ``ok`` False.

        Raises:
            ValueError: The order is invalid.
        """
        order = _checked(msgspec.structs.replace(order, id=order.id or new_id()), self._clock.now_s())
        found = self.workers() if workers is None else workers
        return [self._send_order(worker, uid, order, user) for worker, uid in sorted(found.items())]

    def _send_order(self, worker: str, uid: str, order: Order, user: str) -> Answer:
        data, nonce = sign(
            self._key,
            kind="order",
            target=uid,
            action=order.action,
            now_s=self._clock.now_s(),
            body=msgspec.json.encode(order).decode("utf-8"),
            user=user,
        )
        answer = Answer(worker, False, f"it did not answer within {ANSWER_S:g} s")

        def on_reply(reply: dict[str, object]) -> bool:
            nonlocal answer
            answered = reply.get(worker)
            if answered is None:
                return False
            try:
                text = str(answered["message"]) if isinstance(answered, dict) else ""
                message = verify(
                    self._key,
                    text.encode("utf-8", "backslashreplace"),
                    kind="reply",
                    target=nonce,
                    now_s=self._clock.now_s(),
                )
                answer = _answers.decode(message.body)
            except (MessageRefused, KeyError, TypeError, msgspec.DecodeError):
                # It may be forged; the worker's own may still come.
                answer = Answer(worker, False, "it refused the order's signature: does it have the same shell key?")
                return False
            return True

        self._ask(ORDER, on_reply, worker=worker, arguments={"message": data.decode("utf-8")}, timeout_s=ANSWER_S)
        return answer


def arm(
    app: Celery, settings: Settings, name: str, seconds: float, *, user: str, mode: str = "always"
) -> list[dict[str, object]]:
    """
    Measure runs of a task in another mode for a while, in every worker that replies.

    Returns:
        For each worker ``{"worker", "ok", "why"}``; empty if none replies.

    Raises:
        ValueError: Unknown mode, or the time is out of range.
    """
    client = OrderClient(app, settings)
    order = Order("mode", name=name, mode=mode, until_s=client._clock.now_s() + seconds)
    return [msgspec.to_builtins(answer) for answer in client.give(order, user=user)]


def profile(
    app: Celery, settings: Settings, name: str, *, user: str, seconds: float = 600.0
) -> list[dict[str, object]]:
    """Profile the next run of a task with memray, once in each worker; answers as :func:`arm`."""
    client = OrderClient(app, settings)
    order = Order("profile", name=name, until_s=client._clock.now_s() + seconds)
    return [msgspec.to_builtins(answer) for answer in client.give(order, user=user)]


def drop(app: Celery, settings: Settings, failure: str = "", *, user: str) -> list[dict[str, object]]:
    """Release a kept failure, or all, in the workers; answers as :func:`arm`."""
    client = OrderClient(app, settings)
    order = Order("drop", failure=failure, until_s=client._clock.now_s() + 60.0)
    return [msgspec.to_builtins(answer) for answer in client.give(order, user=user)]
