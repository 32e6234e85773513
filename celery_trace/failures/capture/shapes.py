"""
How objects of the standard library and of the user's classes are opened.

Each shape reads with the builtin's own methods (``list.__iter__``, ``dict.items``), never with the object's: a subclass
may override them. For frameworks see :mod:`celery_trace.failures.capture.frameworks`.
"""

from __future__ import annotations

import array
import asyncio
import datetime
import decimal
import functools
import gc
import itertools
import types
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Collection, ValuesView
from typing import TypeVar

from celery_trace.failures.capture import frameworks
from celery_trace.failures.capture.anatomy import (
    anatomy,
    class_value,
    is_instance,
    module_name,
    mro,
    namespace,
    part,
    type_name,
)
from celery_trace.failures.capture.heap import HeapEncoder, Remarks, Shape
from celery_trace.failures.capture.leaves import bytes_node, moment_text
from celery_trace.failures.capture.texts import as_name, uuid_text
from celery_trace.model import Node
from celery_trace.process.frame_locals import locals_of

# --- containers -----------------------------------------------------------------------------------------


_Row = TypeVar("_Row", bound=Collection[object])


def _row(builtin: type[_Row], kind: str, name: str | None = None) -> Shape:
    def shape(encoder: HeapEncoder, value: _Row, depth: int) -> Node:
        cls = type(value)
        more: Remarks = {} if cls is builtin else _subclass_note(cls, value)
        return encoder.sequence(
            name or type_name(cls), kind, builtin.__len__(value), builtin.__iter__(value), depth, **more
        )

    return shape


def _dict(encoder: HeapEncoder, value: dict[object, object], depth: int) -> Node:
    return encoder.mapping("dict", value, depth)


def _dict_subclass(encoder: HeapEncoder, value: dict[object, object], depth: int) -> Node:
    cls = type(value)
    return encoder.mapping(type_name(cls), value, depth, **_subclass_note(cls, value))


def _subclass_note(cls: type, value: object) -> Remarks:
    """The names of attributes that a container of the user's own class has besides its items."""
    own = anatomy(cls).dict_of(value)
    if not own:
        return {}
    names = ", ".join(itertools.islice((name for name in dict.keys(own) if type(name) is str), 10))
    return {"note": f"attributes: {names}"[:200]}


def _tuple_subclass(encoder: HeapEncoder, value: tuple[object, ...], depth: int) -> Node:
    cls = type(value)
    fields = class_value(cls, "_fields")
    length = tuple.__len__(value)
    if type(fields) is tuple and len(fields) == length and all(type(field) is str for field in fields):
        named = list(zip(fields, tuple.__iter__(value), strict=True))
        return encoder.attributes(type_name(cls), named, depth, form="namedtuple")
    return encoder.sequence(type_name(cls), "tuple", length, tuple.__iter__(value), depth)


def _str_subclass(encoder: HeapEncoder, value: str, _depth: int) -> Node:
    cls = type(value)
    length = str.__len__(value)
    head = str.__getitem__(value, slice(0, encoder.limits.string + 4096))
    return encoder.text_node(type_name(cls), "plain", head, length=length, cut=length - len(head))


def _int_subclass(encoder: HeapEncoder, value: int, _depth: int) -> Node:
    return encoder.integer(type_name(type(value)), int.__int__(value))


def _float_subclass(encoder: HeapEncoder, value: float, _depth: int) -> Node:
    bare = float.__float__(value)
    name = type_name(type(value))
    return encoder.text_node(name, "text", repr(bare))


def _bytes_subclass(encoder: HeapEncoder, value: bytes | bytearray, _depth: int) -> Node:
    return bytes_node(encoder, value, type_name(type(value)))


def _datetime_subclass(encoder: HeapEncoder, value: datetime.datetime, _depth: int) -> Node:
    text, note = moment_text(value)
    return encoder.text_node(type_name(type(value)), "text", text, note=note)


def _date_subclass(encoder: HeapEncoder, value: datetime.date, _depth: int) -> Node:
    return encoder.text_node(type_name(type(value)), "text", datetime.date.isoformat(value))


