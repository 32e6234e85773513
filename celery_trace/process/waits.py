"""
What a thread of this process waits for, as far as only the process itself can tell.

The system knows that a thread waits for a lock, but not who holds it; that it reads from a socket, but not for which
task's result. This is looked up in the frames, once a run may be stuck. No code of the user is called: attributes are
read from the interpreter's own ``__dict__``, values are compared by identity, and types by ``type()``, as a proxy may
compute its ``__dict__`` and ``__class__``.
"""

from __future__ import annotations

import _socket
import dis
import inspect
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from types import CodeType, CoroutineType, FrameType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Final, Protocol

from msgspec import Struct

from celery_trace.process.frame_locals import locals_of

_MOST_FRAMES: Final = 48
#: Of all threads together, where the holder of a lock is looked for; each takes about 20 µs.
_MOST_SEARCHED: Final = 1000
_MOST_AWAITED: Final = 3
_MOST_BLOCKS: Final = 20
_MOST_TEXT: Final = 120
_LOCKS: Final = (type(threading.Lock()), type(threading.RLock()))
_OWNER: Final = re.compile(r"<locked _thread\.RLock object owner=(\d+) ")
_DOTTED: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*){0,6}")
_MISSING: Final = object()


class WaitPlace(Struct, frozen=True, array_like=True):
    """A line of code."""

    file: str
    line: int
    function: str


class Wait(Struct, frozen=True, array_like=True):
    """What a thread waits for. What could not be found is empty."""

    #: What the innermost function calls, without arguments: ``self._lock.acquire``, and of a ``with`` statement
    #: ``self._lock.__enter__``.
    call: str = ""
    #: Whether it is at the end of a loop or the begin of a function, and not in the middle of an instruction.
    loops: bool = False
    #: The id of the task whose result it waits for.
    result_id: str = ""
    #: The name of the thread that it joins.
    joins: str = ""
    #: The name of the thread that holds the lock, and where it is in the code that holds it.
    holder: str = ""
    holds_at: WaitPlace | None = None
    #: The places where the tasks of its asyncio loop wait.
    awaits: list[WaitPlace] = []
    #: The descriptor that a greenlet or coroutine waits for; -1 if it waits for none, or if that is unknown.
    descriptor: int = -1
    #: Whether it waits until it can write to that.
    writes: bool = False


class _Block(Protocol):
    """An entry of a table of handlers: the instructions from ``start`` to before ``end`` have one at ``target``."""

    start: int
    end: int
    target: int


def examine(stack: Sequence[FrameType], frames: Mapping[int, FrameType], scrub: Callable[[str], str] = str) -> Wait:
    """
    What a run waits for.

    Args:
        stack: Its frames, innermost first.
        frames: The innermost frames of all threads.
        scrub: Removes secrets from a text, such as the name of a thread.
    """
    innermost = stack[0]
    call, loops = _call_of(innermost), _loops(innermost)
    result_id = joins = holder = ""
    awaits: list[WaitPlace] = []
    descriptor, writes = -1, False
    for frame in stack[:_MOST_FRAMES]:
        where, function = _tail(frame.f_code.co_filename), frame.f_code.co_name
        if where == "celery/result.py" and function == "get":
            result_id = result_id or _text(_attribute(_local(frame, "self"), "id"))
        elif where.endswith("/threading.py") and function == "join":
            joins = joins or _text(_attribute(_local(frame, "self"), "_name"))
        elif where == "asyncio/events.py" and function == "_run":
            break  # the loop runs a callback
        elif where == "asyncio/base_events.py" and function == "run_forever":
            awaits = _awaited(_local(frame, "self"))
            break
        elif descriptor < 0 and where in _SOCKETS:
            descriptor, writes = _SOCKETS[where](frame), function.startswith(_WRITES) or _local(frame, "write") is True
    holds_at: WaitPlace | None = None
    lock = _resolve(innermost, re.sub(r"\.(acquire|__enter__)$", "", call)) if call else None
    if type(lock) in _LOCKS:
        holder, holds_at = _holder(lock, frames)
    return Wait(call, loops, scrub(result_id), scrub(joins), scrub(holder), holds_at, awaits, descriptor, writes)


def chain(frame: FrameType | None) -> list[FrameType]:
    """A frame and its callers."""
    return list(_chain(frame))


def _chain(frame: FrameType | None) -> Iterator[FrameType]:
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _tail(file: str) -> str:
    """The last two parts of a path."""
    return "/".join(PurePath(file).parts[-2:])


def _folder(file: str) -> str:
    return PurePath(file).parent.name


def _place(frame: FrameType) -> WaitPlace:
    return WaitPlace(frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_qualname)


# --- expressions ---------------------------------------------------------------------------------------


