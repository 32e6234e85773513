"""A failure's frames and values, after redaction."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Line(Struct, frozen=True):
    """One line of source that was being executed. ``file`` is ``co_filename`` unchanged."""

    file: str
    line: int
    function: str
    code: str = ""


class Node(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """
    One value in a capture's heap table.

    ``kind`` is one of ``plain`` (``value`` is the value itself: None, bool, int, float, str),
    ``text`` (``value`` is its text, as for Decimal, UUID, Path, datetime, bytes),
    ``list`` / ``tuple`` / ``set`` / ``frozenset`` / ``deque`` (``items`` are refs),
    ``dict`` (``items`` are refs, key and value in turn), ``object`` (``names`` are attribute names and
    ``items`` their refs), ``opaque`` (only its type and size are known), ``redacted``, ``absent`` (cut off by a limit).
    """

    type: str
    kind: str
    value: Any = None
    items: list[int] = []
    names: list[str] = []
    length: int = -1  # true length if the type has one, else -1
    cut: int = 0  # how many items, characters or bytes were left out
    form: str = ""  # its kind in its framework: "dataclass", "model", "queryset", "ndarray", ...
    note: str = ""


class Variable(Struct, frozen=True, array_like=True, gc=False):
    """A named reference into the heap table; ``-1`` if it did not fit."""

    name: str
    ref: int


class Frame(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stack frame of a failure, after redaction."""

    file: str
    line: int
    function: str
    qualname: str = ""
    module: str = ""
    code: str = ""
    context_start: int = 0  # number of the first context line
    context: list[str] = []
    columns: tuple[int, int, int] | None = None  # end line, first column, end column
    in_app: bool = True
    locals: list[Variable] = []
    locals_cut: int = 0
    folded: int = 0  # how many equal frames are folded into this one
    stale: bool = False  # the file changed after it was imported
    note: str = ""


class ExceptionInfo(Struct, frozen=True):
    """What was raised, in three strings."""

    type: str
    module: str
    message: str


class CapturedException(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One exception of a chain. Its frames are innermost first."""

    type: str
    module: str
    message: str
    frames: list[Frame] = []
    frames_cut: int = 0
    link: str = ""  # the relation to its parent: "", "cause", "context" or "group"
    parent: int = -1  # index of the parent exception
    notes: list[str] = []
    attributes: list[Variable] = []


class Capture(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A failure as values, without references into the process.

    ``exceptions[0]`` is what was raised; the others are its descendants by ``parent``. ``heap`` is shared by all
    frames, so that an object seen twice is one node.
    """

    exceptions: list[CapturedException] = []
    heap: list[Node] = []
    args: int = -1
    kwargs: int = -1
    cut_values: int = 0
    redacted_values: int = 0
    took_s: float = 0.0
    bytes: int = 0
    brief: str = ""  # why locals are missing: the same failure was captured in full just before


class TaskContext(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task's origin and options."""

    queue: str = ""
    routing_key: str = ""
    root_id: str = ""
    parent_id: str = ""
    group_id: str = ""
    eta: str = ""
    expires: str = ""
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    redelivered: bool = False
    headers: dict[str, str] = {}
    eager: bool = False


class RequestContext(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A web request, redacted."""

    method: str
    path: str
    route: str = ""
    view: str = ""
    user: str = ""
    status: int = 0
    headers: dict[str, str] = {}
    get: dict[str, list[str]] = {}
    post: dict[str, list[str]] = {}
    cookies: dict[str, str] = {}
    sql_count: int = 0
    sql_s: float = 0.0
    template: Line | None = None
