"""
Checks of raw messages, before kombu decompresses or decodes them.

Kombu decompresses a message with a ``compression`` header when it creates the message object, from any sender: 530
bytes of bzip2 become more than a gigabyte. Our messages are never compressed by kombu, so one with this header is
refused, as is one that is too big or that kombu can't read. The reader sees ``refused`` on the message; nothing raises
inside kombu, which would cost the connection.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import kombu.message
import msgspec
from msgspec import Struct, field

if TYPE_CHECKING:
    from kombu.transport.virtual import Channel

#: Size limit of a message's JSON headers and of its properties, bytes (Redis). RabbitMQ has its own limits.
MOST_HEADER_BYTES = 32 * 1024


#: The headers of a refused message: kombu's remote control ignores expired messages.
_EXPIRED = {"expires": 1}


class RawRefusal(NamedTuple):
    """Why a message was not read: ``too_big``, ``compressed`` or ``malformed``, and a sentence."""

    why: str
    text: str


class _StoredMessage(Struct, frozen=True):
    """A message as kombu stores it in a Redis list. Other keys are skipped without being decoded."""

    body: str = ""
    headers: msgspec.Raw = msgspec.Raw(b"{}")
    properties: msgspec.Raw = msgspec.Raw(b"{}")
    content_type: str | None = field(default=None, name="content-type")
    content_encoding: str | None = field(default=None, name="content-encoding")


class RedisEntry(Struct, frozen=True):
    """A valid message from a Redis list."""

    body: str
    headers: dict[str, object]
    properties: dict[str, object]
    content_type: str | None = field(name="content-type")
    content_encoding: str | None = field(name="content-encoding")


_laid = msgspec.json.Decoder(_StoredMessage)
_mapping = msgspec.json.Decoder(dict[str, object])


def entry(item: bytes, most_bytes: int) -> RedisEntry | RawRefusal:
    """
    Read a Redis list entry as a message, or return why it is refused.

    Args:
        item: The entry, from any sender.
        most_bytes: Size limit of the body; in base64 it takes a third more.
    """
    if len(item) > encoded_bytes(most_bytes) + 2 * MOST_HEADER_BYTES + 1024:
        return _too_big(len(item), most_bytes)
    try:
        found = _laid.decode(item)
        if max(len(bytes(found.headers)), len(bytes(found.properties))) > MOST_HEADER_BYTES:
            return RawRefusal("too_big", f"its headers or properties have more than {MOST_HEADER_BYTES:,} bytes")
        headers, properties = _mapping.decode(found.headers), _mapping.decode(found.properties)
    except (ValueError, RecursionError) as error:  # msgspec.DecodeError and UnicodeDecodeError are ValueErrors
        return RawRefusal("malformed", f"it is not a kombu message: {error}"[:300])
    return RedisEntry(found.body, headers, properties, found.content_type, found.content_encoding)


def encoded_bytes(most_bytes: int) -> int:
    """The length of this many bytes in base64."""
    return (most_bytes + 2) // 3 * 4


def _too_big(size: int, most_bytes: int) -> RawRefusal:
    return RawRefusal("too_big", f"{size:,} bytes; at most {most_bytes:,} are read")


def checked_channel(
    channel: Channel,
    most_bytes: int,
    *,
    accepts: Callable[[object], str] | None = None,
    unreadable: Callable[[RawRefusal], None] | None = None,
) -> Channel:
    """
    Make one of our channels check each raw message.

    Each message that it delivers from now on has ``refused``, a :class:`RawRefusal` or None. A refused message has
    neutral contents: expired headers, and its raw body if that is within the limit.

    Args:
        channel: Used by us alone, as is its connection.
        most_bytes: Size limit of a body.
        accepts: A further check of a readable message; returns the problem, or an empty text.
        unreadable: Called for what is not a message at all, such as garbage in a Redis list.

    Returns:
        The channel.
    """
    check_messages(channel, most_bytes, accepts)
    connection: object = getattr(channel, "connection", None)
    if hasattr(connection, "on_inbound_frame"):
        connection.on_inbound_frame = _tolerant(connection.on_inbound_frame)
    client: object = getattr(channel, "client", None)
    if hasattr(client, "parse_response"):
        client.parse_response = _popping(client.parse_response, most_bytes, unreadable or (lambda _refusal: None))
    return channel


def check_messages(
    channel: Channel, most_bytes: int, accepts: Callable[[kombu.message.Message], str] | None = None
) -> None:
    """As :func:`checked_channel`, for a channel with a shared connection: only its message class changes."""
    channel.Message = _checking(channel.Message, most_bytes, accepts)
    if hasattr(channel, "auto_decode"):
        # Otherwise py-amqp decodes the body with the codec that the message names; some take quadratic time.
        channel.auto_decode = False


def _checking(
    made_of: type[kombu.message.Message], most_bytes: int, accepts: Callable[[kombu.message.Message], str] | None
) -> type[kombu.message.Message]:
    class CheckedMessage(made_of):  # type: ignore[misc]
        refused: RawRefusal | None = None
        errors: list[object] | None

        def __init__(self, raw: object = None, channel: Channel | None = None, **options: object) -> None:
            raw = options.pop("payload", raw)
            self.refused = _problem(raw, most_bytes)
            if self.refused is None:
                try:
                    super().__init__(raw, channel=channel, **options)
                    whole = isinstance(self.body, bytes | str | memoryview) and isinstance(self.delivery_info, dict)
                    if self.errors or not whole or not isinstance(self.delivery_tag, str | int):
                        why = "it can't be decoded"
                    else:
                        why = accepts(self) if accepts is not None else ""
                except Exception as error:  # any error that a message can cause in kombu
                    why = f"{type(error).__name__}: {error}"
                if not why:
                    return
                self.refused = RawRefusal("malformed", why[:300])
            self.errors = None
            body, tag, info = _remains(raw, most_bytes)
            # Kombu's own readers see raw bytes and an expired message.
            kombu.message.Message.__init__(
                self, body=body, delivery_tag=tag, channel=channel, delivery_info=info, headers=dict(_EXPIRED),
                content_type="application/data", content_encoding="binary",
            )  # fmt: skip

    return CheckedMessage


def _problem(raw: object, most_bytes: int) -> RawRefusal | None:
    """Why to refuse a message as the transport delivered it: py-amqp's object, or a dict."""
    if isinstance(raw, dict):
        headers, body = raw.get("headers"), raw.get("body")
    else:
        properties = getattr(raw, "properties", None)
        headers = properties.get("application_headers") if isinstance(properties, dict) else None
        body = getattr(raw, "body", None)
    if body is not None and not isinstance(body, bytes | str | memoryview):
        return RawRefusal("malformed", "its body is neither bytes nor text")
    if body is not None and len(body) > (encoded_bytes(most_bytes) if isinstance(raw, dict) else most_bytes):
        return _too_big(len(body), most_bytes)
    if headers is not None and not isinstance(headers, dict):
        return RawRefusal("malformed", "its headers are not a mapping")
    if headers and headers.get("compression"):
        return RawRefusal("compressed", "it is marked as compressed, which our messages never are")
    return None


