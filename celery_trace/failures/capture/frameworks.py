"""
Shows objects of well-known libraries by what matters in debugging: a model's loaded fields, a query that was not
evaluated, an array's head.

A class is recognised if it is the same object as in its module, and only if that module is already imported. Only
what the object already holds is shown: no lazy load, no query, no property of a user's class.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from celery_trace.failures.capture.anatomy import (
    anatomy,
    class_value,
    module_name,
    namespace,
    part,
    resident,
    type_name,
)
from celery_trace.failures.capture.heap import HeapEncoder, Shape
from celery_trace.model import Node

__all__ = ["resident", "shape_of"]

# --- Django ---------------------------------------------------------------------------------------------


def _django_model(encoder: HeapEncoder, value: object, depth: int) -> Node:
    """Label, primary key first, the loaded fields, relations that were already fetched."""
    cls = type(value)
    own = anatomy(cls).dict_of(value) or {}
    meta = class_value(cls, "_meta")
    key = part(part(meta, "pk"), "attname") if meta is not None else None
    named: list[tuple[str, object]] = []
    if type(key) is str and key in own:
        named.append((key, own[key]))
    named += [(name, field) for name, field in own.items() if type(name) is str and name != key and name != "_state"]
    fetched = part(own.get("_state"), "fields_cache")
    if type(fetched) is dict:
        named += [(name, related) for name, related in fetched.items() if type(name) is str]
    note = f"{part(meta, 'app_label')}.{part(meta, 'object_name')}" if meta is not None else ""
    fields = part(meta, "concrete_fields") or part(meta, "local_fields")
    if type(fields) is list or _is_tuple(fields):
        names = [part(field, "attname") for field in fields]
        missing = [name for name in names if type(name) is str and name not in own]
        if missing:
            note += f"; deferred: {', '.join(missing[:20])}"
    return encoder.attributes(type_name(cls), named, depth, form="model", note=note)


def _is_tuple(value: object) -> bool:
    return any(base is tuple for base in type(value).__mro__)


def _django_queryset(encoder: HeapEncoder, value: object, depth: int) -> Node:
    """The rows that were fetched already; it is never evaluated."""
    cls = type(value)
    model = part(value, "model")
    note = f"of {type_name(model)}" if isinstance(model, type) else ""
    rows = part(value, "_result_cache")
    if type(rows) is not list:
        return Node(type_name(cls), "list", length=-1, form="queryset", note=f"not evaluated, {note}")
    return encoder.sequence(type_name(cls), "list", len(rows), iter(rows), depth, form="queryset", note=note)


def _chosen(form: str, *names: str) -> Shape:
    """An object of which only some parts are of interest."""

    def shape(encoder: HeapEncoder, value: object, depth: int) -> Node:
        own = anatomy(type(value)).dict_of(value) or {}
        named = [(name.lstrip("_"), own[name]) for name in names if name in own]
        return encoder.attributes(type_name(type(value)), named, depth, form=form)

    return shape


_django_form = _chosen("form", "data", "is_bound", "prefix", "initial", "_errors", "cleaned_data", "instance")


def _django_request(encoder: HeapEncoder, value: object, depth: int) -> Node:
    """Method, path and what was already parsed; the body is not read."""
    own = anatomy(type(value)).dict_of(value) or {}
    hidden = own.get("sensitive_post_parameters")
    named: list[tuple[str, object]] = []
    for name in ("method", "path", "content_type", "GET", "COOKIES", "resolver_match", "_cached_user", "META"):
        if name in own:
            named.append((name.lstrip("_"), own[name]))
    post = own.get("_post")
    if hidden:
        named.append(("POST", "hidden by @sensitive_post_parameters"))
    elif post is not None:
        named.append(("POST", post))
    return encoder.attributes(type_name(type(value)), named, depth, form="request")


# --- SQLAlchemy -----------------------------------------------------------------------------------------


def _sqlalchemy_row(encoder: HeapEncoder, value: object, depth: int) -> Node:
    data = part(value, "_data")
    places = part(value, "_key_to_index")
    if type(data) is not tuple:
        return Node(type_name(type(value)), "opaque", form="row")
    names: dict[int, str] = {}
    if type(places) is dict:
        for key, place in places.items():
            if type(key) is str and type(place) is int:
                names.setdefault(place, key)
    named = [(names.get(place, str(place)), column) for place, column in enumerate(data)]
    return encoder.attributes(type_name(type(value)), named, depth, form="row")


def _sqlalchemy_model(encoder: HeapEncoder, value: object, depth: int) -> Node:
    """The loaded attributes; expired and lazy ones are not loaded."""
    own = anatomy(type(value)).dict_of(value) or {}
    named = [(name, field) for name, field in own.items() if type(name) is str and name != "_sa_instance_state"]
    expired = part(own.get("_sa_instance_state"), "expired_attributes")
    names = sorted(name for name in expired if type(name) is str) if type(expired) is set else []
    note = f"expired: {', '.join(names[:20])}" if names else ""
    return encoder.attributes(type_name(type(value)), named, depth, form="model", note=note)


# --- pydantic -------------------------------------------------------------------------------------------


def _pydantic_model(encoder: HeapEncoder, value: object, depth: int) -> Node:
    own = anatomy(type(value)).dict_of(value) or {}
    named = [(name, field) for name, field in own.items() if type(name) is str]
    for slot in ("__pydantic_extra__", "__pydantic_private__"):
        extra = part(value, slot)
        if type(extra) is dict:
            named += [(name, field) for name, field in extra.items() if type(name) is str]
    return encoder.attributes(type_name(type(value)), named, depth, form="pydantic")


def _secret(encoder: HeapEncoder, value: object, _depth: int) -> Node:
    """A type that is meant for secrets."""
    encoder.learn(part(value, "_secret_value"))
    encoder.redacted_values += 1
    return Node(type_name(type(value)), "redacted")


# --- numpy and pandas -----------------------------------------------------------------------------------


def _array_head(array: object, most: int) -> Iterator[object]:
    """The first items as Python values, without calling the array's class."""
    numpy_array = resident("numpy", "ndarray")
    bare = numpy_array.view(array, numpy_array)
    if bare.dtype.kind == "O":
        return islice(bare.flat, most)
    head: list[object] = bare.ravel()[:most].tolist() if bare.flags.c_contiguous else bare.flat[:most].tolist()
    return iter(head)


