"""Captures a traceback or a running frame: positions, source lines, locals."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from types import FrameType, FunctionType, ModuleType, TracebackType
from typing import Literal, NamedTuple

from celery_trace.failures.capture.heap import HeapEncoder
from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.failures.capture.texts import encodable
from celery_trace.model import Frame, Variable
from celery_trace.process import frame_locals
from celery_trace.text.code_owner import CodeOwner

#: Which locals of a frame must not be shown.
Hidden = tuple[str, ...] | Literal["__ALL__"]

#: Frames kept of one exception, after folding; the middle is left out.
MOST_FRAMES = 60
#: Longest cycle of calls that is folded.
_LONGEST_CYCLE = 8
#: Locals kept of one frame.
MOST_LOCALS = 100

#: Frames that call the task: their locals are Celery's, and repeat the arguments.
_MACHINERY = ("celery.app.trace", "celery.app.task", "billiard.", "celery.concurrency.", "celery.worker.")


class FramePlace(NamedTuple):
    """One entry of a traceback: a frame, and where it was when the exception passed."""

    frame: FrameType
    line: int
    instruction: int
    folded: int = 0


def places_of(traceback: TracebackType | None) -> list[FramePlace]:
    """A traceback's entries, innermost first; read by C fields only."""
    places: list[FramePlace] = []
    while type(traceback) is TracebackType:
        places.append(FramePlace(traceback.tb_frame, traceback.tb_lineno, traceback.tb_lasti))
        traceback = traceback.tb_next
    places.reverse()
    return places


def places_of_stack(frame: FrameType | None, outermost: str = "") -> list[FramePlace]:
    """A running frame and its callers, innermost first, up to the function of the name ``outermost``."""
    places: list[FramePlace] = []
    while frame is not None:
        places.append(FramePlace(frame, frame.f_lineno or 0, frame.f_lasti))
        if frame.f_code.co_name == outermost:
            break
        frame = frame.f_back
    return places


