"""A failure's frames and values, as a capture holds them after redaction."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Line(Struct, frozen=True):
    """One line of source that was being executed. ``file`` is ``co_filename`` as it stands."""

    file: str
    line: int
    function: str
    code: str = ""


class Node(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """
    One value in a capture's heap table.

    ``kind`` is one of ``plain`` (``value`` is the value itself: None, bool, int, float, str),
    ``text`` (``value`` is text that stands for it, as for Decimal, UUID, Path, datetime, bytes),
    ``list`` / ``tuple`` / ``set`` / ``frozenset`` / ``deque`` (``items`` are refs),
    ``dict`` (``items`` are refs, key and value in turn), ``object`` (``names`` are attribute names and
    ``items`` their refs), ``opaque`` (only its type and size are known), ``redacted``, ``absent`` (cut off by a limit).
    """

    type: str
    kind: str
    value: Any = None
    items: list[int] = []
    names: list[str] = []
    length: int = -1  # true length where the type has one, -1 elsewhere
    cut: int = 0  # how many items, characters or bytes were left out
    form: str = ""  # what it is to its framework: "dataclass", "model", "queryset", "ndarray", ...
    note: str = ""


class Variable(Struct, frozen=True, array_like=True, gc=False):
    """A named reference into the heap table; ``-1`` when nothing could be kept."""

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
    folded: int = 0  # how many equal frames stand folded behind this one
    stale: bool = False  # the file changed after it was imported
    note: str = ""


class ExceptionInfo(Struct, frozen=True):
    """What was raised, in three strings."""

    type: str
    module: str
    message: str


class CapturedException(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One exception of a chain. Its frames stand innermost first."""

    type: str
    module: str
    message: str
    frames: list[Frame] = []
    frames_cut: int = 0
    link: str = ""  # how the one before leads here: "", "cause", "context" or "group"
    parent: int = -1  # index of the exception that it hangs from
    notes: list[str] = []
    attributes: list[Variable] = []


class Capture(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A failure as values: nothing in it refers to the process that made it.

    ``exceptions[0]`` is what was raised; the others hang from it by ``parent``.
    ``heap`` is shared by all frames, so that one object seen twice is one node.
    """

    exceptions: list[CapturedException] = []
    heap: list[Node] = []
    args: int = -1
    kwargs: int = -1
    cut_values: int = 0
    redacted_values: int = 0
    took_s: float = 0.0
    bytes: int = 0
    brief: str = ""  # why it has not all locals: the same failure was captured in full just before


class TaskContext(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a task came from and what held for it."""

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
