"""
The live shell's client, for a monitor or a terminal.

A session has two connections: a thread reads replies from one, and commands are sent over the other under a lock.
Replies are checked as strictly as commands: signature, target, age, sequence and the command that they answer.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from celery_trace.clock import Clock, SystemClock
from celery_trace.control.channel import (
    Connect,
    Receiver,
    command_address,
    expire_queue,
    prepared,
    publish,
    reply_address,
)
from celery_trace.control.signing import MessageRefused, RefusalLimit, ReplayCache, sign, verify
from celery_trace.guard import Guard
from celery_trace.model import Kept
from celery_trace.shell.live.host import Body, Reply
from celery_trace.shell.session import (
    CODE_LIMIT,
    Done,
    Event,
    FrameInfo,
    Mode,
    SessionGone,
    ShellError,
)
from celery_trace.text.format import duration
from celery_trace.transports.raw import RawRefusal

if TYPE_CHECKING:
    import kombu
    from kombu.transport.virtual import Channel

logger = logging.getLogger("celery_trace.shell")

#: A process that has not replied for this long is gone, seconds.
SILENCE_S = 12.0
#: How often an open session sends a ping, seconds.
PING_S = 30.0
OPEN_S = 5.0
_replies = msgspec.json.Decoder(Reply)


class LiveClient:
    """
    Opens live sessions.

    Args:
        connect: Opens a new connection to the workers' broker.
        key: The shared secret (:func:`celery_trace.control.signing.load_key`).
    """

    def __init__(self, connect: Connect, key: bytes, clock: Clock | None = None) -> None:
        self._connect = connect
        self._key = key
        self._clock = clock or SystemClock()

    def open(
        self,
        kept: Kept,
        failure: str,
        user: str,
        *,
        leaks: Sequence[Mapping[str, object]] = (),
        timeout_s: float = OPEN_S,
    ) -> LiveSession:
        """
        Open a session over a failure that a process keeps.

        Args:
            kept: Where it is kept (:meth:`celery_trace.queries.Queries.kept`).
            failure: The failure's id.
            user: The user for the process's audit log.
            leaks: Rows of the leak table for this task, for ``trace.leaks``.

        Raises:
            SessionGone: The process does not reply.
            ShellError: The process refuses, or the broker can't be reached.
        """
        session = LiveSession(self._connect, self._key, self._clock, kept.process, failure, user)
        try:
            session.open([dict(leak) for leak in leaks], timeout_s)
        except BaseException:
            session.close()
            raise
        return session

    def drop(self, kept: Kept, user: str, *, timeout_s: float = OPEN_S) -> bool:
        """
        Make a process release a failure; False if it no longer kept it.

        Raises:
            SessionGone: The process does not reply.
            ShellError: The process refuses, or the broker can't be reached.
        """
        session = LiveSession(self._connect, self._key, self._clock, kept.process, kept.failure, user)
        try:
            return session.ask("drop", timeout_s=timeout_s).ok
        finally:
            session.close()


class LiveSession:
    """A :class:`celery_trace.shell.session.ShellSession` in a living process. Opened by :class:`LiveClient`."""

    mode: Mode = "live"

    def __init__(self, connect: Connect, key: bytes, clock: Clock, process: str, failure: str, user: str) -> None:
        self.id = secrets.token_hex(8)
        self.failure = failure
        self.frames: list[FrameInfo] = []
        self.frame = 0
        self.notices: list[str] = []
        self.gone = ""
        self._connect = connect
        self._key = key
        self._clock = clock
        self._process = process
        self._user = user
        self._sequence = -1
        self._sending = threading.Lock()
        self._connection: kombu.Connection | None = None
        self._channel: Channel | None = None
        self._waiting: dict[str, queue.SimpleQueue[Reply | None]] = {}
        self._running = threading.Lock()
        self._replays = ReplayCache()
        self._last_sequence = 0
        self._heard_s = clock.monotonic_s()
        self._pinged_s = clock.monotonic_s()
        self._ready = threading.Event()
        self._open = False
        self.refused = 0  # refused replies
        self._refusals = RefusalLimit(clock)
        self._receiver = Receiver(
            reply_address(self.id), self._connect, self._receive, self._count_refusal, self._tick, lambda: 0.5
        )
        self._thread = threading.Thread(target=self._listen, name=f"celery-trace-live-{self.id[:8]}", daemon=True)
        self._thread.start()

    # --- replies --------------------------------------------------------------------------------------

    def _listen(self) -> None:
        with Guard("live client: replies"):
            self._receiver.listen()
        self._end("the session was closed")

    def _tick(self) -> None:
        if self._receiver.connected:
            self._ready.set()
        if self._open and not self.gone and self._clock.monotonic_s() - self._pinged_s > PING_S:
            self._pinged_s = self._clock.monotonic_s()
            threading.Thread(target=self._keep_alive, name="celery-trace-live-ping", daemon=True).start()

    def _keep_alive(self) -> None:
        with Guard("live client: ping"):
            try:
                self.ask("ping", timeout_s=SILENCE_S)
            except ShellError as error:
                logger.info("celery-trace: a live session ended: %s", error)

    def _receive(self, data: bytes) -> None:
        try:
            message = verify(
                self._key, data, kind="reply", target=self.id, now_s=self._clock.now_s(), replays=self._replays
            )
            claims = message.claims
            if claims.sequence <= self._last_sequence:
                raise MessageRefused("out_of_order", f"reply {claims.sequence} after {self._last_sequence}", claims)
            try:
                reply = _replies.decode(message.body)
            except msgspec.DecodeError:
                raise MessageRefused("malformed", "the body is not that of a reply", claims) from None
        except MessageRefused as refused:
            self._count_refusal(RawRefusal(refused.code, str(refused)))
            return
        self._last_sequence = claims.sequence
        self._heard_s = self._clock.monotonic_s()
        waiting = self._waiting.get(claims.answers)
        if waiting is not None:
            waiting.put(reply)
        if claims.action == "bye":
            self._end(reply.why or "the process ended the session")

    def _count_refusal(self, refusal: RawRefusal) -> None:
        self.refused += 1
        if self._refusals.admit():
            logger.warning("celery-trace: a reply of the live shell was refused (%s): %s", refusal.why, refusal.text)

    def _end(self, why: str) -> None:
        if not self.gone:
            self.gone = why
        self._receiver.stop()
        for waiting in list(self._waiting.values()):
            waiting.put(None)

    # --- commands -------------------------------------------------------------------------------------

    def _send(self, action: str, body: Body, waiting: queue.SimpleQueue[Reply | None] | None, user: str = "") -> str:
        with self._sending:
            self._sequence += 1
            data, nonce = sign(
                self._key,
                kind="command",
                target=self._process,
                action=action,
                now_s=self._clock.now_s(),
                body=msgspec.json.encode(body).decode("utf-8"),
                failure=self.failure,
                session=self.id,
                sequence=self._sequence,
                user=user or self._user,
            )
            if waiting is not None:
                self._waiting[nonce] = waiting
            try:
                if self._channel is None:
                    self._connection = prepared(self._connect())
                    self._channel = self._connection.channel()
                publish(self._channel, command_address(self._process), data)
                expire_queue(self._channel, command_address(self._process))
            except Exception as error:
                self._waiting.pop(nonce, None)
                self._disconnect()
                raise ShellError(f"The broker, and so the process, can't be reached ({error}).") from error
            return nonce

    def _disconnect(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with Guard("live client: close"):
                connection.release()

    def ask(
        self,
        action: str,
        body: Body | None = None,
        *,
        timeout_s: float = SILENCE_S,
        on_reply: Callable[[Reply], None] | None = None,
        user: str = "",
    ) -> Reply:
        """
        Send a command and wait for the end of its replies.

        There is no limit while the process replies to pings; without a reply for ``timeout_s`` it is gone.

        Raises:
            SessionGone: The process does not reply, or ended the session.
            ShellError: The process refused, or the broker can't be reached.
        """
        if self.gone:
            raise SessionGone(self.gone)
        if not self._ready.wait(timeout_s):
            raise ShellError("The broker, and so the process, can't be reached.")
        waiting: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        nonce = self._send(action, body or Body(), waiting, user)
        self._heard_s = max(self._heard_s, self._clock.monotonic_s())
        pinged = False
        try:
            while True:
                try:
                    reply = waiting.get(timeout=0.5)
                except queue.Empty:
                    silent_s = self._clock.monotonic_s() - self._heard_s
                    if silent_s > timeout_s:
                        self._end(f"the process has not replied for {duration(round(silent_s))}")
                        self._forget_queue()
                        raise SessionGone(self.gone) from None
                    if action == "run" and silent_s > 2.0 and not pinged:
                        pinged = True
                        self._send("ping", Body(), None)
                    continue
                pinged = False
                if reply is None:
                    raise SessionGone(self.gone)
                if on_reply is not None:
                    on_reply(reply)
                if reply.done:
                    if reply.why:
                        raise SessionGone(reply.why) if self.gone else ShellError(f"MessageRefused: {reply.why}.")
                    return reply
        finally:
            self._waiting.pop(nonce, None)

    def _forget_queue(self) -> None:
        """Remove messages that wait for a dead process; a broker without expiry would keep them forever."""
        with self._sending:
            try:
                if self._channel is not None:
                    # Redis removes only queues that this connection declared; an empty list doesn't exist.
                    self._channel.queue_purge(command_address(self._process))
                    self._channel.queue_delete(command_address(self._process))
            except Exception as error:
                logger.debug("celery-trace: a queue could not be removed: %s", error)

    # --- the session ----------------------------------------------------------------------------------

    def open(self, leaks: list[dict[str, object]], timeout_s: float) -> None:
        """The handshake; called once, by the client."""
        reply = self.ask("open", Body(leaks=leaks), timeout_s=timeout_s)
        self.frames = [FrameInfo(*frame) for frame in reply.frames]
        self.frame = reply.frame
        self.notices = list(reply.notices)
        self._open = True

    def run(self, code: str, on_event: Callable[[Event], None], *, user: str = "") -> Done:
        if len(code) > CODE_LIMIT:
            raise ShellError(f"The code has {len(code):,} characters; at most {CODE_LIMIT:,} are run at once.")
        if not self._running.acquire(blocking=False):
            raise ShellError("Another command is running; interrupt it first.")
        try:

            def on_reply(reply: Reply) -> None:
                for event in reply.pieces:
                    on_event(event)

            reply = self.ask("run", Body(code=code), on_reply=on_reply, user=user)
            self.frame = reply.frame
            return Done(ok=reply.ok, took_s=reply.took_s, more=reply.more, frame=reply.frame)
        finally:
            self._running.release()

    def complete(self, code: str, cursor: int) -> list[str]:
        if len(code) > CODE_LIMIT or self._running.locked():
            return []
        return list(self.ask("complete", Body(code=code, cursor=cursor), timeout_s=3.0).items)

    def interrupt(self, *, user: str = "") -> None:
        if not self.gone:
            self._send("interrupt", Body(), None, user)

    def select_frame(self, index: int) -> None:
        reply = self.ask("frame", Body(index=index))
        if not reply.ok:
            raise ShellError(f"There is no frame {index}.")
        self.frame = reply.frame

    def close(self) -> None:
        """Notify the process and end. A second call does nothing."""
        if self._open and not self.gone:
            with Guard("live client: close session"):
                try:
                    self._send("close", Body(), None)
                except ShellError as error:
                    logger.debug("celery-trace: %s", error)
        self._open = False
        # The reading thread ends by itself, within the second that its last poll of the broker may take.
        self._end("the session was closed")
        with self._sending:
            self._disconnect()
