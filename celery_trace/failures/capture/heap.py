"""
Encodes values as a table of nodes, within limits, without running any of the user's code.

The cost is bounded for any object: nodes, depth, items of a container, characters of a text and bytes in all. Objects
are followed breadth first and iteratively, so a structure ten thousand levels deep is no problem. An object seen twice
is one node, so cycles and sharing are kept. What is left out is counted at its place, with the true size.

The dispatch is on exact types; :mod:`celery_trace.failures.capture.shapes` opens the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, TypedDict, TypeGuard, TypeVar, Unpack

from celery_trace.failures.capture.anatomy import type_name
from celery_trace.failures.capture.names import Names, are_parted
from celery_trace.failures.capture.pairs import (
    attribute_refs,
    dict_refs,
    has_options,
    is_uninformative,
    options_masked,
    two_refs,
)
from celery_trace.failures.capture.scrubbing import hide_open_keys, scrub_nodes, secrets_in, texts_of_nodes
from celery_trace.failures.capture.texts import BEYOND, as_name, cleaned, length_of_json
from celery_trace.model import Node, Variable
from celery_trace.redaction import Redactor, Scrubber, is_card_number, pem
from celery_trace.settings import Limits

#: Opens one object; returns its node. Called only while there is room.
Shape = Callable[["HeapEncoder", Any, int], Node]
#: Makes the node of a value without parts, such as a date.
Leaf = Callable[["HeapEncoder", Any], Node]
_T = TypeVar("_T")

_NODE_BYTES = 48  # brackets, quotes, commas, the kind and the numbers of a node; an upper bound
_LEAF_BYTES = _NODE_BYTES + 20
_REF_BYTES = 8
_NAME_BYTES = 60  # reserved for a type's name
_RESERVED_BYTES = _NODE_BYTES + 16  # reserved when a value is entered, so that at least its type fits
_ROOMY_BYTES = 256
_SHORT = 8  # characters; shorter texts match no pattern of a secret
SMALL = 1_000_000_000_000  # a number of fewer digits is not a card number
_INT64 = 1 << 63

#: Shared by nodes without items, so that a capture of a thousand leaves does not make two thousand lists for the
#: garbage collector. A node's lists are never changed.
NO_ITEMS: list[int] = []
NO_NAMES: list[str] = []

NONE = Node("NoneType", "plain", None)
TRUE = Node("bool", "plain", True)
FALSE = Node("bool", "plain", False)

#: Containers without items, which need not wait to be opened.
_EMPTY: dict[type, Node] = {
    dict: Node("dict", "dict", None, NO_ITEMS, NO_NAMES, 0),
    list: Node("list", "list", None, NO_ITEMS, NO_NAMES, 0),
    tuple: Node("tuple", "tuple", None, NO_ITEMS, NO_NAMES, 0),
}


class Remarks(TypedDict, total=False):
    """Remarks on a node's value; fields of :class:`celery_trace.model.Node`."""

    form: str
    note: str