def _call_of(frame: FrameType) -> str:
    """The function that a frame calls now; empty if that is no plain dotted name."""
    text = _text_at(frame.f_code, frame.f_lasti)
    if text and _enters(frame.f_code, frame.f_lasti):
        text += ".__enter__"
    return text[:_MOST_TEXT] if _DOTTED.fullmatch(text) else ""


def _enters(code: CodeType, instruction: int) -> bool:
    """Whether an instruction enters a context: since Python 3.14 it calls a special method, loaded just before."""
    if instruction < 2:
        return False
    before, name = (dis.opname[code.co_code[at]] for at in (instruction - 2, instruction))
    return name == "BEFORE_WITH" or (name, before) == ("CALL", "LOAD_SPECIAL")


def _loops(frame: FrameType) -> bool:
    """Whether the next instruction is one at which other threads get their turn while Python code runs."""
    instruction = frame.f_lasti
    opcode = frame.f_code.co_code[instruction] if instruction >= 0 else 0
    return dis.opname[opcode].startswith(("JUMP_", "POP_JUMP_", "RESUME"))


def _text_at(code: CodeType, instruction: int) -> str:
    """
    The source of an instruction up to its arguments, if it is on one line; of one that enters a context, the context.

    Until Python 3.12, such an instruction has the position of its whole ``with`` statement. The one before it makes the
    context, and has the context's position.
    """
    positions = list(code.co_positions())
    at = instruction // 2
    if not 0 <= at < len(positions):
        return ""
    text = _source(code, positions[at])
    if text.startswith(("with ", "async with ")):
        before = next((place for place in reversed(positions[:at]) if place != positions[at]), None)
        text = _source(code, before) if before is not None else ""
    return text.partition("(")[0].strip()


def _source(code: CodeType, position: tuple[int | None, int | None, int | None, int | None]) -> str:
    """The source between two columns; of several lines the first."""
    first, last, begin, end = position
    if first is None or begin is None or end is None:
        return ""
    line = _line(code.co_filename, first).encode()
    return line[begin : end if last == first else None].decode("utf-8", "replace")


def _line(file: str, number: int) -> str:
    """One line of a file. The file is not kept in memory, unlike by `linecache`. A pipe is not read: it may block."""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            return ""
        with open(file, encoding="utf-8", errors="replace") as lines:
            for at, line in enumerate(lines, 1):
                if at == number:
                    return line
    except (OSError, ValueError):  # a name such as <string>, or with a zero byte
        pass
    return ""


def _resolve(frame: FrameType, dotted: str) -> object:
    """The object that a dotted name means in a frame; None if that is not known without running code."""
    if not _DOTTED.fullmatch(dotted):
        return None
    name, *attributes = dotted.split(".")
    found = _local(frame, name)
    if found is _MISSING:
        found = dict.get(frame.f_globals, name, _MISSING)
    for attribute in attributes:
        found = _attribute(found, attribute)
    return None if found is _MISSING else found