def _numpy_array(encoder: HeapEncoder, value: object, depth: int) -> Node:
    numpy_array = resident("numpy", "ndarray")
    bare = numpy_array.view(value, numpy_array)
    shape = tuple(bare.shape)
    note = f"{bare.dtype} {shape}"
    if bare.dtype.names:
        return Node(type_name(type(value)), "opaque", length=bare.size, form="ndarray", note=note)
    items = _array_head(bare, encoder.limits.breadth)
    return encoder.sequence(type_name(type(value)), "list", int(bare.size), items, depth, form="ndarray", note=note)


def _numpy_scalar(encoder: HeapEncoder, value: object, _depth: int) -> Node:
    generic = resident("numpy", "generic")
    plain = generic.item(value)
    name = type_name(type(value))
    cls = type(plain)
    if cls is bool:
        return Node(name, "plain", plain)
    if cls is int:
        return encoder.integer(name, plain)
    if cls is str:
        return encoder.text_node(name, "plain", plain)
    if cls is float or cls is complex:
        return encoder.text_node(name, "text", repr(plain))
    return Node(name, "opaque")


def _column_of(frame: object, place: int) -> object:
    """The array that holds one column of a frame, by the block manager's own index."""
    manager = part(frame, "_mgr")
    block = manager.blocks[manager.blknos[place]]
    values = block.values
    return values[manager.blklocs[place]] if getattr(values, "ndim", 1) == 2 else values


def _head_of(array: object, most: int) -> list[object] | None:
    numpy_array = resident("numpy", "ndarray")
    return list(_array_head(array, most)) if type(array) is numpy_array else None