def folded(places: list[FramePlace]) -> list[FramePlace]:
    """
    Fold recursion: a cycle of calls that repeats more than three times keeps its first and its last turn.

    ``folded`` of the place before the gap is the number of places left out.
    """
    if len(places) < 8:
        return places
    keys = [(id(place.frame.f_code), place.line) for place in places]
    if len(set(keys)) > len(keys) - 3:
        return places
    kept: list[FramePlace] = []
    at, end = 0, len(places)
    while at < end:
        for cycle in range(1, min(_LONGEST_CYCLE, (end - at) // 4) + 1):
            stop = at + cycle
            while stop < end and keys[stop] == keys[stop - cycle]:
                stop += 1
            turns = (stop - at) // cycle
            if turns > 3:
                kept += places[at : at + cycle]
                kept[-1] = kept[-1]._replace(folded=(turns - 2) * cycle)
                kept += places[at + (turns - 1) * cycle : at + turns * cycle]
                at += turns * cycle
                break
        else:
            kept.append(places[at])
            at += 1
    return kept


def without_middle(places: list[FramePlace], most: int) -> tuple[list[FramePlace], int]:
    """At most ``most`` places, two thirds of them from the innermost end, and how many were left out."""
    if len(places) <= most:
        return places, 0
    inner = most * 2 // 3
    return places[:inner] + places[len(places) - (most - inner) :], len(places) - most


def locals_of(frame: FrameType) -> dict[str, object]:
    """
    A copy of the frame's locals: Celery clears the frame right after the signal.

    Empty if the namespace is an object of the user's, as in a class body with ``__prepare__``.
    """
    namespace = frame_locals.locals_of(frame)
    if type(namespace) is not dict and type(namespace).__name__ != "FrameLocalsProxy":
        return {}
    try:
        return dict(namespace)
    except RuntimeError:  # another thread has changed the module's globals
        return {}


def _width(text: str) -> int:
    """An upper bound of the bytes that a text takes as JSON."""
    return len(text) if text.isascii() and text.isprintable() else 6 * len(text)


def _is_definition(value: object) -> bool:
    cls = type(value)  # compared by identity: a metaclass may define equality
    return cls is FunctionType or cls is ModuleType or cls is type


class FrameEncoder:
    """Encodes the frames of one capture into its heap."""

    def __init__(self, heap: HeapEncoder, source: SourceLines, owner: CodeOwner) -> None:
        self._heap = heap
        self._source = source
        self._owner = owner
        self.waiting: list[deque[tuple[int, object, int]]] = []

    def encode(self, places: Iterable[FramePlace], hidden: Mapping[int, Hidden] | None = None) -> list[Frame]:
        """
        The frames in the given order, as many as fit.

        The values inside their locals are opened later, by :func:`open_fairly`.

        Args:
            places: The frames' positions, innermost first.
            hidden: By the address of a frame, which of its locals must not be shown: names, or ``"__ALL__"``.
        """
        frames: list[Frame] = []
        for place in places:
            frame = self._frame(place, hidden)
            if frame is None:
                break
            frames.append(frame)
        return frames

    def _frame(self, place: FramePlace, hidden: Mapping[int, Hidden] | None) -> Frame | None:
        heap = self._heap
        frame = place.frame
        code = frame.f_code
        name = frame.f_globals.get("__name__")
        module = encodable(name) if type(name) is str else ""
        file = encodable(code.co_filename)
        in_app = self._owner(file, module)
        line_code, start, context, stale, size = self._source.around(file, place.line, self._source.changed_at_s(file))
        if heap.bytes_left < heap.limits.bytes // 2:
            context, start = [], 0  # the locals matter more than the lines, which are in the source
        size += 320 + _width(file) + 2 * _width(code.co_qualname) + _width(module)
        if size > heap.bytes_left:
            return None
        heap.bytes_left -= size
        note = ""
        variables: list[Variable] = []
        cut = 0
        if not in_app and module.startswith(_MACHINERY):
            note = "locals of Celery's own frame are left out"
        else:
            heap.pending = deque()
            variables, cut = self._locals(place, (hidden or {}).get(id(frame)))
            self.waiting.append(heap.pending)
        return Frame(
            file=file,
            line=place.line,
            function=code.co_name,
            qualname=code.co_qualname,
            module=module,
            code=line_code,
            context_start=start,
            context=context,
            columns=self._source.columns(code, place.line, place.instruction),
            in_app=in_app,
            locals=variables,
            locals_cut=cut,
            folded=place.folded,
            stale=stale,
            note=note,
        )

    def _locals(self, place: FramePlace, hidden: Hidden | None) -> tuple[list[Variable], int]:
        heap = self._heap
        own = locals_of(place.frame)
        at_module_level = place.frame.f_code.co_name == "<module>"
        if hidden is None and not at_module_level and len(own) <= MOST_LOCALS:
            plain = heap.names.plain(tuple(own))
            if plain is not None:
                refs = heap.refs_of(list(own.values()), 0)
                refs += [-1] * (len(own) - len(refs))
                heap.bytes_left -= 12 * len(refs) + 6 * plain.characters
                return list(map(Variable, plain.names, refs)), 0
        variables: list[Variable] = []
        shown = 0
        for name, value in own.items():
            if type(name) is not str or (at_module_level and (name.startswith("__") or _is_definition(value))):
                continue  # a module's own functions and imports don't explain the failure
            if shown >= MOST_LOCALS:
                break
            shown += 1
            if hidden is not None and (hidden == "__ALL__" or name in hidden):
                ref = heap.secret(value)
            else:
                ref = heap.member(name, value, 0)
            variables.append(Variable(heap.name(name), ref))
        cut = max(0, len(own) - shown) if not at_module_level else 0
        heap.cut_values += cut
        heap.bytes_left -= sum(12 + 6 * len(variable.name) for variable in variables)
        return variables, cut


def open_fairly(heap: HeapEncoder, waiting: list[deque[tuple[int, object, int]]]) -> None:
    """
    Open the frames' values: the innermost first, but each gets a share.

    First round: each frame may spend twice its equal share of what is left. Second round: what
    remains goes to the innermost that still need it.
    """
    for place, pending in enumerate(waiting):
        if pending:
            rest = len(waiting) - place
            heap.pending = pending
            heap.open_pending(nodes=max(8, 2 * heap.nodes_left // (rest + 1)), bytes=2 * heap.bytes_left // (rest + 1))
    for pending in waiting:
        if pending:
            heap.pending = pending
            heap.open_pending(nodes=heap.nodes_left, bytes=heap.bytes_left)
    for pending in waiting:
        heap.give_up(pending)
        pending.clear()
    heap.pending = deque()
