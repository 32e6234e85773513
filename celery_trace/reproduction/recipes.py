"""
How a captured value can be made again: exactly, or as a marked hole.

A recipe is data. :func:`source` writes it as Python, :func:`value` makes it. Only exact builtins, and makers of a fixed
table, are written or called: no name in a capture becomes code.
"""

from __future__ import annotations

import datetime
import decimal
import importlib
import itertools
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from msgspec import Struct

from celery_trace.model import Capture, Node
from celery_trace.redaction import MARK, Redactor

#: Most values of one recipe: nodes are shared, so a small heap may expand to very many.
MOST_VALUES: Final = 20_000
#: The deepest nesting. Python's parser allows 200 brackets.
MOST_DEPTH: Final = 50
#: Most characters of a number: Python's own limit.
MOST_DIGITS: Final = 4300


class Plain(Struct, frozen=True):
    """A value of an exact builtin type. Its ``repr`` is a literal."""

    value: bool | int | float | str | bytes | None


class Row(Struct, frozen=True):
    """A ``list``, ``tuple``, ``set`` or ``frozenset``."""

    kind: str
    items: tuple[Recipe, ...]


class Pairs(Struct, frozen=True):
    """A ``dict``."""

    items: tuple[tuple[Recipe, Recipe], ...]


class Made(Struct, frozen=True):
    """What a maker of :data:`MAKERS` returns for these arguments."""

    maker: str
    arguments: tuple[Recipe, ...]


class Hole(Struct, frozen=True):
    """A value that the capture does not have. ``where`` is its name, ``why`` the reason; neither has its text."""

    where: str
    why: str


Recipe = Plain | Row | Pairs | Made | Hole


class Maker(NamedTuple):
    """Where a maker is: an attribute of a standard module, of ``builtins``, or of the test's ``PROJECT``."""

    owner: str
    name: str

    @property
    def source(self) -> str:
        """Its name in a test."""
        return self.name if self.owner == "builtins" else f"{self.owner}.{self.name}"


PROJECT: Final = "PROJECT"
MAKERS: Final[Mapping[str, Maker]] = {
    "float": Maker("builtins", "float"),
    "complex": Maker("builtins", "complex"),
    "bytearray": Maker("builtins", "bytearray"),
    "range": Maker("builtins", "range"),
    "Decimal": Maker("decimal", "Decimal"),
    "datetime": Maker("datetime", "datetime.fromisoformat"),
    "date": Maker("datetime", "date.fromisoformat"),
    "time": Maker("datetime", "time.fromisoformat"),
    "timedelta": Maker("datetime", "timedelta"),
    "UUID": Maker("uuid", "UUID"),
    "PosixPath": Maker("pathlib", "Path"),
    "PurePosixPath": Maker("pathlib", "PurePosixPath"),
    "PureWindowsPath": Maker("pathlib", "PureWindowsPath"),
    "dataclass": Maker(PROJECT, "dataclass"),
    "enum": Maker(PROJECT, "enum"),
    "namedtuple": Maker(PROJECT, "namedtuple"),
    "model": Maker(PROJECT, "model"),
    "array": Maker(PROJECT, "array"),
    "number": Maker(PROJECT, "number"),
}

# --- from a capture ---------------------------------------------------------------------------------------

_PLAIN: Final[Mapping[str, type]] = {"NoneType": type(None), "bool": bool, "int": int, "float": float, "str": str}
_ROWS: Final = frozenset(("list", "tuple", "set", "frozenset"))
_MUTABLE: Final = frozenset(("list", "set", "dict", "object"))
#: NUL and lone surrogates are stored as these escapes, which can't be told from a text with these characters.
_ESCAPES: Final = re.compile(r"\\x00|\\ud[89a-f][0-9a-f]{2}")
_BYTE: Final = re.compile(rb"\\x(00|[89a-f][0-9a-f])")
_TIMEDELTA: Final = re.compile(r"(?:(-?\d+) days?, )?(\d+):(\d+):(\d+)(?:\.(\d{6}))?")
_RANGE: Final = re.compile(r"range\((-?\d+), (-?\d+), (-?\d+)\)")
_MODEL: Final = re.compile(r"([^\W\d]\w*\.[^\W\d]\w*)(?:; deferred: .*)?")
_ARRAY: Final = re.compile(r"(bool|u?int\d+|float\d+) \(((?:\d+,? ?)*)\)")


