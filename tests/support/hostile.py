"""Objects that punish whoever touches them: each of their hooks counts a trespass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_trespasses: list[str] = []
_watching = False


class Trespass(Exception):
    """A hook was run that nobody should run."""


@contextmanager
def watched() -> Iterator[None]:
    """What happens inside must run no hook of a hostile object; afterwards they may, as test tools print them."""
    global _watching
    _trespasses.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert not _trespasses, f"the user's code was run: {_trespasses}"


def _trap(name: str) -> Any:
    def hook(*_: object, **__: object) -> Any:
        if _watching:
            _trespasses.append(name)
        elif name.endswith("__repr__"):
            return "<hostile>"
        elif name.endswith("__hash__"):
            return 7
        raise Trespass(name)

    return hook


_HOOKS = (
    "__repr__", "__str__", "__len__", "__iter__", "__getitem__", "__contains__", "__bool__", "__eq__", "__hash__",
    "__getattr__", "__format__", "__sizeof__", "__dir__", "__int__", "__float__", "__index__", "__bytes__",
    "__reduce__", "__reduce_ex__", "__next__", "__reversed__", "__missing__", "__fspath__", "__abs__", "__lt__",
    "__gt__", "__call__", "keys", "items", "values", "isoformat", "utcoffset",
)  # fmt: skip


class HostileMeta(type):
    """A metaclass whose hooks are traps."""

    __hash__ = _trap("metaclass __hash__")  # type: ignore[assignment]
    __eq__ = _trap("metaclass __eq__")
    __repr__ = _trap("metaclass __repr__")
    __getattr__ = _trap("metaclass __getattr__")
    __instancecheck__ = _trap("metaclass __instancecheck__")
    __subclasscheck__ = _trap("metaclass __subclasscheck__")


def hostile(*bases: type, metaclass: type = type, **more: Any) -> type:
    """A class with a trap in each hook, a property and a ``__class__`` that lies."""
    namespace: dict[str, Any] = {name: _trap(name) for name in _HOOKS}
    namespace["prop"] = property(_trap("property"))
    namespace["__class__"] = property(_trap("__class__"))
    namespace["__dict__"] = (
        property(_trap("__dict__")) if more.pop("trapped_dict", False) else namespace.get("__dict__")
    )
    if namespace["__dict__"] is None:
        del namespace["__dict__"]
    namespace["__module__"] = __name__
    if metaclass is not type:
        namespace["__hash__"] = None
    return metaclass("Hostile", bases, namespace)
