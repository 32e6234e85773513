"""Asks for the stack of a run: directly where it is on this host, else over the broker."""

from __future__ import annotations

import secrets
import time
from typing import Final

import msgspec
from msgspec.structs import replace

from celery_trace.clock import Clock, SystemClock
from celery_trace.control.audit import AuditLog
from celery_trace.control.channel import Connect, direct_queue, expire_queue, prepared, publish, reply_address
from celery_trace.control.signing import MESSAGE_LIMIT_BYTES, MessageRefused, load_key, sign, verify
from celery_trace.errors import Unavailable
from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.failures.views import frames
from celery_trace.model import RunningView, RunStack, StackLine, StackRequest, new_id
from celery_trace.redaction import Redactor
from celery_trace.running.listener import ACTION, REPLY_KIND, REQUEST_KIND
from celery_trace.running.requests import NoStack, is_here, read_stack
from celery_trace.settings import SettingError, Settings
from celery_trace.transports.raw import RawRefusal, checked_channel

#: How long a reply over the broker is waited for, seconds.
REPLY_S: Final = 2.0


class StackUnavailable(Unavailable):
    """The stack of a run can't be read now."""


class StackReader:
    """
    Reads stacks of runs in progress.

    Args:
        settings: Where the processes of this host have their black boxes, and the key that signs requests.
        connect: Opens a new connection to the workers' broker.
        where: For the audit log: ``monitor`` or ``terminal``.
    """

    def __init__(self, settings: Settings, connect: Connect, where: str, clock: Clock | None = None) -> None:
        self._settings = settings
        self._connect = connect
        self._clock = clock or SystemClock()
        self._audit = AuditLog(settings.folder, where, self._clock)
        self._source = SourceLines(Redactor(settings.redact))

    def read(self, run: RunningView, *, user: str) -> RunStack:
        """
        The stack of a run. Blocks for half a second at most, over the broker for two.

        Args:
            run: The run, from :meth:`celery_trace.queries.Queries.running`.
            user: For the audit logs.

        Raises:
            StackUnavailable: Its host does not answer, or can't be asked.
        """
        request = StackRequest(
            id=new_id(), process=run.process, task_id=run.task_id, thread=run.thread, started_at_s=run.since
        )
        try:
            stack = self._read(request, run, user)
        except StackUnavailable as error:
            self._note(run, user, f"refused: {error.why}")
            raise
        self._note(run, user, "done")
        return stack

    def _note(self, run: RunningView, user: str, verdict: str) -> None:
        self._audit.note(f"stack of {run.task_id or run.thread}", verdict=verdict, process=run.process, user=user)

    def _read(self, request: StackRequest, run: RunningView, user: str) -> RunStack:
        folder = self._settings.spool_folder
        if is_here(folder, request.process):
            try:
                return read_stack(folder, request, self._source)
            except NoStack as error:
                raise StackUnavailable("No stack", str(error), "The run may have ended: list again.") from error
        if not run.address:
            raise StackUnavailable(
                "No stack",
                f"the collector of {run.hostname} takes no requests: the run has just begun, trace_shell is off there, "
                "or it has no broker",
                "Try again in a few seconds, or ask on that host: celery -A proj trace running --stack ID",
            )
        try:
            return self._ask(request, run, user)
        except (StackUnavailable, SettingError):
            raise
        except Exception as error:  # each transport of kombu has its own errors
            raise StackUnavailable(
                "No stack", f"the broker can't be reached ({error})", "On the run's own host it is not needed."
            ) from error

    def _ask(self, request: StackRequest, run: RunningView, user: str) -> RunStack:
        """One request over the broker, and its reply."""
        from kombu import Consumer

        key = load_key(self._settings)
        session = secrets.token_hex(8)
        replies: list[bytes] = []
        with prepared(self._connect()) as connection:
            channel = checked_channel(connection.channel(), MESSAGE_LIMIT_BYTES, unreadable=_ignore)
            queue = direct_queue(reply_address(session))(channel)
            queue.declare()
            data, nonce = sign(
                key, kind=REQUEST_KIND, target=run.address, action=ACTION, now_s=self._clock.now_s(),
                body=msgspec.json.encode(request).decode("utf-8"), session=session, user=user,
            )  # fmt: skip
            consumer = Consumer(
                channel, [queue], on_message=lambda message: replies.append(_bytes_of(message.body)), no_ack=True,
                auto_declare=False, accept=[],
            )  # fmt: skip
            with consumer:
                publish(channel, run.address, data)
                expire_queue(channel, run.address)
                until_s = time.monotonic() + REPLY_S
                while (left_s := until_s - time.monotonic()) > 0:
                    try:
                        connection.drain_events(timeout=min(left_s, 0.5))
                    except TimeoutError:
                        continue
                    for reply in replies:
                        stack = self._checked(key, reply, session, nonce, request)
                        if stack is not None:
                            return stack
                    replies.clear()
        raise StackUnavailable(
            "No stack",
            f"the collector of {run.hostname} did not answer within {REPLY_S:g} s",
            "It may have ended, or have another key (trace_shell_key).",
        )

    def _checked(self, key: bytes, data: bytes, session: str, nonce: str, request: StackRequest) -> RunStack | None:
        """The stack in a reply; None if the reply is not authentic, or not ours."""
        try:
            message = verify(key, data, kind=REPLY_KIND, target=session, now_s=self._clock.now_s())
            stack = msgspec.json.decode(message.body, type=RunStack)
        except (MessageRefused, msgspec.DecodeError):
            return None
        return stack if message.claims.answers == nonce and stack.request == request.id else None


def with_stack(run: RunningView, stack: RunStack) -> RunningView:
    """A run with the stack that was read, and its locals if there are any."""
    if stack.capture is not None:
        lines = [
            StackLine(file=one.file, line=one.line, function=one.function, code=one.code, locals=one.locals)
            for one in frames(stack.capture)
        ]
    else:
        lines = [StackLine(file=one.file, line=one.line, function=one.function, code=one.code) for one in stack.stack]
    if not lines:
        return replace(run, stack_why=stack.why)
    return replace(run, stack=lines, sampled_at=stack.at_s, stack_by=stack.by, stack_why=stack.why)


def _ignore(_: RawRefusal) -> None:
    """A message that is not ours; the reply may still come."""


def _bytes_of(body: str | bytes) -> bytes:
    return body.encode("utf-8", "backslashreplace") if isinstance(body, str) else body