class _Cannot(Exception):
    """A node is not known exactly; the text is the reason."""


class Reader:
    """
    Reads recipes from one capture.

    An object that several places hold is made at the first of them; the others are holes, as a copy would be
    another object.

    Args:
        heap: The capture's table.
        redactor: A second look at every text: the settings may have more names than at the time of the failure.
        copies: Make such an object at each place instead.
    """

    def __init__(self, heap: Sequence[Node], redactor: Redactor, *, copies: bool = False) -> None:
        self._heap = heap
        self._copies = copies
        self._redactor = redactor
        self._seen: dict[int, str] = {}
        self._count = itertools.count()

    def read(self, ref: int, where: str, depth: int = 0) -> Recipe:
        """The recipe of a node; ``where`` is its name in holes."""
        if not 0 <= ref < len(self._heap):
            return Hole(where, "cut: the capture has no room for it")
        node = self._heap[ref]
        if depth > MOST_DEPTH or next(self._count) > MOST_VALUES:
            return Hole(where, "cut: too deep, or too many values")
        if not self._copies and node.kind in _MUTABLE and node.form != "enum":
            if ref in self._seen:
                return Hole(where, f"the same object as {self._seen[ref]}")
            self._seen[ref] = where
        try:
            return self._recipe(node, where, depth)
        except _Cannot as reason:
            return Hole(where, str(reason))

    def _recipe(self, node: Node, where: str, depth: int) -> Recipe:
        if node.kind == "redacted":
            raise _Cannot("redacted")
        if node.kind == "absent":
            raise _Cannot(f"cut: a {_named(node)}{f' of {node.length:,}' if node.length >= 0 else ''}")
        if node.cut or (node.kind in _ROWS and node.length not in (-1, len(node.items))):
            raise _Cannot(f"cut: a {_named(node)}, of which {node.cut or 'some'} were left out")
        if node.kind in ("plain", "text"):
            return self._leaf(node)
        if node.kind == "object":
            return self._object(node, where, depth)
        if node.form == "ndarray":
            return self._array(node, where, depth)
        if node.type.removeprefix("builtins.") != node.kind or node.kind not in (*_ROWS, "dict"):
            raise _Cannot(f"a {_named(node)}, which can't be made from its capture")
        if node.kind == "dict":
            return Pairs(tuple(self._pairs(node, where, depth)))
        items = tuple(self.read(item, f"{where}[{at}]", depth + 1) for at, item in enumerate(node.items))
        if node.kind in ("set", "frozenset"):
            _check_hashable(items)
        return Row(node.kind, items)

    def _pairs(self, node: Node, where: str, depth: int) -> Iterator[tuple[Recipe, Recipe]]:
        if len(node.items) % 2:
            raise _Cannot("a dict without its last value")
        for key_ref, ref in zip(node.items[::2], node.items[1::2], strict=True):
            key = self.read(key_ref, f"a key of {where}", depth + 1)
            if isinstance(key, Hole):
                raise _Cannot(f"{key.where}: {key.why}")
            _check_hashable((key,))
            name = key.value if isinstance(key, Plain) else key
            yield key, self.named(name, ref, f"{where}[{name!r}]" if isinstance(key, Plain) else where, depth + 1)

    def named(self, name: object, ref: int, where: str, depth: int = 0) -> Recipe:
        """The recipe of a value with a name; a secret name makes a hole."""
        found = self.read(ref, where, depth)
        if isinstance(name, str) and not _is_harmless(found) and self._redactor.is_secret_name(name):
            return Hole(where, "redacted")
        return found

    def _members(self, node: Node, where: str, depth: int) -> Pairs:
        named = zip(node.names, node.items, strict=False)
        return Pairs(tuple((Plain(name), self.named(name, ref, f"{where}.{name}", depth + 1)) for name, ref in named))

    # --- leaves

    def _text(self, text: object) -> str:
        if not isinstance(text, str):
            raise _Cannot("damaged")
        if MARK in text or self._redactor.text(text) != text:
            raise _Cannot("redacted in part")
        return text

    def _leaf(self, node: Node) -> Recipe:
        short = node.type.removeprefix("builtins.")
        if node.type.startswith("numpy."):
            return _number(node)
        if node.kind == "plain":
            return self._plain(node, short)
        text = self._text(node.value)
        if node.note:
            raise _Cannot(f"a {_named(node)} {node.note}"[:200])
        if short in ("bytes", "bytearray"):
            exact = Plain(_bytes(text, node.length))
            return exact if short == "bytes" else Made("bytearray", (exact,))
        read = _FROM_TEXT.get("path" if node.form == "path" else short)
        if read is None:
            raise _Cannot(f"a {_named(node)}, of which the capture has only a text")
        try:
            return read(node, text)
        except (ValueError, ArithmeticError) as error:
            raise _Cannot(f"a {_named(node)} that can't be read back") from error

    def _plain(self, node: Node, short: str) -> Plain:
        value: Any = node.value
        if short == "float" and type(value) is int:
            value = float(value)
        cls: object = type(value)  # mypy takes the comparison for a test of the value
        if _PLAIN.get(short) is not cls:
            raise _Cannot(f"a {_named(node)}, which can't be made from its capture")
        if short == "str" and _ESCAPES.search(self._text(value)):
            raise _Cannot("a text with NUL or with half a character, which the capture has as an escape")
        return Plain(value)

    # --- objects

    def _object(self, node: Node, where: str, depth: int) -> Recipe:
        if node.form == "model" and (found := _MODEL.fullmatch(node.note)) and node.items and node.names:
            key = self.read(node.items[0], f"{where}.{node.names[0]}", depth + 1)
            return key if isinstance(key, Hole) else Made("model", (Plain(found[1]), key))
        if node.form not in ("dataclass", "enum", "namedtuple"):
            raise _Cannot(f"a {_named(node)}, which can't be made from its capture")
        if not all(part.isidentifier() for part in node.type.split(".")) or "." not in node.type:
            raise _Cannot(f"a {_named(node)} of a class that can't be imported")
        cls = Plain(node.type)
        if node.form != "enum":
            return Made(node.form, (cls, self._members(node, where, depth)))
        name = self.read(node.items[0], where, depth + 1) if node.items else None
        if not isinstance(name, Plain) or type(name.value) is not str:
            raise _Cannot(f"a {_named(node)} without a name")
        return Made("enum", (cls, name))

    def _array(self, node: Node, where: str, depth: int) -> Recipe:
        found = _ARRAY.fullmatch(node.note)
        if found is None or node.type != "numpy.ndarray":
            raise _Cannot(f"a {_named(node)} of {node.note}"[:200])
        items = Row("list", tuple(self.read(item, where, depth + 1) for item in node.items))
        shape = Row("tuple", tuple(Plain(int(size)) for size in re.findall(r"\d+", found[2])))
        hole = next((item for item in items.items if isinstance(item, Hole)), None)
        return hole or Made("array", (items, Plain(found[1]), shape))


