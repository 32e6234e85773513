"""
Takes requests for stacks from the broker, in the collector of a host.

The collector lives while a worker's main process, or a whole solo worker, is stuck. Its thread and connection begin
with the first run that lasts; it costs the traced processes nothing. Every message is checked as those of the live
shell are: signature, kind, target, age, and that it is new. Each request is audited.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

from celery_trace import os_threads
from celery_trace.clock import Clock
from celery_trace.control.audit import AuditLog
from celery_trace.control.channel import Connect, Receiver, Sender, reply_address
from celery_trace.control.signing import MessageRefused, RefusalLimit, ReplayCache, SignedMessage, sign, verify
from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.guard import Guard
from celery_trace.model import RunStack, StackRequest, new_id
from celery_trace.running.requests import UID, NoStack, read_stack
from celery_trace.transports.raw import RawRefusal

logger = logging.getLogger("celery_trace.collector")

#: Kinds of the signed messages.
REQUEST_KIND: Final = "stack"
REPLY_KIND: Final = "stack_reply"
ACTION: Final = "stack"
#: How often the thread looks whether it is to end, seconds.
_IDLE_S: Final = 5.0
_SESSION_LIMIT: Final = 64

_requests = msgspec.json.Decoder(StackRequest)


class StackListener:
    """
    One thread that answers requests for stacks of a spool folder's processes.

    Args:
        folder: The spool folder.
        key: The shared secret of :func:`celery_trace.control.signing.load_key`.
        connect: Opens a new connection to the workers' broker.
        audit: Notes who asked for what.
        source: Reads the lines of stacks.
    """

    def __init__(
        self, folder: Path, key: bytes, connect: Connect, clock: Clock, audit: AuditLog, source: SourceLines
    ) -> None:
        self.address = f"celery-trace.stacks.{new_id()}"
        self.counters: Counter[str] = Counter()
        self._folder = folder
        self._key = key
        self._clock = clock
        self._audit = audit
        self._source = source
        self._replays = ReplayCache()
        self._refusals = RefusalLimit(clock)
        self._sender = Sender(connect, list, "celery-trace-stack-replies")
        self._receiver = Receiver(self.address, connect, self.receive, self._refused, lambda: None, lambda: _IDLE_S)

    @property
    def reachable_at(self) -> str:
        """The queue's name; empty without a connection to the broker."""
        return self.address if self._receiver.connected else ""

    def start(self) -> None:
        """Start the thread."""
        os_threads.start(self._listen, "celery-trace-stacks")

    def _listen(self) -> None:
        with Guard("requests for stacks"):
            self._receiver.listen()

    def stop(self) -> None:
        """End the thread soon."""
        self._receiver.stop()
        self._sender.close()

    def receive(self, data: bytes) -> None:
        """Answer a message, or refuse it."""
        try:
            message = verify(
                self._key, data, kind=REQUEST_KIND, target=self.address, now_s=self._clock.now_s(),
                replays=self._replays,
            )  # fmt: skip
            request = self._request_of(message)
        except MessageRefused as refused:
            self._refused(RawRefusal(refused.code, str(refused)))
            if self._refusals.admit():
                user = refused.claims.user if refused.claims is not None else ""
                verdict = f"refused: {refused.code}"
                self._audit.note("stack", verdict=verdict, user=user, stranger=refused.claims is None)
            return
        claims = message.claims
        self._audit.note(f"stack of {request.task_id or request.thread}", process=request.process, user=claims.user)
        self.counters["done"] += 1
        try:
            stack = read_stack(self._folder, request, self._source)
        except NoStack as error:
            stack = RunStack(request=request.id, at_s=self._clock.now_s(), why=str(error))
        reply, _ = sign(
            self._key, kind=REPLY_KIND, target=claims.session, action=ACTION, now_s=self._clock.now_s(),
            body=msgspec.json.encode(stack).decode("utf-8"), answers=claims.nonce,
        )  # fmt: skip
        self._sender.put((reply_address(claims.session), reply))

    @staticmethod
    def _request_of(message: SignedMessage) -> StackRequest:
        claims = message.claims
        if not claims.session or len(claims.session) > _SESSION_LIMIT:
            raise MessageRefused("unknown_session", "it names no queue for the reply", claims)
        try:
            request = _requests.decode(message.body)
        except msgspec.DecodeError:
            raise MessageRefused("malformed", "the body is not that of a request", claims) from None
        if not UID.fullmatch(request.process):  # it becomes a file's name
            raise MessageRefused("malformed", "the process is not one of ours", claims)
        return request

    def _refused(self, refusal: RawRefusal) -> None:
        self.counters["refused"] += 1
        self.counters[f"refused:{refusal.why}"] += 1
        if self._refusals.admit():
            logger.warning("A request for a stack was refused (%s): %s", refusal.why, refusal.text)