def _timedelta_subclass(encoder: HeapEncoder, value: datetime.timedelta, _depth: int) -> Node:
    get = datetime.timedelta
    bare = get(get.days.__get__(value), get.seconds.__get__(value), get.microseconds.__get__(value))
    return encoder.text_node(type_name(type(value)), "text", str(bare))


def _view(encoder: HeapEncoder, value: Collection[object], depth: int) -> Node:
    """``dict.keys()`` and the like: reading them consumes nothing."""
    return encoder.sequence(type_name(type(value)), "list", len(value), iter(value), depth)


def _values(encoder: HeapEncoder, value: ValuesView[object], depth: int) -> Node:
    """``dict.values()``: the keys, which are not shown, decide which of them are secret."""
    items = ((as_name(key), item) for key, item in dict.items(gc.get_referents(value)[0]))
    shown = encoder.masked(itertools.islice(items, encoder.limits.breadth))
    return encoder.sequence(type_name(type(value)), "list", len(value), iter(shown), depth)


def _proxy(encoder: HeapEncoder, value: types.MappingProxyType[object, object], depth: int) -> Node:
    """A read-only view of a mapping; it is opened only if that is a dictionary."""
    viewed = gc.get_referents(value)
    if len(viewed) == 1 and is_instance(viewed[0], dict):
        return encoder.mapping("mappingproxy", viewed[0], depth)
    return Node("mappingproxy", "opaque")


def _array(encoder: HeapEncoder, value: array.array[int] | array.array[float] | array.array[str], depth: int) -> Node:
    items = iter(value[: encoder.limits.breadth])
    return encoder.sequence("array.array", "list", len(value), items, depth, form="array", note=value.typecode)


def _slice(encoder: HeapEncoder, value: slice, depth: int) -> Node:
    named = [("start", value.start), ("stop", value.stop), ("step", value.step)]
    return encoder.attributes("slice", named, depth)


# --- functions and what runs ----------------------------------------------------------------------------


def _function(encoder: HeapEncoder, value: types.FunctionType, depth: int) -> Node:
    code = value.__code__
    where = f"{code.co_filename}:{code.co_firstlineno}"
    text = f"{code.co_qualname} ({where})"
    cells: list[tuple[str, object]] = []
    for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=False):
        try:
            cells.append((name, cell.cell_contents))
        except ValueError:  # not bound yet
            continue
    return encoder.attributes("function", cells, depth, value=text, form="closure" if cells else "function")


def _method(encoder: HeapEncoder, value: types.MethodType, depth: int) -> Node:
    function = value.__func__
    name = function.__code__.co_qualname if type(function) is types.FunctionType else type_name(type(function))
    return encoder.attributes("method", [("__self__", value.__self__)], depth, value=name, form="method")


def _partial(encoder: HeapEncoder, value: functools.partial[object], depth: int) -> Node:
    get = functools.partial.__dict__
    function, arguments, keywords = (get[name].__get__(value) for name in ("func", "args", "keywords"))
    if type(function) is types.FunctionType:
        # The function's parameters decide which of the arguments are secret.
        code = function.__code__
        parameters = itertools.chain(code.co_varnames[: code.co_argcount], itertools.repeat(None))
        arguments = encoder.keep(tuple(encoder.masked(zip(parameters, arguments, strict=False))))
    named = [("func", function), ("args", arguments), ("keywords", keywords)]
    return encoder.attributes("functools.partial", named, depth, form="partial")


def _suspended(prefix: str, form: str) -> Shape:
    """Generators and coroutines: their position and locals; they are not advanced."""

    def shape(encoder: HeapEncoder, value: object, depth: int) -> Node:
        code = getattr(value, f"{prefix}_code")
        frame = getattr(value, f"{prefix}_frame")
        no_locals: list[tuple[str, object]] = []
        if frame is None:
            note, named = "finished", no_locals
        elif getattr(value, f"{prefix}_running"):
            note, named = "running", no_locals
        else:
            note = f"suspended at line {frame.f_lineno}"
            named = list(dict(locals_of(frame)).items())
        text = f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"
        return encoder.attributes(type_name(type(value)), named, depth, value=text, form=form, note=note)

    return shape