def _is_harmless(recipe: Recipe) -> bool:
    """None, booleans and empty values reveal no secret, as in a capture."""
    if isinstance(recipe, Plain):
        return recipe.value is None or type(recipe.value) is bool or recipe.value in ("", b"")
    return isinstance(recipe, Hole) or (isinstance(recipe, Row | Pairs) and not recipe.items)


def _named(node: Node) -> str:
    """A type's name, as it may be shown: the capture has it redacted already."""
    return node.type or "value"


def _check_hashable(recipes: Sequence[Recipe]) -> None:
    for recipe in recipes:
        if isinstance(recipe, Row) and recipe.kind in ("tuple", "frozenset"):
            _check_hashable(recipe.items)
        elif isinstance(recipe, Pairs | Row) or (isinstance(recipe, Made) and recipe.maker in ("array", "bytearray")):
            raise _Cannot("a set or a dict with a key that can't be one")


def _bytes(text: str, length: int) -> bytes:
    r"""Bytes as they were: the true length says whether ``\x80`` was one byte or four."""
    raw = text.encode()
    found = len(_BYTE.findall(raw))
    if length == len(raw) or not found:
        return raw
    if length == len(raw) - 3 * found:
        return _BYTE.sub(lambda match: bytes.fromhex(match[1].decode()), raw)
    raise _Cannot("bytes of which the capture has only a text")


