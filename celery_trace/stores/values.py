"""
What a search finds in a failure beside its exception: the plain values that it held, as one short text.

The values were redacted before they left the process, so this text holds no more than the capture does. A token
index would answer faster over millions of failures, at some sixty rows for each; one row of at most
:data:`MOST_CHARACTERS` keeps a write cheap, and a search reads the newest few thousand of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from celery_trace.model import Capture, Failure, Node

MOST_CHARACTERS = 2000
MOST_OF_A_VALUE = 120
#: Values looked at, so that a capture of thousands costs no more than one of dozens.
MOST_VALUES = 400
#: How deep below a local: ``order.customer.email`` is two.
MOST_DEPTH = 3

#: Values that nobody searches for and every capture is full of.
_DULL = frozenset({"None", "True", "False", "0", "1", "", "-1"})


def searchable(failure: Failure) -> str:
    """
    ``name=value`` lines, lower case: messages, arguments, the request, then locals from the innermost frame outwards.

    What stands at the top of a frame comes before what hangs below it; equal lines stand once.
    """
    found: dict[str, None] = {}
    length = 0
    for line in _lines(failure):
        if line in found:
            continue
        length += len(line) + 1
        if length > MOST_CHARACTERS:
            break
        found[line] = None
    return "\n".join(found)


def difference(text: str, common: str) -> str:
    """
    A failure's text by that of another one: which of its lines are missing here, by number, then the lines beside them.

    Whether a stored text is such a difference stands in the failure's row (``shared``).
    """
    mine, theirs = text.split("\n"), common.split("\n")
    here, there = set(mine), set(theirs)
    missing = ",".join(str(number) for number, line in enumerate(theirs) if line not in here)
    return "\n".join([missing, *(line for line in mine if line not in there)])


class Search:
    """
    What somebody looks for in the texts.

    Args:
        search: As it was typed.
    """

    def __init__(self, search: str) -> None:
        #: Texts of which any has to be found.
        self.patterns = sorted({search.lower(), pattern_text(search)})

    def finds(self, text: str) -> bool:
        """Whether a whole text has it."""
        return any(pattern in text for pattern in self.patterns)

    def lines_of(self, common: str) -> set[int]:
        """The lines of a shared text that have it, by number."""
        return {number for number, line in enumerate(common.split("\n")) if self.finds(line)}

    def finds_in_difference(self, text: str, lines: set[int]) -> bool:
        """Whether a failure has it whose text is a difference to one in which these lines have it."""
        missing, _, own = text.partition("\n")
        if self.finds(own):
            return True
        return bool(lines) and not lines <= set(map(int, filter(None, missing.split(","))))


def pattern_text(search: str) -> str:
    """What somebody typed, in the form of the lines: ``Order_ID = 7`` finds ``order_id=7``."""
    name, sign, value = search.strip().lower().partition("=")
    return f"{name.rstrip()}={value.lstrip()}" if sign else name


def _lines(failure: Failure) -> Iterator[str]:
    capture = failure.capture
    if failure.request is not None:
        request = failure.request
        yield from (_line("path", request.path), _line("user", request.user))
        for values in (request.get, request.post):
            yield from (_line(name, value) for name, given in values.items() for value in given)
    if capture is None:
        if failure.traceback_text:
            yield _line("", failure.traceback_text.strip().rpartition("\n")[2])
        return
    for raised in capture.exceptions:
        yield _line("", raised.message)
    yield from _values(capture)


def _values(capture: Capture) -> Iterator[str]:
    # Breadth first, so that the locals themselves stand before the parts of any of them.
    waiting: deque[tuple[str, int, int]] = deque()
    for name, ref in (("args", capture.args), ("kwargs", capture.kwargs)):
        node = _node(capture, ref)
        if node is not None:
            waiting.extend(_parts(capture, name, node, 0))
    for raised in capture.exceptions:
        waiting.extend((attribute.name, attribute.ref, 0) for attribute in raised.attributes)
        for frame in raised.frames:
            if frame.in_app:
                waiting.extend((local.name, local.ref, 0) for local in frame.locals)
    seen: set[int] = set()
    looked = 0
    while waiting and looked < MOST_VALUES:
        name, ref, depth = waiting.popleft()
        node = _node(capture, ref)
        if node is None:
            continue
        looked += 1
        if node.kind in ("plain", "text"):
            text = str(node.value)
            if text not in _DULL:
                yield _line(name, text)
        elif ref not in seen and depth < MOST_DEPTH:
            seen.add(ref)
            waiting.extend(_parts(capture, name, node, depth + 1))


def _node(capture: Capture, ref: int) -> Node | None:
    return capture.heap[ref] if 0 <= ref < len(capture.heap) else None


def _parts(capture: Capture, name: str, node: Node, depth: int) -> Iterator[tuple[str, int, int]]:
    if node.kind == "dict":
        for key, value in zip(node.items[::2], node.items[1::2], strict=False):
            named = _node(capture, key)
            known = named is not None and named.kind in ("plain", "text")
            yield str(named.value) if known and named is not None else name, value, depth
    elif node.kind == "object":
        yield from ((part, ref, depth) for part, ref in zip(node.names, node.items, strict=False))
    elif node.kind != "redacted":
        yield from ((name, ref, depth) for ref in node.items)


def _line(name: str, value: str) -> str:
    # A line feed would let one value look like two.
    text = value[:MOST_OF_A_VALUE].lower().replace("\n", " ")
    return f"{name[:60].lower()}={text}" if name else text
