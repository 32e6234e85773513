"""
Reads objects without running any of the user's code.

``obj.name`` may run a property, ``__getattr__`` or ``__getattribute__``; ``isinstance`` may read a ``__class__``
property; hashing a type may call its metaclass. Here only the interpreter's own slots are read: the type by ``type()``,
its MRO and its own namespace by the descriptors of ``type``, instance dictionaries by the interpreter's getset, slots
by their member descriptors.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import GetSetDescriptorType, MappingProxyType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import TypeIs

_T = TypeVar("_T")

_mro_of = type.__dict__["__mro__"].__get__
_namespace_of = type.__dict__["__dict__"].__get__
_module_of = type.__dict__["__module__"].__get__
_qualname_of = type.__dict__["__qualname__"].__get__
_flags_of = type.__dict__["__flags__"].__get__
_HEAP_TYPE = 1 << 9

#: Slots of internals, not data.
_MACHINERY = frozenset(("__dict__", "__weakref__"))


def mro(cls: type) -> tuple[type, ...]:
    """The type's method resolution order, from the interpreter's slot."""
    order: tuple[type, ...] = _mro_of(cls)
    return order


def namespace(cls: type) -> MappingProxyType[str, object]:
    """The type's own namespace, without its bases'."""
    own: MappingProxyType[str, object] = _namespace_of(cls)
    return own


def class_value(cls: type, name: str) -> object:
    """What the class body of the type or of its nearest base binds to the name, raw; None if none does."""
    for base in mro(cls):
        own = namespace(base)
        if name in own:
            return own[name]
    return None


def module_name(cls: type) -> str:
    """The type's ``__module__``; empty if that is not text."""
    try:
        name = _module_of(cls)
    except AttributeError:
        return ""
    return name if type(name) is str else ""


def type_name(cls: type) -> str:
    """``module.Qualname``, or the bare name for a builtin."""
    module = module_name(cls)
    qualname = _qualname_of(cls)
    if type(qualname) is not str:
        qualname = "?"
    name = qualname if module in ("builtins", "") else f"{module}.{qualname}"
    if len(name) > 200:
        name = name[:200] + "…"
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def is_kind_of(cls: type, *ancestors: type) -> bool:
    """Like ``issubclass``, but calls no metaclass."""
    return any(base is ancestor for base in mro(cls) for ancestor in ancestors)


def is_instance(value: object, cls: type[_T]) -> TypeIs[_T]:
    """Like ``isinstance``, but reads no ``__class__`` and calls no metaclass."""
    return is_kind_of(type(value), cls)


def _is_getter(member: object) -> TypeIs[GetSetDescriptorType | MemberDescriptorType]:
    return type(member) is GetSetDescriptorType or type(member) is MemberDescriptorType


def resident(module: str, name: str) -> Any:
    """What a module that is already imported holds under a name; imports nothing, runs no module ``__getattr__``."""
    found = sys.modules.get(module)
    return getattr(found, "__dict__", {}).get(name) if type(found) is type(sys) else None


#: What libraries for record classes put into a class body.
_MARKS = (("__dataclass_fields__", "dataclass"), ("__attrs_attrs__", "attrs"), ("__struct_fields__", "struct"))


class Anatomy:
    """Where the parts of a type's instances are. Made once per type; reading an instance is then a few C calls."""

    __slots__ = ("dict_getter", "form", "is_secret", "name", "slot_getters")

    def __init__(self, cls: type) -> None:
        self.name = type_name(cls)
        #: The type's name means that it holds a secret, like ``SecretStr``.
        self.is_secret = "Secret" in self.name.rpartition(".")[2]
        self.form = next((form for mark, form in _MARKS if class_value(cls, mark) is not None), "")
        self.dict_getter: Callable[[object], dict[str, object]] | None = None
        self.slot_getters: list[tuple[str, Callable[[object], object]]] = []
        for base in mro(cls):
            own = namespace(base)
            if self.dict_getter is None:
                candidate = own.get("__dict__")
                # A member in C classes such as `SimpleNamespace`.
                if _is_getter(candidate) and base is not type:
                    self.dict_getter = candidate.__get__
            if (_flags_of(base) & _HEAP_TYPE and "__slots__" in own) or "__struct_fields__" in own:
                self.slot_getters += [
                    (name, member.__get__)
                    for name, member in own.items()
                    if type(member) is MemberDescriptorType and name not in _MACHINERY
                ]

    def attributes_of(self, instance: object) -> list[tuple[str, object]]:
        """
        The instance's own attributes: its slots, then its dictionary; names that are not text are left out.

        A slot without a value is left out too. Private names are as the interpreter mangled them.
        """
        if not self.slot_getters:
            own = self.dict_of(instance)
            return [item for item in dict.items(own) if type(item[0]) is str] if own else []
        found: list[tuple[str, object]] = []
        for name, get in self.slot_getters:
            try:
                found.append((name, get(instance)))
            except AttributeError:
                continue
        if self.dict_getter is not None:
            own = self.dict_of(instance)
            if own:
                for name, value in dict.items(own):
                    if type(name) is str:
                        found.append((name, value))
        return found

    def dict_of(self, instance: object) -> dict[str, object] | None:
        """The instance's own dictionary; None when it has none."""
        if self.dict_getter is None:
            return None
        try:
            own = self.dict_getter(instance)
        except (AttributeError, TypeError):
            return None
        # A type may swap the dictionary for a subclass: still read by dict's own methods.
        return own if type(own) is dict or is_instance(own, dict) else None


#: Cached by address, because hashing a type may run its metaclass; the weak reference detects an address that was
#: reused for another type.
_anatomies: dict[int, tuple[weakref.ref[type], Anatomy]] = {}


def anatomy(cls: type) -> Anatomy:
    """The anatomy of a type, cached while the type lives."""
    known = _anatomies.get(id(cls))
    if known is not None and known[0]() is cls:
        return known[1]
    if len(_anatomies) >= 2048:
        _anatomies.clear()
    made = Anatomy(cls)
    _anatomies[id(cls)] = (weakref.ref(cls), made)
    return made


def part(instance: object, name: str, default: object = None) -> Any:
    """
    One attribute as the interpreter stores it: a slot or a C field, else an entry of the instance's dictionary.

    Properties, ``__getattr__`` and the class's own values are not used.
    """
    cls = type(instance)
    for base in mro(cls):
        own = namespace(base)
        if name in own:
            candidate = own[name]
            if _is_getter(candidate):
                try:
                    return candidate.__get__(instance)
                except AttributeError:
                    return default
            break
    values = anatomy(cls).dict_of(instance)
    return dict.get(values, name, default) if values is not None else default