def _number(node: Node) -> Recipe:
    """A numpy scalar."""
    kind = node.type.removeprefix("numpy.")
    if not re.fullmatch(r"(?:u?int|float)\d+|bool_?", kind):
        raise _Cannot(f"a {_named(node)}, which can't be made from its capture")
    value = node.value
    if type(value) is str:
        try:
            value = float(value)
        except ValueError as error:
            raise _Cannot(f"a {_named(node)} that can't be read back") from error
    if type(value) not in (bool, int, float):
        raise _Cannot("damaged")
    return Made("number", (Plain(kind), _float(value) if type(value) is float else Plain(value)))


def _float(number: float) -> Recipe:
    finite = number - number == 0.0
    return Plain(number) if finite else Made("float", (Plain(repr(number)),))


def _short(text: str) -> str:
    if len(text) > MOST_DIGITS:
        raise _Cannot("too long a number")
    return text


def _whole_numbers(pattern: re.Pattern[str], text: str) -> list[int]:
    found = pattern.fullmatch(_short(text))
    if found is None:
        raise ValueError(text)
    return [int(part or 0) for part in found.groups()]


def _timedelta(_: Node, text: str) -> Recipe:
    days, hours, minutes, seconds, micros = _whole_numbers(_TIMEDELTA, text)
    datetime.timedelta(days)
    parts = (days, 3600 * hours + 60 * minutes + seconds, micros)
    return Made("timedelta", tuple(map(Plain, parts)))


def _range(_: Node, text: str) -> Recipe:
    return Made("range", tuple(map(Plain, _whole_numbers(_RANGE, text))))


def _path(node: Node, text: str) -> Recipe:
    name = node.type.rpartition(".")[2]
    if name not in ("PosixPath", "PurePosixPath", "PureWindowsPath"):
        raise _Cannot(f"a {_named(node)}, which can't be made on every system")
    return Made(name, (Plain(text),))


def _read_by(maker: str, check: Callable[[str], object]) -> Callable[[Node, str], Recipe]:
    """Written as the maker's call with the text, if ``check`` can read it."""

    def read(_: Node, text: str) -> Recipe:
        check(_short(text))
        return Made(maker, (Plain(text),))

    return read


_FROM_TEXT: Final[Mapping[str, Callable[[Node, str], Recipe]]] = {
    "int": lambda _, text: Plain(int(_short(text))),
    "float": lambda _, text: _float(float(_short(text))),
    "complex": _read_by("complex", complex),
    "range": _range,
    "path": _path,
    "decimal.Decimal": _read_by("Decimal", decimal.Decimal),
    "datetime.datetime": _read_by("datetime", datetime.datetime.fromisoformat),
    "datetime.date": _read_by("date", datetime.date.fromisoformat),
    "datetime.time": _read_by("time", datetime.time.fromisoformat),
    "datetime.timedelta": _timedelta,
    "uuid.UUID": _read_by("UUID", uuid.UUID),
}


# --- a call's arguments -----------------------------------------------------------------------------------


class Call(Struct, frozen=True):
    """The arguments of a task. ``args`` is a hole, or a row; ``kwargs`` a hole, or pairs."""

    args: Recipe
    kwargs: Recipe

    @property
    def holes(self) -> list[Hole]:
        """What is missing, in order."""
        return [*holes(self.args), *holes(self.kwargs)]


def call_of(capture: Capture, redactor: Redactor, names: Sequence[str] = (), *, copies: bool = False) -> Call:
    """
    The arguments of a captured run.

    Args:
        capture: The capture.
        redactor, copies: See :class:`Reader`.
        names: Those of the task's positional parameters, as far as they are known.
    """
    reader = Reader(capture.heap, redactor, copies=copies)
    args: Recipe = Hole("args", "the capture has no arguments")
    kwargs: Recipe = Hole("kwargs", "the capture has no arguments")
    if 0 <= capture.args < len(capture.heap):
        node = capture.heap[capture.args]
        if node.cut or node.kind not in ("list", "tuple"):
            args = reader.read(capture.args, "args")
        else:
            places = [names[at] if at < len(names) else f"args[{at}]" for at in range(len(node.items))]
            args = Row("list", tuple(map(reader.named, places, node.items, places)))
    if 0 <= capture.kwargs < len(capture.heap):
        node = capture.heap[capture.kwargs]
        kwargs = reader.read(capture.kwargs, "kwargs")
        if isinstance(kwargs, Pairs):
            kwargs = Pairs(tuple((key, _renamed(item, "kwargs")) for key, item in kwargs.items))
            if not all(isinstance(key, Plain) and type(key.value) is str for key, _ in kwargs.items):
                kwargs = Hole("kwargs", "a name that is not a text")
    return Call(args, kwargs)