def _remains(raw: object, most_bytes: int) -> tuple[bytes, str | int, dict[str, object]]:
    """A refused message's raw body, and what is needed to acknowledge it."""
    if isinstance(raw, dict):
        properties = raw.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        body, tag, info = raw.get("body"), properties.get("delivery_tag"), properties.get("delivery_info")
    else:
        body, tag = getattr(raw, "body", None), getattr(raw, "delivery_tag", None)
        info = getattr(raw, "delivery_info", None)
    if isinstance(body, str):
        body = body.encode("utf-8", "backslashreplace")
    kept = bytes(body) if isinstance(body, bytes | memoryview) and len(body) <= encoded_bytes(most_bytes) else b""
    return kept, tag if isinstance(tag, str | int) else "", info if isinstance(info, dict) else {}


#: Kind, channel and payload.
_Frame = tuple[int, int, bytes]
_CONTENT_HEADER, _HEADER_BYTES = 2, 12  # AMQP 0-9-1, 4.2.6.1: class, weight and the body's size; properties follow


def _tolerant(handle: Callable[[_Frame], object]) -> Callable[[_Frame], object]:
    """
    Make a py-amqp connection leave out message properties that can't be read.

    RabbitMQ passes on a content type that is not UTF-8, and py-amqp raises while reading it: the connection is lost,
    the message is redelivered, and later messages never arrive.
    """

    def on_frame(frame: _Frame) -> object:
        kind, channel_id, payload = frame
        if kind == _CONTENT_HEADER:
            import amqp.basic_message

            try:
                amqp.basic_message.Message().inbound_header(payload)
            except Exception:  # any error of its parser
                frame = kind, channel_id, bytes(payload[:_HEADER_BYTES]) + b"\0\0"
        return handle(frame)

    return on_frame


def _popping(
    parse: Callable[..., object], most_bytes: int, unreadable: Callable[[RawRefusal], None]
) -> Callable[..., object]:
    """
    Make a Redis client check the result of ``BRPOP`` before kombu parses it.

    Kombu raises for an entry that is not JSON and drops the connection. For a refused entry, it gets an empty result
    and asks for the next one at once.
    """

    def parse_response(connection: object, command_name: object, **options: object) -> object:
        answer = parse(connection, command_name, **options)
        if command_name != "BRPOP" or not answer or not isinstance(answer, list | tuple):
            return answer
        key, item = answer
        found = entry(item if isinstance(item, bytes) else str(item).encode("utf-8", "backslashreplace"), most_bytes)
        if isinstance(found, RedisEntry):
            with contextlib.suppress(ValueError, OverflowError, RecursionError):
                again = msgspec.json.encode(found)
                if b'"__type__"' not in again:  # kombu's JSON decodes these to objects, or raises
                    return key, again
            found = RawRefusal("malformed", "its headers or properties have more than plain values")
        unreadable(found)
        return None

    return parse_response


__all__ = ["RawRefusal", "RedisEntry", "check_messages", "checked_channel", "encoded_bytes", "entry"]
