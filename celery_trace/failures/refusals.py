"""
Failures of messages that Celery refuses before they become tasks.

A queue that another program fills can hold thousands of them, so only some of each minute are recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from celery_trace.clock import Clock
from celery_trace.failures.capture import describe
from celery_trace.failures.capture.exceptions import Arguments
from celery_trace.failures.celery_request import is_named, text, whole
from celery_trace.failures.writer import FailureWriter, SeenFailure, SeenRun
from celery_trace.model import ExceptionInfo, Failure, Outcome
from celery_trace.settings import Settings

if TYPE_CHECKING:
    import kombu

#: Refused messages of one kind that are recorded each minute; the rest are counted.
MOST_REFUSED_A_MINUTE: Final = 30
_MINUTE_S: Final = 60.0
#: The largest body that is read for a refused message's arguments, bytes.
_MOST_BODY_BYTES: Final = 1024 * 1024
_MOST_NAME: Final = 200
_NO_NAME: Final = "(no task)"
_JSON: Final = "application/json"
_UNQUOTED: Final = "(left out: the decoder's message may quote data; see the worker's log)"
_UNKNOWN_FORMAT: Final = ExceptionInfo(
    "UnknownMessage", "celery.worker", "The message is in a format that Celery does not know"
)
_UNKNOWN_TASK: Final = "on_unknown_task"
#: What happened to a message, by the consumer's method that refused it.
_REFUSED: Final = {
    "on_decode_error": "Celery could not decode the message, so nothing ran. It acknowledged it: the message is gone",
    "on_unknown_message": "the message is not a task, so nothing ran. Celery rejected it",
    "on_invalid_task": "Celery rejected the message before it became a task, so nothing ran",
    _UNKNOWN_TASK: "the worker that received it has no task of this name",
}


class _Flood:
    """Messages of one kind of refusal within a minute."""

    __slots__ = ("began_s", "last", "left_out", "reported", "written")

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.written = self.left_out = self.reported = 0
        self.last: Failure | None = None


class MessageRefusals:
    """
    Writes refused messages as failures, up to :data:`MOST_REFUSED_A_MINUTE` of each kind.

    Args:
        settings: Whether failures are recorded, and how much of each.
        writer: Writes them.
        clock: The time.
    """

    def __init__(self, settings: Settings, writer: FailureWriter, clock: Clock) -> None:
        self._settings = settings
        self._writer = writer
        self._clock = clock
        self._floods: dict[str, _Flood] = {}
        #: Messages that were only counted.
        self.left_out = 0

    def refused(self, way: str, message: kombu.Message, error: BaseException | None) -> None:
        """
        Celery has refused a message before it became a task.

        Args:
            way: The consumer's method that refuses it; see :mod:`celery_trace.runtime.refused_messages`.
            message: Kombu's message. Only a body of JSON is decoded.
            error: The reason, if Celery gives one.
        """
        if not self._settings.failures:
            return
        flood = self._flood_of(way)
        if flood.written >= MOST_REFUSED_A_MINUTE:
            flood.left_out += 1
            self.left_out += 1
            return
        flood.written += 1
        flood.last = self._writer.write_described(self._seen(way, message, error))

    def report_left_out(self) -> None:
        """Write into the last record of a flood how many more there were; called at intervals."""
        for flood in self._floods.values():
            if flood.last is not None and flood.left_out != flood.reported:
                flood.reported = flood.left_out
                more = f"{flood.left_out} more such messages were refused within a minute and only counted"
                self._writer.emit(replace(flood.last, note=f"{flood.last.note}. {more}"))

    def _flood_of(self, way: str) -> _Flood:
        now_s = self._clock.monotonic_s()
        flood = self._floods.get(way)
        if flood is None or now_s - flood.began_s >= _MINUTE_S:
            self.report_left_out()
            flood = self._floods[way] = _Flood(now_s)
        return flood

    def _seen(self, way: str, message: kombu.Message, error: BaseException | None) -> SeenFailure:
        headers = _mapping(getattr(message, "headers", None))
        body = _json_body(message)
        args, kwargs = (body[0], body[1]) if isinstance(body, list | tuple) and len(body) >= 2 else (None, None)
        delivery = getattr(message, "delivery_info", None) or {}
        name, task_id = _name_and_id(message, headers, body)
        note = _REFUSED[way]
        if way != _UNKNOWN_TASK:
            note = f"{note}; {self._writer.redactor.text(_shape_of(message))}"
        run = SeenRun(
            name=name or _NO_NAME,
            task_id=task_id,
            retries=whole(headers.get("retries")),
            request={**headers, "delivery_info": delivery, "headers": headers},
            arguments=Arguments(args, kwargs),
        )
        return SeenFailure(
            run=run,
            outcome=Outcome.FAILED if way == _UNKNOWN_TASK else Outcome.REJECTED,
            exception=self._exception(way, message, error, name),
            note=note,
        )

    def _exception(self, way: str, message: kombu.Message, error: BaseException | None, name: str) -> ExceptionInfo:
        """What was raised, without any part of the message in it."""
        if way == _UNKNOWN_TASK:
            return ExceptionInfo("NotRegistered", "celery.exceptions", name)
        if error is None:
            return _UNKNOWN_FORMAT
        described = describe(error, self._writer.redactor, self._settings.limits.string)
        is_json = getattr(message, "content_type", None) == _JSON
        if way == "on_decode_error" and not is_json and not is_named(error, "ContentDisallowed"):
            # A YAML decoder, for example, quotes the line of the error.
            return replace(described, message=_UNQUOTED)
        return described


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _name_and_id(message: kombu.Message, headers: Mapping[str, object], body: object) -> tuple[str, str]:
    """The task's name and id, bounded; protocol 1 has both in the body."""
    named = body if "task" not in headers and isinstance(body, Mapping) else headers
    properties = _mapping(getattr(message, "properties", None))
    task_id = text(named.get("id")) or text(properties.get("correlation_id"))
    return text(named.get("task"))[:_MOST_NAME], task_id[:_MOST_NAME]


def _json_body(message: kombu.Message) -> object:
    """
    A message's body, if it is JSON of a moderate size; else None.

    Nothing else is decoded: Celery has not decoded it either, and unpickling runs code.
    """
    if getattr(message, "content_type", _JSON) != _JSON:
        return None
    try:
        return message.payload if len(getattr(message, "body", None) or "") <= _MOST_BODY_BYTES else None
    except Exception:  # a body that is refused need not decode; the failure is recorded without it
        return None


def _shape_of(message: kombu.Message) -> str:
    """A body's encoding and size, never its contents."""
    kind = text(getattr(message, "content_type", None))[:80] or "none"
    encoding = text(getattr(message, "content_encoding", None))[:40] or "none"
    try:
        size = f"{len(message.body)} bytes"
    except Exception:  # whatever the driver has as a body
        size = "of unknown size"
    return f"content type {kind}, encoding {encoding}, body {size}"