def _index_labels(index: object, most: int) -> list[object] | None:
    own = part(index, "_data")
    if own is None:
        own = part(index, "_range")
        return list(own[:most]) if type(own) is range else None
    array = part(own, "_ndarray", own)
    return _head_of(array, most)


def _pandas_frame(encoder: HeapEncoder, value: object, depth: int) -> Node:
    """Shape, and each column's dtype and head."""
    manager = part(value, "_mgr")
    columns, index = manager.axes[0], manager.axes[1]
    breadth = encoder.limits.breadth
    rows, width = len(index), len(columns)
    labels = _index_labels(columns, breadth) or [f"column {place}" for place in range(min(width, breadth))]
    named: list[tuple[str, object]] = []
    for place, label in enumerate(labels):
        column = _column_of(value, place)
        name = label if type(label) is str else f"column {place}" if type(label) is not int else str(label)
        head = _head_of(part(column, "_ndarray", column), min(breadth, 10))
        dtype = _dtype_text(column)
        named.append((name, head if head is not None else dtype))
    note = f"{rows} rows × {width} columns"
    return encoder.attributes(type_name(type(value)), named, depth, form="dataframe", note=note)


def _dtype_text(array: object) -> str:
    dtype = getattr(array, "dtype", None)
    return str(dtype) if module_name(type(dtype)).partition(".")[0] in ("numpy", "pandas") else type_name(type(array))


def _pandas_series(encoder: HeapEncoder, value: object, depth: int) -> Node:
    manager = part(value, "_mgr")
    column = manager.blocks[0].values
    length = len(manager.axes[0])
    note = f"{_dtype_text(column)}, {length} rows"
    head = _head_of(part(column, "_ndarray", column), encoder.limits.breadth)
    if head is None:
        return Node(type_name(type(value)), "opaque", length=length, form="series", note=note)
    return encoder.sequence(type_name(type(value)), "list", length, iter(head), depth, form="series", note=note)


def _pandas_index(encoder: HeapEncoder, value: object, depth: int) -> Node:
    labels = _index_labels(value, encoder.limits.breadth)
    name = type_name(type(value))
    if labels is None:
        return Node(name, "opaque", form="index")
    data = part(value, "_data")
    length = len(part(data, "_ndarray", data)) if data is not None else len(part(value, "_range"))
    return encoder.sequence(name, "list", length, iter(labels), depth, form="index")


# --- recognising ----------------------------------------------------------------------------------------

#: (module, name) of a class in the MRO, and how its instances are opened.
_FAMILIES: dict[tuple[str, str], Shape] = {
    ("django.db.models.base", "Model"): _django_model,
    ("django.db.models.query", "QuerySet"): _django_queryset,
    ("django.forms.forms", "BaseForm"): _django_form,
    ("django.http.request", "HttpRequest"): _django_request,
    ("sqlalchemy.engine.row", "Row"): _sqlalchemy_row,
    ("pydantic.main", "BaseModel"): _pydantic_model,
    ("pydantic.types", "_SecretBase"): _secret,
    ("numpy", "ndarray"): _numpy_array,
    ("numpy", "generic"): _numpy_scalar,
    ("pandas", "DataFrame"): _pandas_frame,
    ("pandas", "Series"): _pandas_series,
    ("pandas", "Index"): _pandas_index,
}


def shape_of(order: tuple[type, ...]) -> Shape | None:
    """The shape of a type with this MRO, if it is of a known library; else None."""
    for base in order[:-1]:
        module = module_name(base)
        name = type_name(base).rpartition(".")[2]
        # pandas says `pandas.core.frame` in its older releases and `pandas` in its newer ones.
        module = "pandas" if module.startswith("pandas.") else module
        shape = _FAMILIES.get((module, name))
        if shape is not None and resident(module, name) is base:
            return shape
        if "_sa_class_manager" in namespace(base) and resident("sqlalchemy.orm", "DeclarativeBase") is not None:
            return _sqlalchemy_model
    return None
