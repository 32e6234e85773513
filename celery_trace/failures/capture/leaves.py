"""
Leaves: values of exact builtin types that become a line of text or a number.

Subclasses of dates and bytes are shown the same way, by the builtin's own methods.
"""

from __future__ import annotations

import datetime
import decimal
import types
import uuid

from celery_trace.failures.capture import frameworks
from celery_trace.failures.capture.anatomy import type_name
from celery_trace.failures.capture.heap import HeapEncoder, Leaf
from celery_trace.failures.capture.texts import bare_moment, head_of_bytes, uuid_text
from celery_trace.model import Node


def _float(encoder: HeapEncoder, value: float) -> Node:
    """Floats that JSON has no number for; the encoder enters the others itself."""
    return encoder.text_node("float", "text", repr(value))


def _bytes(name: str) -> Leaf:
    def leaf(encoder: HeapEncoder, value: bytes | bytearray) -> Node:
        return bytes_node(encoder, value, name)

    return leaf


def bytes_node(encoder: HeapEncoder, value: bytes | bytearray, name: str) -> Node:
    head, length = head_of_bytes(value, encoder.limits.string)
    # As text, so that the patterns of secrets match; other bytes are escaped.
    text = head.decode("utf-8", "backslashreplace")
    return encoder.text_node(name, "text", text, length=length, cut=length - len(head), form="bytes")


def _memoryview(encoder: HeapEncoder, value: memoryview) -> Node:
    try:
        length = value.nbytes
    except ValueError:
        return encoder.text_node("memoryview", "text", "<released memory>")
    if not value.c_contiguous or value.ndim != 1 or value.format not in ("B", "b", "c"):
        return encoder.text_node("memoryview", "text", "<memory>", length=length, cut=length)
    head = value[: encoder.limits.string].tobytes()
    return encoder.text_node(
        "memoryview",
        "text",
        head.decode("utf-8", "backslashreplace"),
        length=length,
        cut=length - len(head),
        form="bytes",
    )


def _repr_of_exact(name: str) -> Leaf:
    """For exact builtin types with a ``repr`` in C that includes no other object."""

    def leaf(encoder: HeapEncoder, value: object) -> Node:
        return encoder.text_node(name, "text", repr(value))

    return leaf


def _class(encoder: HeapEncoder, value: type) -> Node:
    return encoder.text_node("type", "text", type_name(value), form="class")


def _module(encoder: HeapEncoder, value: types.ModuleType) -> Node:
    name = value.__dict__.get("__name__")
    return encoder.text_node("module", "text", name if type(name) is str else "?", form="module")


def _range(encoder: HeapEncoder, value: range) -> Node:
    bounds = (value.start, value.stop, value.step)
    text = ", ".join(str(bound) if int.bit_length(bound) < 1024 else "…" for bound in bounds)
    return encoder.text_node("range", "text", f"range({text})")


def _code(encoder: HeapEncoder, value: types.CodeType) -> Node:
    return encoder.text_node("code", "text", f"{value.co_qualname} ({value.co_filename}:{value.co_firstlineno})")


def _builtin_function(encoder: HeapEncoder, value: types.BuiltinFunctionType) -> Node:
    qualname = value.__qualname__
    return encoder.text_node("builtin_function_or_method", "text", qualname, form="function")


_SAFE_ZONES: tuple[tuple[str, str], ...] = (("datetime", "timezone"), ("zoneinfo", "ZoneInfo"))


def moment_text(value: datetime.datetime) -> tuple[str, str]:
    """ISO text of a datetime or of a subclass, and its zone if only user code knows the offset."""
    bare = bare_moment(value)
    zone = datetime.datetime.tzinfo.__get__(value)
    if zone is None:
        return bare.isoformat(), ""
    if any(type(zone) is frameworks.resident(*where) for where in _SAFE_ZONES):
        return bare.replace(tzinfo=zone).isoformat(), ""
    return bare.isoformat(), f"in a {type_name(type(zone))}"


def _datetime(encoder: HeapEncoder, value: datetime.datetime) -> Node:
    if value.tzinfo is None:
        return encoder.short_text("datetime.datetime", value.isoformat())
    text, note = moment_text(value)
    return encoder.text_node("datetime.datetime", "text", text, note=note)


def _exact_uuid(encoder: HeapEncoder, value: uuid.UUID) -> Node:
    return encoder.short_text("uuid.UUID", uuid_text(value.int))


def _decimal_text(name: str) -> Leaf:
    def leaf(encoder: HeapEncoder, value: decimal.Decimal) -> Node:
        text = str(value)
        return encoder.short_text(name, text) if len(text) < 40 else encoder.text_node(name, "text", text)

    return leaf


def _time(encoder: HeapEncoder, value: datetime.time) -> Node:
    zone = value.tzinfo
    note = "" if zone is None else f"in a {type_name(type(zone))}"
    return encoder.text_node("datetime.time", "text", value.replace(tzinfo=None).isoformat(), note=note)


LEAVES: dict[int, Leaf] = {
    id(float): _float,
    id(bytes): _bytes("bytes"),
    id(bytearray): _bytes("bytearray"),
    id(memoryview): _memoryview,
    id(complex): _repr_of_exact("complex"),
    id(type(Ellipsis)): _repr_of_exact("ellipsis"),
    id(type(NotImplemented)): _repr_of_exact("NotImplementedType"),
    id(object): _repr_of_exact("object"),
    id(type): _class,
    id(types.ModuleType): _module,
    id(range): _range,
    id(types.CodeType): _code,
    id(types.BuiltinFunctionType): _builtin_function,
    id(datetime.datetime): _datetime,
    id(uuid.UUID): _exact_uuid,
    id(decimal.Decimal): _decimal_text("decimal.Decimal"),
    id(datetime.date): lambda encoder, value: encoder.text_node("datetime.date", "text", value.isoformat()),
    id(datetime.time): _time,
    id(datetime.timedelta): lambda encoder, value: encoder.text_node("datetime.timedelta", "text", str(value)),
    id(datetime.timezone): lambda encoder, value: encoder.text_node("datetime.timezone", "text", str(value)),
}
