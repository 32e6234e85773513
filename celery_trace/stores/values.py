"""
The searchable values of a failure: its plain values as one short text.

The values were redacted before they left the process, so this text has no more than the capture. A token index would
be faster over millions of failures, at about sixty rows for each; one row of at most :data:`MOST_CHARACTERS` keeps a
write cheap, and a search reads the newest few thousand rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from celery_trace.model import Capture, Failure, Node

MOST_CHARACTERS = 2000
MOST_OF_A_VALUE = 120
#: Most values that are read, so that a capture of thousands costs no more than one of dozens.
MOST_VALUES = 400
#: How deep below a local: ``order.customer.email`` is two.
MOST_DEPTH = 3

#: Common values that are not worth searching for.
_DULL = frozenset({"None", "True", "False", "0", "1", "", "-1"})


def searchable(failure: Failure) -> str:
    """
    ``name=value`` lines, lower case: messages, arguments, the request, then locals from the innermost frame outwards.

    The locals of a frame come before the values inside them; equal lines appear once.
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
    A failure's text as a difference to a common text: the numbers of the lines that it lacks, then its other lines.

    The failure's row says whether its stored text is such a difference (``shared``).
    """
    mine, theirs = text.split("\n"), common.split("\n")
    here, there = set(mine), set(theirs)
    missing = ",".join(str(number) for number, line in enumerate(theirs) if line not in here)
    return "\n".join([missing, *(line for line in mine if line not in there)])


class Search:
    """
    A search in the texts.

    Args:
        search: The text as typed.
    """

    def __init__(self, search: str) -> None:
        #: Texts, any of which has to be found.
        self.patterns = sorted({search.lower(), pattern_text(search)})

    def finds(self, text: str) -> bool:
        """Whether a whole text matches."""
        return any(pattern in text for pattern in self.patterns)

    def lines_of(self, common: str) -> set[int]:
        """The numbers of a shared text's matching lines."""
        return {number for number, line in enumerate(common.split("\n")) if self.finds(line)}

    def finds_in_difference(self, text: str, lines: set[int]) -> bool:
        """Whether a failure matches that is stored as a difference to a text with these matching lines."""
        missing, _, own = text.partition("\n")
        if self.finds(own):
            return True
        return bool(lines) and not lines <= set(map(int, filter(None, missing.split(","))))


def pattern_text(search: str) -> str:
    """A typed search in the form of the lines: ``Order_ID = 7`` finds ``order_id=7``."""
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
    # Breadth first, so that all locals come before their parts.
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
    # A line feed would make one value look like two.
    text = value[:MOST_OF_A_VALUE].lower().replace("\n", " ")
    return f"{name[:60].lower()}={text}" if name else text
