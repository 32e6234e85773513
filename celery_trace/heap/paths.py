"""The path from a root to what it holds, as text: a step for each object, with its attribute in the one above."""

from __future__ import annotations

import gc
import threading
import types
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from celery_trace.heap.evidence import key_step
from celery_trace.heap.objects import (
    LRU,
    attributes,
    attributes_in_dict,
    bound_of,
    count_of,
    globals_of,
    is_a,
    is_dict,
    is_sized,
    length_of,
    namespace_of,
    short_name,
    type_name,
)

#: A key is not searched among more entries.
_MOST_KEYS: Final = 10_000
#: Has the attributes that a thread-local has in one thread.
_THREAD_LOCAL: Final = "_thread._localdummy"


class PathText:
    """
    Describes the objects of one chain.

    Args:
        chain: The objects, from the root down to a survivor.
        modules: The names of modules by the address of their globals.
    """

    def __init__(self, chain: Sequence[object], modules: Mapping[int, str]) -> None:
        self._modules = modules
        #: Dicts with keys that are names of attributes or variables, by address.
        self.namespaces = {id(thing) for above, thing in pairwise(chain) if _is_namespace_of(thing, above)}
        self.namespaces.update(
            id(thing)
            for over, _, thing in zip(chain, chain[1:], chain[2:], strict=False)
            if issubclass(type(over), threading.local) and type(thing) is dict
        )
        self.namespaces |= modules.keys()

    def steps(self, chain: Sequence[object], name: str = "") -> list[str]:
        """
        The steps of a part of the chain.

        Args:
            chain: From the root on.
            name: The variable that refers to the first one.
        """
        path: list[str] = []
        for index, thing in enumerate(chain):
            above = chain[index - 1] if index else None
            if index == len(chain) - 1 and index:
                path.append(self._leaf(thing, above, name))
                break
            text = self._text(thing, above)
            if text:
                path.append(f"{name}: {text}" if name else text)
            edge = self._edge(thing, chain[index + 1]) if index + 1 < len(chain) else ""
            # A namespace, a cell or a closure's tuple is no step of its own: its name goes to the next.
            name = edge if text or edge else name
        return path

    def _text(self, thing: object, above: object) -> str:
        """The text of a step of the path; empty for an object that is left out."""
        kind = type(thing)
        if kind is dict and id(thing) in self._modules:
            return f"{self._modules[id(thing)]} (module)"
        code = _text_of_code(thing)
        if code:
            return code
        if kind is types.CellType or id(thing) in self.namespaces or _is_inner_dict(thing, above):
            return ""
        if kind is tuple and above is not None and length_of(thing) < 8:
            return ""
        bound, _ = bound_of(thing)
        if bound:
            return bound
        length = length_of(thing)
        name = "lru_cache" if kind is LRU else short_name(kind)
        return f"{name}[{length}]" if length >= 0 else name

    def _leaf(self, thing: object, holder: object, name: str) -> str:
        kind = short_name(type(thing))
        if length_of(holder) >= 0 and id(holder) not in self.namespaces:
            return f"{kind} × {count_of(holder, type(thing))}"
        return f"{name}: {kind}" if name else kind

    def _edge(self, above: object, thing: object) -> str:
        """The attribute or variable by which one object refers to the next; empty for an entry of a container."""
        if is_dict(above) and id(above) in self.namespaces:
            return _name_of(thing, above)
        if is_a(above, type):
            return "" if id(thing) in self.namespaces else _name_of(thing, namespace_of(above))
        if is_a(above, types.FunctionType):
            return _edge_of_function(above, thing)
        if is_dict(above) and len(above) <= _MOST_KEYS:
            key = next((key for key, value in list(dict.items(above)) if value is thing), None)
            return key_step(key) if type(key) is str else ""
        return _name_of(thing, attributes(above))


def _text_of_code(thing: object) -> str:
    """The text of a module, class, thread, function or something that is running; empty for anything else."""
    kind = type(thing)
    if is_a(thing, types.ModuleType):
        return f"{globals_of(thing).get('__name__', '?')} (module)"
    if is_a(thing, type):
        return f"{type_name(thing)} (class)"
    if is_a(thing, threading.Thread):
        return f"{short_name(kind)} (thread)"
    if is_a(thing, types.FunctionType):
        return f"{thing.__qualname__}() (function)"
    if is_a(thing, types.MethodType):
        function = thing.__func__
        name = function.__name__ if type(function) is types.FunctionType else short_name(type(function))
        return f"{short_name(type(thing.__self__))}.{name} (bound method)"
    if is_a(thing, types.GeneratorType) or is_a(thing, types.CoroutineType) or is_a(thing, types.AsyncGeneratorType):
        return f"{thing.__qualname__}() (suspended {kind.__name__.replace('_', ' ')})"
    if is_a(thing, types.FrameType):
        return f"{thing.f_code.co_name}() (frame)"
    return ""


def _edge_of_function(function: types.FunctionType, thing: object) -> str:
    """The variable or default by which a function refers to an object."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        if cell is thing or _content(cell) is thing:
            return name
    if thing is function.__closure__:
        return ", ".join(function.__code__.co_freevars)[:60]
    if thing is function.__defaults__ or thing is function.__kwdefaults__:
        return "default argument"
    return ""


def _name_of(thing: object, namespace: Mapping[str, object] | Mapping[object, object]) -> str:
    """The name of an object in a namespace; or of one of its type, as a longer text may have replaced it since."""
    found = [(name, value) for name, value in list(namespace.items()) if type(name) is str]
    of_its_type = [name for name, value in found if type(value) is type(thing) and not name.startswith("__")]
    return next((name for name, value in found if value is thing), of_its_type[0] if len(of_its_type) == 1 else "")


def _is_namespace_of(thing: object, above: object) -> bool:
    """Whether a dict has the attributes of the object above: its keys are names; those of any other dict are data."""
    kind = type(above)
    if type(thing) is not dict:
        return False
    if issubclass(kind, type):
        return any(one is thing for one in gc.get_referents(namespace_of(above)))
    if issubclass(kind, types.ModuleType):
        return globals_of(above) is thing
    if issubclass(kind, types.FunctionType):
        return above.__dict__ is thing
    return type_name(kind) == _THREAD_LOCAL or attributes_in_dict(above) is thing


def _is_inner_dict(thing: object, above: object) -> bool:
    """Whether a dict is not an entry or attribute of the object above, but part of it."""
    if type(thing) is not dict or above is None:
        return False
    if issubclass(type(above), type):
        return not any(value is thing for value in namespace_of(above).values())
    return not is_sized(above) and not any(value is thing for value in attributes(above).values())


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None
