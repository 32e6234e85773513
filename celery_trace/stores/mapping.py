"""Maps records to rows and back, by the columns of :mod:`celery_trace.stores.schema`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from operator import attrgetter, itemgetter
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

import msgspec
from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo

from celery_trace.stores import schema
from celery_trace.stores.payloads import squeeze, unsqueeze

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyRow

Row = dict[str, Any]
T = TypeVar("T", bound=Struct)
_Convert = Callable[[Any], Any]

_encoder = msgspec.json.Encoder()
_SCALARS = (str, int, float, bool, NoneType)


def text(value: object) -> str:
    """A value as JSON text, for columns that are read as a whole."""
    return _encoder.encode(value).decode()


class TableOf(Generic[T]):
    """
    The mapping between a table and structs of one class.

    Args:
        table: The table.
        record: The class.
        view: Objects of the class are read from some of the columns and never written.

    Raises:
        TypeError: A column is not a field of the class.
    """

    def __init__(self, table: schema.Table, record: type[T], *, view: bool = False) -> None:
        self.table = table
        self.kind = record
        self._extra: Row = {}
        held: list[_FieldColumn] = []
        self._payload: _Payload[T] | None = None
        for column in table.columns:
            path = _path(column, record)
            if column.type == schema.BLOB:
                self._payload = None if view else _Payload(column, record)
            elif path:
                held.append(_FieldColumn(column, path, record))
            elif view or column.extra:
                self._extra[column.name] = column.empty
            else:
                raise TypeError(f"{table.name}.{column.name} is not a field of {record.__name__}")
        at_once = [one for one in held if not one.optional]
        self._written = tuple(one.column.name for one in at_once)
        self._values: Callable[[T], tuple[object, ...]] = attrgetter(*(one.path for one in at_once))
        self._writers = [(one.column.name, one.write) for one in at_once if one.write]
        self._apart = [(one.column.name, one.value) for one in held if one.optional]

        read = [one for one in held if one.is_read]
        #: The columns that a record is read from, in the order of :meth:`of_values`.
        self.columns: tuple[str, ...] = tuple(one.column.name for one in read)
        self._named: _Convert = itemgetter(*self.columns)
        self._keys = tuple(one.column.name if one.part else one.field for one in read)
        self._readers = [(key, one.read) for key, one in zip(self._keys, read, strict=True) if one.read]
        self._nested: dict[str, list[_FieldColumn]] = {}
        for one in read:
            if one.part:
                self._nested.setdefault(one.field, []).append(one)

    def row(self, record: T, **extra: object) -> Row:
        """
        The row of a record.

        Args:
            record: The record.
            extra: Values of columns that the record lacks or that differ.
        """
        row: Row = dict(zip(self._written, self._values(record), strict=True))
        for name, write in self._writers:
            row[name] = write(row[name])
        for name, value in self._apart:
            row[name] = value(record)
        if self._payload is not None and self._payload.column not in extra:
            row[self._payload.column] = self._payload.squeezed(record)
        return row | self._extra | extra

    def record(self, row: AnyRow, **extra: object) -> T:
        """
        The record in a row.

        Args:
            row: A result row with the columns that the record is read from.
            extra: Fields that are not in the row.
        """
        if self._payload is None:
            return self.of_values(self._named(row._mapping), **extra)
        if self._payload.is_whole:
            return self._payload.read(row.payload)  # type: ignore[return-value]
        parts = self._payload.read(row.payload)
        return self.of_values(self._named(row._mapping), **msgspec.structs.asdict(parts), **extra)

    def records(self, rows: Iterable[AnyRow]) -> list[T]:
        """The records in rows."""
        return [*map(self.record, rows)]

    def of_values(self, values: Sequence[object], **extra: object) -> T:
        """The record from values of :attr:`columns`. A page has thousands, and access by index is fastest."""
        given: Row = dict(zip(self._keys, values, strict=False))
        for key, read in self._readers:
            given[key] = read(given[key])
        for field, parts in self._nested.items():
            given[field] = parts[0].together({one.part: given.pop(one.column.name) for one in parts})
        return self.kind(**given, **extra)


class _FieldColumn:
    """A column that holds a field of a class, or an attribute of such a field (its ``part``)."""

    def __init__(self, column: schema.Column, path: str, record: type[Struct]) -> None:
        self.column = column
        self.path = path
        self.field, _, self.part = path.partition(".")
        field = _fields(record).get(self.field)
        #: A property is written but not read.
        self.is_read = field is not None
        self._outer: Any
        self._outer, optional = _kind(field.type) if field is not None else (str, False)
        #: Whether it is a part of an optional field.
        self.optional = optional and bool(self.part)
        if self.part and field is not None:
            field = _fields(self._outer)[self.part]
        self._set_conversion(field)
        if self.part and len(_fields(self._outer)) == 1:
            self._take_in_outer()

    def _set_conversion(self, field: FieldInfo | None) -> None:
        self.write: _Convert | None = None
        self.read: _Convert | None = None
        kind = _kind(field.type)[0] if field is not None else str
        if field is None or kind in _SCALARS:
            self.read = bool if kind is bool else None
        elif isinstance(kind, type) and issubclass(kind, Enum):
            self.write = str
            self.read = _Words(kind).__getitem__
        else:
            self.write = _text_or_nothing
            self.read = _json(field)

    def _take_in_outer(self) -> None:
        """Merge with the outer field if this part is all of it."""
        outer, read = self._outer, self.read
        self.read = (lambda value: outer(read(value))) if read else outer
        self.part = ""

    def value(self, record: Struct) -> object:
        """The column's value for a record; None if the outer field is None."""
        outer = getattr(record, self.field)
        found = self.column.empty if outer is None else getattr(outer, self.part)
        return self.write(found) if self.write else found

    def together(self, parts: Row) -> Struct | None:
        """The outer field from all its parts; None if it is optional and all parts are empty."""
        if self.optional and not any(parts.values()):
            return None
        whole: Struct = self._outer(**parts)
        return whole