def _future(encoder: HeapEncoder, value: asyncio.Future[object], depth: int) -> Node:
    named: list[tuple[str, object]] = [("state", part(value, "_state"))]
    is_task = is_instance(value, asyncio.Task)
    if is_instance(value, asyncio.Task):
        named += [("name", asyncio.Task.get_name(value)), ("coro", part(value, "_coro"))]
    for name in ("_result", "_exception"):
        result = part(value, name)
        if result is not None:
            named.append((name[1:], result))
    return encoder.attributes(type_name(type(value)), named, depth, form="asyncio task" if is_task else "future")


def _weak_reference(encoder: HeapEncoder, value: weakref.ref[object], depth: int) -> Node:
    referent = weakref.ref.__call__(value)
    note = "dead" if referent is None else ""
    return encoder.attributes(type_name(type(value)), [("referent", referent)], depth, form="weakref", note=note)


def _cell(encoder: HeapEncoder, value: types.CellType, depth: int) -> Node:
    try:
        return encoder.attributes("cell", [("contents", value.cell_contents)], depth)
    except ValueError:
        return encoder.attributes("cell", [], depth, note="empty")


def _type(encoder: HeapEncoder, value: type, _depth: int) -> Node:
    """A class with a metaclass of its own."""
    return encoder.text_node(type_name(type(value)), "text", type_name(value), form="class")


# --- objects --------------------------------------------------------------------------------------------

#: C fields of builtin exceptions with information; private and internal ones are left out.
_EXCEPTION_PARTS = (
    "errno", "strerror", "filename", "filename2", "name", "path", "obj", "encoding", "object", "start", "end", "reason",
    "code", "value", "msg", "lineno", "offset", "text", "exceptions",
)  # fmt: skip


_Fields = list[tuple[str, Callable[[object], object]]]
_exception_fields: dict[int, tuple[weakref.ref[type], _Fields]] = {}


def _fields_of(cls: type) -> _Fields:
    """The C fields of an exception's builtin bases, with their getters; cached while the type lives."""
    known = _exception_fields.get(id(cls))
    if known is not None and known[0]() is cls:
        return known[1]
    fields: _Fields = []
    for name in _EXCEPTION_PARTS:
        owner = next((base for base in mro(cls) if name in namespace(base)), None)
        if owner is not None and module_name(owner) == "builtins":
            member = namespace(owner)[name]
            if type(member) is types.MemberDescriptorType:
                fields.append((name, member.__get__))
    if len(_exception_fields) >= 1024:
        _exception_fields.clear()
    _exception_fields[id(cls)] = (weakref.ref(cls), fields)
    return fields


_args_of = BaseException.__dict__["args"].__get__


def exception_parts(value: BaseException) -> list[tuple[str, object]]:
    """What an exception holds: ``args``, the C fields of its builtin base, its own attributes; not its traceback."""
    cls = type(value)
    named: list[tuple[str, object]] = [("args", _args_of(value))]
    for name, get in _fields_of(cls):
        found = get(value)
        if found is not None:
            named.append((name, found))
    named += [(name, found) for name, found in anatomy(cls).attributes_of(value) if name != "__notes__"]
    return named


def _exception(encoder: HeapEncoder, value: BaseException, depth: int) -> Node:
    return encoder.attributes(type_name(type(value)), exception_parts(value), depth, form="exception")


def _enum(encoder: HeapEncoder, value: object, depth: int) -> Node:
    named = [("name", part(value, "_name_")), ("value", part(value, "_value_"))]
    return encoder.attributes(type_name(type(value)), named, depth, form="enum")


def _decimal(encoder: HeapEncoder, value: decimal.Decimal, _depth: int) -> Node:
    text = decimal.Decimal.__str__(value)  # the builtin's own: the subclass may have another
    return encoder.text_node(type_name(type(value)), "text", text)


def _uuid(encoder: HeapEncoder, value: object, depth: int) -> Node:
    number = part(value, "int")
    if type(number) is not int or not 0 <= number < 1 << 128:
        return _object(encoder, value, depth)
    return encoder.text_node(type_name(type(value)), "text", uuid_text(number))