def _local(frame: FrameType, name: str) -> object:
    """A local variable of a frame; its variables are copied only if the name is a local one."""
    code = frame.f_code
    if (
        name not in (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
        or not code.co_flags & inspect.CO_OPTIMIZED
    ):
        return _MISSING
    return locals_of(frame).get(name, _MISSING)


def _attribute(owner: object, name: str) -> object:
    """An attribute from the ``__dict__`` of an object, its class's or a module's, without running code."""
    if owner is _MISSING:
        return _MISSING
    own = _dict_of(owner)
    if name in own:
        return own[name]
    if issubclass(type(owner), ModuleType):
        return _MISSING
    for names in _namespaces(owner if issubclass(type(owner), type) else type(owner)):
        if name in names:
            found = names[name]
            return found if type(found) in _LOCKS else _MISSING
    return _MISSING


def _dict_of(owner: object) -> Mapping[str, object]:
    for names in _namespaces(type(owner)):
        getter = names.get("__dict__")
        if type(getter) is GetSetDescriptorType or type(getter) is MemberDescriptorType:
            own: object = getter.__get__(owner)
            return own if type(own) is dict else {}
    return {}


def _namespaces(cls: object) -> Iterator[Mapping[str, object]]:
    """Those of a class and its bases, without the metaclass's code."""
    for base in type.__dict__["__mro__"].__get__(cls):
        yield type.__dict__["__dict__"].__get__(base)


def _text(value: object) -> str:
    return value[:_MOST_TEXT] if type(value) is str else ""


# --- locks ---------------------------------------------------------------------------------------------


def _holder(lock: object, frames: Mapping[int, FrameType]) -> tuple[str, WaitPlace | None]:
    """The thread that holds a lock, and the innermost line of the ``with`` block in which it does."""
    owned = _OWNER.match(repr(lock))
    owner = int(owned[1]) if owned else None
    left = _MOST_SEARCHED
    known: dict[tuple[int, int], list[str]] = {}  # threads of a pool wait at the same places
    for thread, innermost in frames.items():
        if owner is not None and thread != owner:
            continue
        for frame in _chain(innermost):
            at = id(frame.f_code), frame.f_lasti
            if at not in known:
                left -= 1
                if left < 0:
                    return "", None
                known[at] = _contexts(frame)
            if any(_is_lock(_resolve(frame, context), lock) for context in known[at]):
                return _thread_name(thread), _place(frame)
        if owner is not None:
            return _thread_name(thread), None  # by `acquire`, somewhere
    return "", None


def _is_lock(found: object, lock: object) -> bool:
    if issubclass(type(found), threading.Condition):
        found = _attribute(found, "_lock")
    return found is lock


def _contexts(frame: FrameType) -> list[str]:
    """The contexts of the ``with`` blocks that a frame is in, the innermost first."""
    code = frame.f_code
    parse: Callable[[CodeType], Sequence[_Block]] | None = getattr(dis, "_parse_exception_table", None)
    if parse is None:
        return []
    table = parse(code)
    contexts: list[str] = []
    at = frame.f_lasti
    # The table has the innermost handler of an instruction. The one around that is the handler's own.
    for _ in range(_MOST_BLOCKS):
        handlers = [entry.target for entry in table if entry.start <= at < entry.end and entry.target > at]
        if not handlers:
            break
        at = handlers[0]
        if _exits(code, at):
            begins = min(entry.start for entry in table if entry.target == at)
            contexts.append(_text_at(code, begins - 2))  # the instruction before the block enters the context
    return contexts


def _exits(code: CodeType, target: int) -> bool:
    """Whether a handler is that of a ``with`` block: it calls ``__exit__`` with the error."""
    names = [dis.opname[opcode] for opcode in code.co_code[target : target + 4 : 2]]
    return names == ["PUSH_EXC_INFO", "WITH_EXCEPT_START"]


def _thread_name(thread: int) -> str:
    """The name of a thread; its number if it was not started by `threading`."""
    for known in list(threading._active.values()):  # type: ignore[attr-defined]
        if known.ident == thread:
            name = _text(_attribute(known, "_name"))
            if name:
                return name
    return str(thread)


# --- sockets of greenlets and coroutines ---------------------------------------------------------------

_WRITES: Final = ("send", "connect", "drain")


def _of_gevent(frame: FrameType) -> int:
    return _fileno(_slot(_local(frame, "self"), "_sock"))


def _of_eventlet(frame: FrameType) -> int:
    return _fileno(_local(frame, "fileno"))


def _of_stream(frame: FrameType) -> int:
    reader = _local(frame, "self")
    transport = _attribute(reader if frame.f_code.co_name != "drain" else _attribute(reader, "_reader"), "_transport")
    return _fileno(_attribute(transport, "_sock_fd"))


def _of_loop(frame: FrameType) -> int:
    return _fileno(_local(frame, "sock"))


def _fileno(found: object) -> int:
    """The number of a descriptor, or of a socket."""
    if type(found) is int:
        return found
    return _socket.socket.fileno(found) if issubclass(type(found), _socket.socket) else -1  # type: ignore[arg-type]


def _slot(owner: object, name: str) -> object:
    """What is in a slot of an object, without running code."""
    for names in _namespaces(type(owner)):
        found = names.get(name)
        if type(found) is MemberDescriptorType:
            try:
                value: object = found.__get__(owner)
            except AttributeError:
                return _MISSING
            return value
    return _MISSING


#: The descriptor that a function of these files waits for.
_SOCKETS: Final[Mapping[str, Callable[[FrameType], int]]] = {
    "gevent/_socket3.py": _of_gevent,
    "gevent/_socketcommon.py": _of_gevent,
    "gevent/ssl.py": _of_gevent,
    "hubs/__init__.py": _of_eventlet,
    "asyncio/streams.py": _of_stream,
    "asyncio/selector_events.py": _of_loop,
}


# --- asyncio -------------------------------------------------------------------------------------------


def _awaited(loop: object) -> list[WaitPlace]:
    """Where the tasks of an event loop wait: the innermost of their lines that is not asyncio's."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or loop is _MISSING:
        return []
    places: list[WaitPlace] = []
    for task in list(asyncio.all_tasks(loop))[:_MOST_AWAITED]:
        coroutine: object = task.get_coro() if type(task) is asyncio.Task else None
        frame: FrameType | None = None
        for _ in range(_MOST_FRAMES):
            if type(coroutine) is not CoroutineType:
                break
            if frame is None or _folder(coroutine.cr_code.co_filename) != "asyncio":
                frame = coroutine.cr_frame or frame
            coroutine = coroutine.cr_await
        if frame is not None:
            places.append(_place(frame))
    return sorted(places, key=lambda place: (place.file, place.line))