class _Payload(Generic[T]):
    """The column that holds a record, or some of its fields, as JSON."""

    def __init__(self, column: schema.Column, record: type[T]) -> None:
        self.column = column.name
        self.is_whole = not column.parts
        self._parts = column.parts
        fields = _fields(record)
        self._class: type[Struct] = record
        if column.parts:
            parts = [(name, fields[name].type, _default(fields[name])) for name in column.parts]
            self._class = msgspec.defstruct(f"{record.__name__}Payload", parts, omit_defaults=True)
        self._decode = msgspec.json.Decoder(self._class).decode

    def squeezed(self, record: T) -> bytes | None:
        """The payload; None if the fields have only default values."""
        if self.is_whole:
            return squeeze(_encoder.encode(record))
        json = _encoder.encode(self._class(*(getattr(record, name) for name in self._parts)))
        return squeeze(json) if json != b"{}" else None

    def read(self, payload: bytes | None) -> Struct:
        """The record, or a struct of the fields."""
        return self._decode(unsqueeze(payload)) if payload else self._class()


@cache  # annotations that are text take long to evaluate
def _fields(record: type[Struct]) -> Mapping[str, FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(record)}


def _path(column: schema.Column, record: type[Struct]) -> str:
    """The attribute path of a column's value in the class; empty if there is none."""
    if column.field and hasattr(record, column.field.partition(".")[0]):
        return column.field
    fields = _fields(record)
    return next((name for name in (column.name, column.name.removesuffix("_s")) if name in fields), "")


def _kind(annotation: object) -> tuple[Any, bool]:
    """The type without None, and whether it may be None."""
    if not isinstance(annotation, UnionType):
        return annotation, False
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return kinds[0], len(kinds) < len(get_args(annotation))


def _default(field: FieldInfo) -> object:
    if field.default is not NODEFAULT:
        return field.default
    return msgspec.field(default_factory=field.default_factory)


def _text_or_nothing(value: object) -> str:
    return "" if value is None else text(value)


class _Words(dict[str, Enum]):
    """The members of an enumeration by value."""

    def __init__(self, kind: type[Enum]) -> None:
        super().__init__((member.value, member) for member in kind)
        self._kind = kind

    def __missing__(self, word: str) -> Enum:
        return self._kind(word)


def _json(field: FieldInfo) -> _Convert:
    """Reads JSON of the field's type; an empty text is its default, or an empty one."""
    decode = msgspec.json.Decoder(field.type).decode
    kind, optional = _kind(field.type)
    empty = field.default_factory if field.default_factory is not NODEFAULT else getattr(kind, "__origin__", kind)
    return lambda value: decode(value) if value else None if optional else empty()