def _path(encoder: HeapEncoder, value: object, _depth: int) -> Node:
    """An exact ``Path`` of the standard library: its own ``__str__`` only joins its parts."""
    return encoder.text_node(type_name(type(value)), "text", str(value), form="path")


def _opaque(_encoder: HeapEncoder, value: object, _depth: int) -> Node:
    return Node(type_name(type(value)), "opaque")


def _object(encoder: HeapEncoder, value: object, depth: int) -> Node:
    """Anything else: its slots and its dictionary, or just its type."""
    cls = type(value)
    known = anatomy(cls)
    if known.is_secret:
        encoder.learn(part(value, "_secret_value"))
        encoder.redacted_values += 1
        return Node(known.name, "redacted")
    named = known.attributes_of(value)
    if not named and not known.form and known.dict_getter is None and not known.slot_getters:
        return Node(known.name, "opaque")
    return encoder.attributes(known.name, named, depth, form=known.form)


# --- which shape a type has -----------------------------------------------------------------------------

_EXACT: dict[int, Shape] = {
    id(list): _row(list, "list", "list"),
    id(tuple): _row(tuple, "tuple", "tuple"),
    id(set): _row(set, "set", "set"),
    id(frozenset): _row(frozenset, "frozenset", "frozenset"),
    id(deque): _row(deque, "deque", "collections.deque"),
    id(dict): _dict,
    id(type({}.keys())): _view,
    id(type({}.values())): _values,
    id(types.MappingProxyType): _proxy,
    id(type({}.items())): _view,
    id(array.array): _array,
    id(slice): _slice,
    id(types.FunctionType): _function,
    id(types.MethodType): _method,
    id(functools.partial): _partial,
    id(types.GeneratorType): _suspended("gi", "generator"),
    id(types.CoroutineType): _suspended("cr", "coroutine"),
    id(types.AsyncGeneratorType): _suspended("ag", "async generator"),
    id(weakref.ref): _weak_reference,
    id(types.CellType): _cell,
    id(staticmethod): _opaque,
    id(classmethod): _opaque,
    id(property): _opaque,
}
_EXACT_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")

#: Subclasses of builtins, nearest base first; they are read by the builtin's own methods.
_BASES: tuple[tuple[type, Shape], ...] = (
    (dict, _dict_subclass),
    (list, _row(list, "list")),
    (tuple, _tuple_subclass),
    (set, _row(set, "set")),
    (frozenset, _row(frozenset, "frozenset")),
    (deque, _row(deque, "deque")),
    (decimal.Decimal, _decimal),
    (uuid.UUID, _uuid),
    (str, _str_subclass),
    (int, _int_subclass),
    (float, _float_subclass),
    (bytes, _bytes_subclass),
    (bytearray, _bytes_subclass),
    (datetime.datetime, _datetime_subclass),
    (datetime.date, _date_subclass),
    (datetime.timedelta, _timedelta_subclass),
    (BaseException, _exception),
    (type, _type),
    (asyncio.Future, _future),
    (weakref.ref, _weak_reference),
)

_shapes: dict[int, tuple[weakref.ref[type], Shape]] = {}


def shape_of(cls: type) -> Shape:
    """How to open an instance of this type; cached while the type lives."""
    known = _shapes.get(id(cls))
    if known is not None and known[0]() is cls:
        return known[1]
    if len(_shapes) >= 2048:
        _shapes.clear()
    shape = _EXACT.get(id(cls)) or _find_shape(cls)
    _shapes[id(cls)] = (weakref.ref(cls), shape)
    return shape


def _find_shape(cls: type) -> Shape:
    order = mro(cls)
    framework = frameworks.shape_of(order)
    if framework is not None:
        return framework
    enum = frameworks.resident("enum", "Enum")
    if enum is not None and any(base is enum for base in order):
        return _enum
    for base, shape in _BASES:
        if any(ancestor is base for ancestor in order):
            return shape
    if module_name(cls).startswith("pathlib") and any(
        cls is frameworks.resident("pathlib", name) for name in _EXACT_PATHS
    ):
        return _path
    return _object