def _renamed(recipe: Recipe, prefix: str) -> Recipe:
    """``token`` instead of ``kwargs['token']`` for a whole argument that is a hole."""
    if not isinstance(recipe, Hole):
        return recipe
    found = re.fullmatch(rf"{prefix}\['(\w+)'\]", recipe.where)
    return Hole(found[1], recipe.why) if found else recipe


def parts(recipe: Recipe) -> tuple[Recipe, ...]:
    """The recipes directly inside a recipe."""
    if isinstance(recipe, Row):
        return recipe.items
    if isinstance(recipe, Pairs):
        return tuple(itertools.chain.from_iterable(recipe.items))
    return recipe.arguments if isinstance(recipe, Made) else ()


def holes(recipe: Recipe) -> list[Hole]:
    """All holes in a recipe, in order."""
    if isinstance(recipe, Hole):
        return [recipe]
    return [hole for part in parts(recipe) for hole in holes(part)]


def is_made(recipe: Recipe) -> bool:
    """Whether it needs a maker somewhere."""
    return isinstance(recipe, Made) or any(map(is_made, parts(recipe)))


def modules(recipe: Recipe) -> set[str]:
    """The standard modules that its source needs."""
    own = {MAKERS[recipe.maker].owner} - {"builtins", PROJECT} if isinstance(recipe, Made) else set()
    return own.union(*(modules(part) for part in parts(recipe)))


# --- a recipe's value and its source ----------------------------------------------------------------------

_ROW_TYPES: Final[Mapping[str, Callable[[list[Any]], Any]]] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset,
}  # fmt: skip


def value(recipe: Recipe, project: object, fill: Callable[[Hole], object]) -> Any:
    """
    The value.

    Args:
        recipe: What to make.
        project: Has the makers that need the project's classes.
        fill: Returns the value of a hole, or raises.
    """
    if isinstance(recipe, Plain):
        return recipe.value
    if isinstance(recipe, Hole):
        return fill(recipe)
    if isinstance(recipe, Pairs):
        return {value(key, project, fill): value(item, project, fill) for key, item in recipe.items}
    made = [value(part, project, fill) for part in parts(recipe)]
    if isinstance(recipe, Row):
        return _ROW_TYPES[recipe.kind](made)
    maker = MAKERS[recipe.maker]
    owner = project if maker.owner == PROJECT else importlib.import_module(maker.owner)
    return attrgetter(maker.name)(owner)(*made)


def source(recipe: Recipe, indent: int = 0, width: int = 110) -> str:
    """The value as an expression: on one line if it fits, else one item a line, indented by ``indent`` columns."""
    opening, items, closing = _pieces(recipe)
    if items is None:
        return opening
    line = opening + ", ".join(f"{key}{source(item, 0, 1 << 30)}" for key, item in items) + closing
    if indent + len(line) <= width:
        return line
    margin = " " * (indent + 4)
    inner = "".join(f"{margin}{key}{source(item, indent + 4, width)},\n" for key, item in items)
    return f"{opening}\n{inner}{' ' * indent}{closing.lstrip(',')}"


_BRACKETS: Final = {"list": ("[", "]"), "tuple": ("(", ")"), "set": ("{", "}"), "frozenset": ("frozenset([", "])")}


def _pieces(recipe: Recipe) -> tuple[str, list[tuple[str, Recipe]] | None, str]:
    """What opens an expression, its items with their keys, and what closes it; no items for a literal."""
    if isinstance(recipe, Plain):
        return repr(recipe.value), None, ""
    if isinstance(recipe, Hole):
        return f"hole({recipe.where!r}, {recipe.why!r})", None, ""
    if isinstance(recipe, Pairs):
        return "{", [(f"{source(key, 0, 1 << 30)}: ", item) for key, item in recipe.items], "}"
    items: list[tuple[str, Recipe]] = [("", part) for part in parts(recipe)]
    if isinstance(recipe, Made):
        return f"{MAKERS[recipe.maker].source}(", items, ")"
    if not items:
        return f"{recipe.kind}()" if recipe.kind != "list" else "[]", None, ""
    opening, closing = _BRACKETS[recipe.kind]
    return opening, items, f",{closing}" if recipe.kind == "tuple" and len(items) == 1 else closing