class HeapEncoder:
    """
    One capture's heap under construction.

    Args:
        limits: What may be kept. ``nodes`` and ``bytes`` hold for the whole heap.
        redactor: Decides what is secret.
        scrubber: Collects what was redacted by name, to remove it from all other texts at the end.
        shape_of: Returns the function that opens an object that is not a leaf.
        leaves: By the address of an exact type, the function that makes its node.
        names: The cache of names, shared with other captures.
    """

    def __init__(
        self,
        limits: Limits,
        redactor: Redactor,
        scrubber: Scrubber,
        shape_of: Callable[[type], Shape],
        leaves: dict[int, Leaf],
        names: Names | None = None,
    ) -> None:
        self.limits = limits
        self.redactor = redactor
        self.scrubber = scrubber
        # None reserves the place of a value that is not opened yet.
        self.nodes: list[Node | None] = []
        self.pending: deque[tuple[int, object, int]] = deque()
        self.bytes_left = limits.bytes
        self.cut_values = 0
        self.redacted_values = 0
        self._most_nodes = limits.nodes
        self._most_depth = limits.depth
        self._breadth = limits.breadth
        self._shape_of = shape_of
        self._leaves = leaves
        self._refs: dict[int, int] = {}
        self._texts: dict[str, int] = {}
        self._numbers: dict[int, int] = {}
        # Nodes with names, notes or long texts: where a learned secret of some length can be.
        self._uncommon: list[Node] = []
        self._alive: list[object] = []  # an address identifies an object only while it lives
        self.names = names if names is not None else Names(redactor)
        # Rows of one table have the same keys: by the keys' addresses, a node's items.
        self._plain_keys: dict[tuple[int, ...], list[int]] = {}
        self._holds_open_key = False
        #: Secrets that were recognised by name only.
        self.learned_by_name = 0

    @property
    def nodes_left(self) -> int:
        """How many more values may be entered."""
        return self._most_nodes - len(self.nodes)

    def has_room_for(self, count: int) -> bool:
        """Whether that many values, and at least the bytes of their names, are sure to fit."""
        return count <= self.nodes_left and count * _ROOMY_BYTES <= self.bytes_left

    # --- entering values. The loop is written out: most of a capture's time is spent here.

    def visit(self, value: object, depth: int) -> int:
        """The ref of a value: a leaf is encoded at once, others are queued. -1: no room."""
        known = self._refs.get(id(value))
        if known is None:
            refs = self.refs_of((value,), depth)
            return refs[0] if refs else -1
        return known

    def refs_of(self, values: Sequence[Any], depth: int) -> list[int]:
        """
        Refs of a row of values, as many as fit.

        Short texts and small numbers are shared by value, everything else by identity.

        Args:
            values: A tuple, or a list that no other code changes.
            depth: Their depth.
        """
        known, texts, numbers, nodes = self._refs, self._texts, self._numbers, self.nodes
        refs: list[int] = []
        add = refs.append
        self._alive += values
        most_nodes, bytes_left = self._most_nodes, self.bytes_left
        least, most = -SMALL, SMALL
        for value in values:
            cls = type(value)
            if cls is str and len(value) < _SHORT:
                ref = texts.get(value)
                if ref is None:
                    ref = len(nodes)
                    if ref >= most_nodes or bytes_left <= 0:
                        break
                    if value.isascii() and value.isprintable():
                        bytes_left -= _LEAF_BYTES
                        nodes.append(Node("str", "plain", value, NO_ITEMS, NO_NAMES))
                    else:
                        self.bytes_left = bytes_left
                        nodes.append(self.text_node("str", "plain", value))
                        bytes_left = self.bytes_left
                    texts[value] = ref
            elif cls is int and least < value < most:
                ref = numbers.get(value)
                if ref is None:
                    ref = len(nodes)
                    if ref >= most_nodes or bytes_left <= 0:
                        break
                    bytes_left -= _LEAF_BYTES
                    nodes.append(Node("int", "plain", value, NO_ITEMS, NO_NAMES))
                    numbers[value] = ref
            else:
                address = id(value)
                ref = known.get(address)
                if ref is None:
                    ref = len(nodes)
                    if ref >= most_nodes or bytes_left <= 0:
                        break
                    if (cls is dict or cls is list or cls is tuple) and depth < self._most_depth:
                        bytes_left -= _RESERVED_BYTES
                        if value:
                            nodes.append(None)
                            self.pending.append((ref, value, depth))
                        else:
                            nodes.append(_EMPTY[cls])
                    elif value is None:
                        bytes_left -= _NODE_BYTES + 8
                        nodes.append(NONE)
                    elif cls is float and value - value == 0.0:
                        bytes_left -= 64
                        nodes.append(Node("float", "plain", value, NO_ITEMS, NO_NAMES))
                    else:
                        self.bytes_left = bytes_left
                        nodes.append(self._uncommon_node(value, cls, ref, depth))
                        bytes_left = self.bytes_left
                    known[address] = ref
            add(ref)
        self.bytes_left = bytes_left
        return refs

    def keep(self, value: _T) -> _T:
        """Keep an object of this capture alive, so that its address is not reused."""
        self._alive.append(value)
        return value

    def placeholder(self, ref: int) -> object:
        """A placeholder in a row for a value that has its node already, such as a secret."""
        placeholder = self.keep(object())
        self._refs[id(placeholder)] = ref
        return placeholder

    def masked(self, named: Iterable[tuple[str | None, object]]) -> list[object]:
        """The values of a row with names; secret ones are replaced by placeholders."""
        is_secret = self.redactor.is_secret_name
        return [
            self.placeholder(self.secret(value)) if name and is_secret(name) and not is_uninformative(value) else value
            for name, value in named
        ]

    def _uncommon_node(self, value: Any, cls: type, ref: int, depth: int) -> Node | None:
        """The node of a less common value, which is searched for secrets later; None if it is queued."""
        if cls is str:
            node = self.text_node("str", "plain", value)
        elif cls is bool:
            self.bytes_left -= _NODE_BYTES + 8
            return TRUE if value else FALSE
        elif cls is int:
            node = self.integer("int", value)
        elif leaf := self._leaves.get(id(cls)):
            node = leaf(self, value)
        else:
            self.bytes_left -= _RESERVED_BYTES + _NAME_BYTES
            if depth < self._most_depth:
                self.pending.append((ref, value, depth))
                return None
            self.cut_values += 1
            node = _absent(value, "too deep")
        self._uncommon.append(node)
        return node

    def member(self, name: str, value: object, depth: int) -> int:
        """Like :meth:`visit`, for a value with a name: a secret one is redacted."""
        if self.redactor.is_secret_name(name) and not is_uninformative(value):
            return self.secret(value)
        return self.visit(value, depth)

    def variables(self, named: Iterable[tuple[str, object]], depth: int = 0) -> list[Variable]:
        """Named values in order; those that do not fit have ref -1."""
        return [Variable(self.name(name), self.member(name, value, depth)) for name, value in named]

    def row(self, values: Sequence[object], names: Sequence[str]) -> int:
        """Positional arguments, opened at once; ``names`` are those of the first ones, to find secrets."""
        kind = "tuple" if type(values) is tuple else "list"
        self.bytes_left -= _NODE_BYTES + 8
        ref = len(self.nodes)
        self.nodes.append(None)
        refs: list[int] = []
        shown = values[: self.limits.breadth]
        if shown and has_options(shown):
            shown = options_masked(self, shown)
        for place, value in enumerate(shown):
            child = self.member(names[place], value, 1) if place < len(names) else self.visit(value, 1)
            if child < 0:
                break
            refs.append(child)
            self.bytes_left -= _REF_BYTES
        cut = len(values) - len(refs)
        self.cut_values += cut
        self.nodes[ref] = Node(kind, kind, None, refs, length=len(values), cut=cut)
        return ref

    def secret(self, value: object) -> int:
        """A node with only the type of the secret; the scrubber gets the secret itself."""
        self.learn(value)
        if self.nodes_left <= 0 or self.bytes_left <= 0:
            return -1
        self.redacted_values += 1
        name = type_name(type(value))
        self.bytes_left -= _NODE_BYTES + len(name)
        self.nodes.append(Node(name, "redacted"))
        return len(self.nodes) - 1

    def learn(self, value: object) -> None:
        """Remember the texts and numbers in a secret value."""
        known = len(self.scrubber)
        for secret in secrets_in(value, self.limits.string):
            self.scrubber.learn(secret)
        self.learned_by_name += len(self.scrubber) - known

    def learn_from(self, text: str, kept: str) -> None:
        """Remember what was redacted in a text, and the lines of a private key, which may occur separately."""
        window = text[: self.limits.string + BEYOND]
        for secret in self.redactor.secrets_in(window):
            if len(secret) <= self.limits.string:
                self.scrubber.learn(secret)
        if "PRIVATE KEY" in kept:
            self._holds_open_key = self._holds_open_key or pem.is_open(kept)
            for piece in pem.pieces_of(window):
                self.scrubber.learn(piece)

    # --- opening them

    def open_pending(self, *, nodes: int, bytes: int) -> None:
        """Open queued values, oldest first, with at most so many more ``nodes`` and ``bytes``."""
        least_nodes = max(0, self.nodes_left - nodes)
        least_bytes = max(0, self.bytes_left - bytes)
        most_nodes = self._most_nodes - least_nodes
        pending, kept, breadth = self.pending, self.nodes, self._breadth
        while pending and len(kept) < most_nodes and self.bytes_left > least_bytes:
            ref, value, depth = pending.popleft()
            if type(value) is list or type(value) is tuple:
                # A copy of a list, as another thread may change it; a short tuple itself.
                row: Sequence[object] = value[:breadth]
                length = max(len(value), len(row))
                if length == 2 and len(row) == 2 and self._is_secret_pair(row):
                    kept[ref] = self._open(row, depth)  # neither names nor notes in it
                    continue
                if row and type(row[0]) is str and has_options(row):
                    row = options_masked(self, row)
                refs = self.refs_of(row, depth + 1)
                count = len(refs)
                cut = length - count
                if cut:
                    self.cut_values += cut
                self.bytes_left -= _REF_BYTES * count
                kind = "list" if type(value) is list else "tuple"
                kept[ref] = Node(kind, kind, None, refs, NO_NAMES, length, cut)
            elif type(value) is dict:
                self._open_dicts(ref, value, depth, most_nodes, least_bytes)
            else:
                node = kept[ref] = self._open(value, depth)
                self._uncommon.append(node)
                if len(node.type) > _NAME_BYTES:
                    self.bytes_left -= len(node.type)

    def _is_secret_pair(self, value: Sequence[object]) -> bool:
        """Two items can be a name and its value, as in a list of headers."""
        name = as_name(value[0])
        return name is not None and self.redactor.is_secret_name(name)

    def _open_dicts(self, ref: int, value: dict[object, object], depth: int, most_nodes: int, least_bytes: int) -> None:
        """
        An exact dictionary, and the next ones in the queue with the same keys: the rows of a table.

        Their values are entered together, which takes half the time; most of a capture's values are such rows.
        """
        nodes = self.nodes
        try:
            if len(value) > self._breadth:
                nodes[ref] = self.mapping("dict", value, depth + 1)
                return
            row = list(value.values())  # before the keys: if these are unchanged, so is the dictionary
            keys = list(value)
            addresses = tuple(map(id, keys))
            count = len(addresses)
            key_refs = self._plain_keys.get(addresses)
            if key_refs is None:
                node = nodes[ref] = self.mapping("dict", value, depth + 1)
                if not node.cut:
                    self._remember_keys(addresses, keys, depth + 1)
                return
            if len(row) != count:
                raise RuntimeError("between its values and its keys")
        except (RuntimeError, ValueError) as error:
            nodes[ref] = _changed(dict, error)
            return
        opened = [ref]
        # As many as are sure to fit, so that one table does not use up the others' share.
        most = min((most_nodes - len(nodes)) // count, (self.bytes_left - least_bytes) // (count * _ROOMY_BYTES), 32)
        pending = self.pending
        while len(opened) < most and pending:
            ref, other, level = pending[0]
            if type(other) is not dict or len(other) != count or level != depth:
                break
            try:
                more = list(other.values())
                if tuple(map(id, other)) != addresses or len(more) != count:
                    break
            except RuntimeError:
                break  # another thread changes it: it is marked when it is opened
            row += more
            pending.popleft()
            opened.append(ref)
        refs = self.refs_of(row, depth + 1)
        self.bytes_left -= 2 * _REF_BYTES * len(refs)
        start = 0
        for ref in opened:
            items = key_refs.copy()
            if start + count <= len(refs):
                items[1::2] = refs[start : start + count]
                nodes[ref] = Node("dict", "dict", None, items, NO_NAMES, count)
            else:
                part = refs[start : start + count]
                del items[2 * len(part) :]
                items[1::2] = part
                cut = count - len(part)
                self.cut_values += cut
                nodes[ref] = Node("dict", "dict", None, items, NO_NAMES, count, cut)
            start += count

    def _remember_keys(self, addresses: tuple[int, ...], keys: list[object], depth: int) -> None:
        """By the keys that were read: the dictionary may have others by now."""
        is_secret = self.redactor.known.get
        for key in keys:
            if type(key) is not str or is_secret(key) is not False:
                return
        if not keys or are_parted(keys):
            return
        refs = self.refs_of(keys, depth)
        if len(refs) == len(keys):
            items = refs * 2
            items[::2] = refs
            self._plain_keys[addresses] = items

    def _open(self, value: object, depth: int) -> Node:
        cls = type(value)
        try:
            return self._shape_of(cls)(self, value, depth + 1)
        except RuntimeError as error:
            return _changed(cls, error)
        except Exception as error:
            # The type keeps its parts elsewhere: show it as opaque and keep the capture.
            return Node(type_name(cls), "opaque", note=f"unreadable: {type(error).__name__}")

    def give_up(self, pending: Iterable[tuple[int, object, int]]) -> None:
        """Mark what is never opened as absent, with its length."""
        for ref, value, _ in pending:
            self.nodes[ref] = _absent(value)
            self.cut_values += 1

    # --- what shapes are built of

    def items(self, iterator: Iterable[object], depth: int) -> list[int]:
        """Refs of the first items, as many as breadth and room allow."""
        row: Sequence[object] = list(islice(iterator, self._breadth))
        if row and has_options(row):
            row = options_masked(self, row)
        refs = self.refs_of(row, depth)
        self.bytes_left -= _REF_BYTES * len(refs)
        return refs

    def sequence(
        self, cls_name: str, kind: str, length: int, items: Iterator[object], depth: int, **more: Unpack[Remarks]
    ) -> Node:
        """A node for something with items in a row."""
        pair = length == 2 and kind in ("list", "tuple")
        refs = two_refs(self, items, depth) if pair else self.items(items, depth)
        if pair:
            self.bytes_left -= _REF_BYTES * len(refs)
        cut = max(0, length - len(refs))
        self.cut_values += cut
        return Node(cls_name, kind, None, refs, NO_NAMES, length, cut, **more)

    def mapping(self, cls_name: str, own: dict[object, object], depth: int, **more: Unpack[Remarks]) -> Node:
        """A node for a dictionary or a subclass of it, read by dict's own methods."""
        length = dict.__len__(own)
        refs = dict_refs(self, own, depth)
        self.bytes_left -= _REF_BYTES * len(refs)
        cut = length - len(refs) // 2
        self.cut_values += cut
        return Node(cls_name, "dict", None, refs, NO_NAMES, length, cut, **more)

    def attributes(
        self,
        cls_name: str,
        named: list[tuple[str, object]],
        depth: int,
        *,
        value: str | None = None,
        **more: Unpack[Remarks],
    ) -> Node:
        """A node for an object with named parts."""
        plain = self.names.plain([name for name, _ in named]) if len(named) <= self._breadth else None
        if plain is not None:
            refs = self.refs_of([part for _, part in named], depth)
            names = plain.names if len(refs) == len(named) else plain.names[: len(refs)]
            self.bytes_left -= 2 * plain.characters + 3 * len(refs)
        else:
            names, refs = attribute_refs(self, named, depth)
        self.bytes_left -= _REF_BYTES * len(refs)
        cut = len(named) - len(refs)
        self.cut_values += cut
        if value is not None:
            value = cleaned(value, self.limits.string, self.redactor)[0]
            self.bytes_left -= length_of_json(value)
        for extra in more.values():
            if type(extra) is str:
                self.bytes_left -= length_of_json(extra)
        return Node(cls_name, "object", value, refs, names, cut=cut, **more)

    def name(self, name: str) -> str:
        """A name as it may be shown. Its bytes are for the caller to count."""
        shown = self.names.shown(name)
        if not shown.isascii() or not shown.isprintable():
            self.bytes_left -= 6 * len(shown)  # more than the callers have reserved
        return shown

    # --- texts and numbers

    def text_node(
        self, cls_name: str, kind: str, text: str, *, length: int = -1, cut: int = 0, **more: Unpack[Remarks]
    ) -> Node:
        """
        A node with a text, redacted and cut.

        ``length`` and ``cut`` are given when ``text`` is only a part of what there was.
        """
        whole = len(text) if length < 0 else length
        kept, left_out = cleaned(text, self.limits.string, self.redactor)
        if kept is not text or kept.startswith("-----BEGIN "):
            self.learn_from(text, kept)
        cut += left_out
        size = length_of_json(kept)
        room = self.bytes_left - _NODE_BYTES - len(cls_name)
        if size > room:
            short = kept[: max(0, room // 6)]
            cut += len(kept) - len(short)
            kept = short
            size = length_of_json(kept)
        self.bytes_left -= size + _NODE_BYTES + len(cls_name)
        for extra in more.values():
            if type(extra) is str:
                self.bytes_left -= length_of_json(extra)
        if cut:
            self.cut_values += 1
            length = whole
        return Node(cls_name, kind, kept, NO_ITEMS, NO_NAMES, length, cut, **more)

    def short_text(self, cls_name: str, text: str) -> Node:
        """A short ASCII text from the interpreter, such as a date: it holds no secret."""
        self.bytes_left -= _NODE_BYTES + len(cls_name) + len(text)
        return Node(cls_name, "text", text, NO_ITEMS, NO_NAMES)

    def integer(self, cls_name: str, number: int) -> Node:
        """Numbers over 64 bits become text: JSON readers of other languages lose their digits."""
        if -_INT64 <= number < _INT64:
            if number > 1_999_999_999_999 and is_card_number(number):
                self.redacted_values += 1
                self.bytes_left -= _NODE_BYTES + len(cls_name)
                return Node(cls_name, "redacted")
            self.bytes_left -= _NODE_BYTES + len(cls_name) + 20
            return Node(cls_name, "plain", number, NO_ITEMS, NO_NAMES)
        bits = int.bit_length(number)
        if bits <= 4096:
            return self.text_node(cls_name, "text", str(number))
        sign = "-" if number < 0 else ""
        head = f"{sign}{hex(abs(number) >> (bits - 256))}…"
        return self.text_node(cls_name, "text", head, length=bits, cut=bits - 256, note="bits")

    # --- the end

    def finish(self) -> list[Node]:
        """The table, with all collected secrets removed from all texts."""
        self.give_up(self.pending)
        self.pending.clear()
        self._alive.clear()
        self._refs.clear()
        self._texts.clear()
        self._numbers.clear()
        nodes = [node if node is not None else _LOST for node in self.nodes]
        if self._holds_open_key:
            self.redacted_values += hide_open_keys(nodes, self.scrubber)
        if self.scrubber:
            # Everything that is entered at once is a number or a text of fewer characters.
            suspects = nodes if self.scrubber.has_short_or_digits(_SHORT) else self._uncommon
            if self.scrubber.may_be_in(texts_of_nodes(suspects)):
                changed, self.bytes_left = scrub_nodes(nodes, self.scrubber, self.bytes_left)
                self.redacted_values += changed
        return nodes


def _changed(cls: type, error: Exception) -> Node:
    """Another thread changed a container while it was read: the value is marked."""
    return Node(type_name(cls), "opaque", note=f"changed while read: {error}"[:80])


def _absent(value: object, note: str = "") -> Node:
    length = len(value) if _is_sized(value) else -1
    return Node(type_name(type(value))[:_NAME_BYTES], "absent", length=length, note=note)


def _is_sized(value: object) -> TypeGuard[Sized]:
    return any(type(value) is builtin for builtin in _SIZED)


#: For a place that was reserved and never filled. That should not happen, but a reader must not find a hole.
_LOST = Node("", "absent")
_SIZED: tuple[type, ...] = (dict, list, tuple, set, frozenset, deque)
