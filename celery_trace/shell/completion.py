"""
Completion at the cursor, without running the user's code.

No property, descriptor, ``__getattr__`` or ``__dir__`` of a user's class is called: the dictionaries of instances and
classes are read as :func:`inspect.getattr_static` does. ``isinstance`` is not used on a user's object either: it may
read its ``__class__``, on which a lazy proxy loads its object.
Only the standard library: the sandbox loads this module too.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import keyword
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from celery_trace.shell.trace_object import Locals, ShellObject

LIMIT = 200
_EXPRESSION = re.compile(r"((?:[^\W\d]\w*)(?:\.[^\W\d]\w*|\[(?:-?\d+|'[^'\\]*'|\"[^\"\\]*\")\])*)\.(\w*)\Z")
_KEY = re.compile(r"((?:[^\W\d]\w*)(?:\.[^\W\d]\w*|\[(?:-?\d+|'[^'\\]*'|\"[^\"\\]*\")\])*)\[(['\"])([^'\"\\]*)\Z")
_NAME = re.compile(r"(?<![\w.\])'\"])([^\W\d]\w*)?\Z")
_MISSING = object()
# C-level descriptors whose __get__ only reads memory.
_PLAIN_DESCRIPTORS = (types.MemberDescriptorType,)


def complete(scope: Mapping[str, object], names: Iterable[str], code: str, cursor: int) -> list[str]:
    """
    Words that can replace the one before the cursor, at most :data:`LIMIT`, public ones first.

    Args:
        scope: Looks up a name; raises KeyError.
        names: All names in scope.
    """
    head = code[: max(0, cursor)].rsplit("\n", 1)[-1]
    if len(head) > 1000:
        return []
    if match := _EXPRESSION.search(head):
        owner = _resolve(scope, match.group(1))
        return [] if owner is _MISSING else _matching(attribute_names(owner), match.group(2))
    if match := _KEY.search(head):
        owner = _resolve(scope, match.group(1))
        if type(owner) is dict or type(owner) is Locals:
            keys = [key for key in list(owner)[: 10 * LIMIT] if type(key) is str and match.group(2) not in key]
            # A whole word is replaced, so keys that aren't words can't be offered.
            return _matching((key for key in keys if key.isidentifier()), match.group(3))
        return []
    if match := _NAME.search(head):
        prefix = match.group(1) or ""
        return _matching([*names, *keyword.kwlist, *dir(builtins)], prefix) if prefix else _matching(names, "")
    return []


def _matching(names: Iterable[str], prefix: str) -> list[str]:
    found = {name for name in names if name.startswith(prefix) and (prefix or not name.startswith("_"))}
    return sorted(found, key=lambda name: (name.startswith("_"), name))[:LIMIT]


def _resolve(scope: Mapping[str, object], expression: str) -> object:
    try:
        tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        return _MISSING
    return _value(scope, tree)


def _value(scope: Mapping[str, object], node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        try:
            return scope[node.id]
        except KeyError:
            return getattr(builtins, node.id, _MISSING)
    if isinstance(node, ast.Attribute):
        owner = _value(scope, node.value)
        return _MISSING if owner is _MISSING else _attribute(owner, node.attr)
    if isinstance(node, ast.Subscript):
        owner = _value(scope, node.value)
        try:
            key = ast.literal_eval(node.slice)
            if type(owner) in (list, tuple, dict, Locals) and type(key) in (int, str):
                return owner[key]
        except (ValueError, LookupError, TypeError):
            return _MISSING
    return _MISSING


def _is_ours(owner: object) -> TypeGuard[ShellObject]:
    return issubclass(type(owner), ShellObject)


def _attribute(owner: object, name: str) -> object:
    if _is_ours(owner):
        return owner._members().get(name, _MISSING)
    if type(owner) is Locals and name in owner:
        return owner[name]
    try:
        found = inspect.getattr_static(owner, name)
    except (AttributeError, TypeError, ValueError):
        return _MISSING
    if issubclass(type(found), _PLAIN_DESCRIPTORS) and not issubclass(type(owner), type):
        try:
            return found.__get__(owner, type(owner))
        except AttributeError:
            return _MISSING
    # Reading a property, a method or another descriptor would run its __get__.
    return _MISSING if hasattr(type(found), "__get__") and not issubclass(type(found), type) else found


def attribute_names(owner: object) -> set[str]:
    """Names of an object's attributes, from its dictionary, slots and classes."""
    if _is_ours(owner):
        return set(owner._members())
    names: set[str] = set()
    if type(owner) is Locals:
        names.update(owner)
    if issubclass(type(owner), types.ModuleType):
        names.update(_keys(object.__getattribute__(owner, "__dict__")))
        return names
    kind = type(owner)
    if issubclass(kind, type):
        for base in type.__dict__["__mro__"].__get__(owner):
            names.update(_keys(type.__dict__["__dict__"].__get__(base)))
        return names
    for base in type.__dict__["__mro__"].__get__(kind):
        entries = type.__dict__["__dict__"].__get__(base)
        names.update(_keys(entries))
        own = entries.get("__dict__")
        # Since Python 3.15 classes share this descriptor, and it is of `object`.
        if type(own) is types.GetSetDescriptorType and own.__objclass__ in (base, object):
            try:
                names.update(_keys(own.__get__(owner)))
            except (AttributeError, TypeError):
                continue
    return names


def _keys(entries: Mapping[object, object]) -> list[str]:
    return [key for key in list(entries) if type(key) is str]
