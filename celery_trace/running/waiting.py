"""
What a run waits for, in words.

Pure: it reads the stack, what the process found out (:mod:`celery_trace.process.waits`) and what the system knows
(:mod:`celery_trace.running.procfs`). The sentence that says most is taken. What is not known is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import PurePath
from typing import Final

from msgspec import Struct

from celery_trace.model import Line
from celery_trace.process.waits import Wait
from celery_trace.running.procfs import Child, Descriptor, ThreadFacts

_SLEEPS: Final = frozenset({"nanosleep", "clock_nanosleep"})
_POLLS: Final = frozenset({"poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait", "epoll_pwait2"})
_RECEIVES: Final = {"recvfrom": "recv", "recvmsg": "recv", "read": "read", "readv": "read", "pread64": "read"}
_SENDS: Final = {"sendto": "send", "sendmsg": "send", "write": "write", "writev": "write", "sendfile": "sendfile"}
_CHILD_WAITS: Final = frozenset({"wait4", "waitid"})
#: Calls that wait for a lock of an SQLite database.
_OF_SQLITE: Final = ("execute", "executemany", "executescript", "commit", "rollback", "backup")
_MOST_NAMED: Final = 2
_NAME_SERVER: Final = ":53"


class Activity(StrEnum):
    """What a thread does that shows no progress."""

    WAITS = "waits"  # it has not run, or only looked for what it waits for
    LOOPS = "loops"  # Python code
    IN_C = "in_c"  # in one call of C code, and uses the processor
    HOLDS_LOCK = "holds_lock"  # in C code that lets no other thread run
    STARVED = "starved"  # another thread is in C code that lets no other thread run
    STOPPED = "stopped"
    SUSPENDED = "suspended"  # a greenlet or coroutine that waits


class WaitEvidence(Struct, frozen=True, kw_only=True):
    """
    What is known about a thread.

    ``stack`` is innermost first, with files as they are to be shown. ``own`` is the index of its innermost line of the
    user's own code.
    """

    activity: Activity
    stack: Sequence[Line]
    own: int = 0
    wait: Wait = Wait()
    facts: ThreadFacts = ThreadFacts()
    short: Callable[[str], str] = str
    #: The run that keeps the thread of a suspended one: its name, and the innermost line of the user's own code.
    behind: tuple[str, Line | None] | None = None


def sentence(evidence: WaitEvidence) -> str:
    """What it waits for, as a part of a sentence, such as ``waiting in recv from 10.0.0.5:5432``; "" if unknown."""
    facts = evidence.facts
    if facts.state == "T":
        return "stopped by a signal (SIGSTOP)"
    if facts.state == "t":
        return "stopped by a debugger"
    match evidence.activity:
        case Activity.LOOPS:
            return f"spinning{_at(evidence, 0)}"
        case Activity.IN_C:
            return f"inside C code called{_at(evidence, 0)}"
        case Activity.HOLDS_LOCK:
            return f"inside C code that holds Python's lock, last seen{_at(evidence, evidence.own)}"
        case Activity.STARVED:
            return "waiting for Python's lock, which C code in another thread holds"
    if evidence.behind is not None:
        name, line = evidence.behind
        where = f" at {evidence.short(line.file)}:{line.line}" if line is not None else ""
        return f"waiting for its turn: {name} keeps the thread{where}"
    return _by_library(evidence) or _by_system_call(evidence) or _by_expression(evidence) or _somewhere(evidence)


def waits_for_child(facts: ThreadFacts) -> Sequence[Child]:
    """The child processes that a thread waits for; empty if it waits for something else."""
    if facts.call not in _CHILD_WAITS:
        return ()
    return [child for child in facts.children if facts.child in (0, child.pid)]


def _at(evidence: WaitEvidence, index: int) -> str:
    if not evidence.stack:
        return ""
    line = evidence.stack[index]
    return f" at {evidence.short(line.file)}:{line.line}"


def _somewhere(evidence: WaitEvidence) -> str:
    where = _at(evidence, evidence.own)
    return f"waiting{where}" if where else ""


# --- by the library that was called --------------------------------------------------------------------


def _by_library(evidence: WaitEvidence) -> str:
    """By the outermost known function between the user's own code and the innermost line."""
    if evidence.wait.awaits:  # the stack is that of a coroutine
        return _of_asyncio(evidence)
    for line in reversed(evidence.stack[: evidence.own]):
        name = "/".join(PurePath(line.file).parts[-2:])
        for files, functions, words in _LIBRARIES:
            if name.endswith(files) and line.function.rpartition(".")[2] in functions:
                found = words(evidence, line)
                if found:
                    return found
    return ""


def _result(evidence: WaitEvidence, line: Line) -> str:
    if evidence.wait.result_id:
        return f"waiting for the result of task {evidence.wait.result_id}"
    several = line.function.startswith(("ResultSet", "GroupResult"))
    return "waiting for the results of several tasks" if several else "waiting for the result of a task"


def _joined(evidence: WaitEvidence, _line: Line) -> str:
    return f"waiting for thread {evidence.wait.joins or 'of this process'} to end"


def _of_threading(evidence: WaitEvidence, line: Line) -> str:
    kind = line.function.partition(".")[0]
    return {
        "Event": "waiting for an Event to be set",
        "Condition": "waiting for a Condition to be notified",
        "Lock": f"waiting for a lock{_at(evidence, evidence.own)}",
        "Semaphore": "waiting for a Semaphore",
        "BoundedSemaphore": "waiting for a Semaphore",
        "Barrier": "waiting for other threads at a Barrier",
    }.get(kind, "")


def _of_queue(_evidence: WaitEvidence, line: Line) -> str:
    return "waiting for room in a queue" if line.function.endswith("put") else "waiting for an item in a queue"


def _of_subprocess(evidence: WaitEvidence, _line: Line) -> str:
    """``communicate`` waits for the child's output, and the child writes none."""
    waited_for = waits_for_child(evidence.facts)
    return _children(waited_for or evidence.facts.children)


def _of_asyncio(evidence: WaitEvidence, _line: Line | None = None) -> str:
    places = [f"{evidence.short(place.file)}:{place.line}" for place in evidence.wait.awaits]
    if not places:
        return "waiting in an asyncio loop"
    more = f" and {len(places) - _MOST_NAMED} more" if len(places) > _MOST_NAMED else ""
    return f"waiting in asyncio at {', '.join(places[:_MOST_NAMED])}{more}"


def _always(words: str) -> Callable[[WaitEvidence, Line], str]:
    return lambda _evidence, _line: words


def _lock_of_its_line(evidence: WaitEvidence, _line: Line) -> str:
    return f"waiting for a lock{_at(evidence, evidence.own)}"


#: The end of a file's name, its functions, and the words.
_LIBRARIES: Final[tuple[tuple[tuple[str, ...], frozenset[str], Callable[[WaitEvidence, Line], str]], ...]] = (
    (("celery/result.py",), frozenset({"get", "join", "join_native", "wait"}), _result),
    (("/subprocess.py",), frozenset({"wait", "communicate", "run", "call"}), _of_subprocess),
    (("/threading.py",), frozenset({"join"}), _joined),
    (("/threading.py",), frozenset({"wait", "wait_for", "acquire"}), _of_threading),
    (("/queue.py",), frozenset({"get", "put", "join"}), _of_queue),
    (("multiprocessing/queues.py", "billiard/queues.py"), frozenset({"get", "put"}), _of_queue),
    (("multiprocessing/pool.py", "billiard/pool.py"), frozenset({"get", "wait", "join"}),
     _always("waiting for a result of a process pool")),
    (("multiprocessing/process.py", "billiard/process.py"), frozenset({"join"}), _of_subprocess),
    (("futures/_base.py",), frozenset({"result", "exception", "wait", "as_completed"}),
     _always("waiting for a Future")),
    (("asyncio/base_events.py", "asyncio/runners.py"), frozenset({"run_forever", "run_until_complete", "run"}),
     _of_asyncio),
    (("/socket.py", "gevent/_socketcommon.py", "support/greendns.py"), frozenset({"getaddrinfo", "gethostbyname"}),
     _always("resolving the name of a host")),
    (("gevent/hub.py", "eventlet/greenthread.py"), frozenset({"sleep"}), _always("in time.sleep")),
    (("asyncio/tasks.py",), frozenset({"sleep"}), _always("in asyncio.sleep")),
    (("asyncio/locks.py",), frozenset({"wait", "wait_for", "acquire"}), _of_threading),
    (("asyncio/queues.py",), frozenset({"get", "put", "join"}), _of_queue),
    (("asyncio/subprocess.py", "gevent/subprocess.py", "green/subprocess.py"), frozenset({"wait", "communicate"}),
     _always("waiting for a child process")),
    (("gevent/thread.py", "gevent/lock.py"), frozenset({"acquire", "__enter__"}), _lock_of_its_line),
    (("eventlet/semaphore.py",), frozenset({"acquire"}), _lock_of_its_line),
)  # fmt: skip


# --- by the system call --------------------------------------------------------------------------------


def _by_system_call(evidence: WaitEvidence) -> str:
    facts = evidence.facts
    for calls, words in _CALLS:
        if facts.call in calls:
            return words(evidence)
    return "waiting for the disk" if facts.state == "D" else ""


def _sleeps(evidence: WaitEvidence) -> str:
    called = evidence.wait.call.rpartition(".")[2]
    if called in _OF_SQLITE and evidence.facts.sqlite:
        return f"waiting for a lock of the SQLite database {evidence.facts.sqlite}"
    if called == "sleep":
        return "in time.sleep"
    return f"sleeping in C code called{_at(evidence, 0)}"


def _locks(evidence: WaitEvidence) -> str:
    wait = evidence.wait
    if wait.holder:
        where = f" at {evidence.short(wait.holds_at.file)}:{wait.holds_at.line}" if wait.holds_at is not None else ""
        return f"waiting for a lock that thread {wait.holder} holds{where}"
    return _by_expression(evidence) or f"waiting for another thread{_at(evidence, evidence.own)}"


def _receives(evidence: WaitEvidence) -> str:
    how = _RECEIVES[evidence.facts.call]
    if not evidence.facts.on:
        return f"waiting in {how}{_at(evidence, evidence.own)}"
    match evidence.facts.on[0]:
        case Descriptor("pipe"):
            return "waiting for data from a pipe"
        case Descriptor("terminal", name):
            return f"waiting for input from the terminal {name}"
        case Descriptor("file", name):
            return f"reading {name}"
        case Descriptor("socket", name):
            return _of_connection(f"waiting in {how} from", name)
    return f"waiting in {how}{_at(evidence, evidence.own)}"


def _sends(evidence: WaitEvidence) -> str:
    how = _SENDS[evidence.facts.call]
    match evidence.facts.on[:1]:
        case (Descriptor("pipe"),):
            return "waiting to write to a pipe that is full"
        case (Descriptor("file", name),):
            return f"writing to {name}"
        case (Descriptor("socket", name),):
            return _of_connection(f"waiting in {how} to", name)
    return f"waiting in {how}{_at(evidence, evidence.own)}"


def _of_connection(words: str, peer: str) -> str:
    if peer.endswith(_NAME_SERVER):
        return f"waiting for the name server {peer}"
    return f"{words} {peer or 'a socket'}"


def _connects(evidence: WaitEvidence) -> str:
    name = evidence.facts.on[0].name if evidence.facts.on else ""
    return f"connecting to {name or 'a server'}"


def _accepts(evidence: WaitEvidence) -> str:
    name = evidence.facts.on[0].name if evidence.facts.on else ""
    return f"waiting for a connection{f' on {name}' if name else ''}"


def _polls(evidence: WaitEvidence) -> str:
    on, call = evidence.facts.on, evidence.facts.call
    how = next((name for name in ("epoll", "select") if name in call), "poll")
    sockets = [one.name for one in on if one.kind == "socket"]
    if len(on) == 1 and sockets:
        return _of_connection(f"waiting in {how} for", sockets[0])
    if len(on) == 1:
        return {
            "pipe": "waiting for data from a pipe",
            "listening": f"waiting for a connection on {on[0].name}",
            "terminal": f"waiting for input from the terminal {on[0].name}",
        }.get(on[0].kind, f"waiting in {how}{_at(evidence, evidence.own)}")
    if not on:
        return f"waiting in {how}{_at(evidence, evidence.own)}"
    named = [name for name in sockets if name][:_MOST_NAMED]
    such = f" with {', '.join(named)}" if named else ""
    return f"waiting in {how} for {len(on)} files or connections{such}"


def _waits_for_process(evidence: WaitEvidence) -> str:
    return _children(waits_for_child(evidence.facts)) or "waiting for a child process"


def _children(children: Sequence[Child]) -> str:
    if not children:
        return ""
    named = ", ".join(f"{child.pid} ({child.command})" for child in children[:_MOST_NAMED])
    more = f" and {len(children) - _MOST_NAMED} more" if len(children) > _MOST_NAMED else ""
    return f"waiting for child process{'es' if len(children) > 1 else ''} {named}{more}"


def _file_lock(evidence: WaitEvidence) -> str:
    name = evidence.facts.on[0].name if evidence.facts.on else ""
    holder = f" that process {evidence.facts.lock_held_by} holds" if evidence.facts.lock_held_by else ""
    return f"waiting for a lock of the file{f' {name}' if name else ''}{holder}"


def _opens(evidence: WaitEvidence) -> str:
    return f"opening a file{_at(evidence, evidence.own)}"


_CALLS: Final[tuple[tuple[frozenset[str], Callable[[WaitEvidence], str]], ...]] = (
    (_SLEEPS, _sleeps),
    (frozenset({"futex"}), _locks),
    (frozenset(_RECEIVES), _receives),
    (frozenset(_SENDS), _sends),
    (frozenset({"connect"}), _connects),
    (frozenset({"accept", "accept4"}), _accepts),
    (_POLLS, _polls),
    (_CHILD_WAITS, _waits_for_process),
    (frozenset({"flock", "fcntl"}), _file_lock),
    (frozenset({"open", "openat"}), _opens),
    (frozenset({"semop", "semtimedop"}), lambda _: "waiting for a semaphore of the system"),
    (frozenset({"fsync", "fdatasync"}), lambda _: "waiting for the disk"),
    (frozenset({"pause", "rt_sigsuspend", "rt_sigtimedwait"}), lambda _: "waiting for a signal"),
)


# --- by what the innermost function calls ----------------------------------------------------------------

#: The last part of what is called.
_EXPRESSIONS: Final = {
    "sleep": "in time.sleep",
    "acquire": "waiting for a lock",
    "__enter__": "waiting for a lock",
    "recv": "waiting in recv",
    "recv_into": "waiting in recv",
    "accept": "waiting for a connection",
    "connect": "connecting to a server",
    "select": "waiting in select",
    "poll": "waiting in poll",
    "input": "waiting for input",
    "flock": "waiting for a lock of a file",
    "lockf": "waiting for a lock of a file",
    "waitpid": "waiting for a child process",
    "getaddrinfo": "resolving the name of a host",
}


def _by_expression(evidence: WaitEvidence) -> str:
    call = evidence.wait.call
    words = _EXPRESSIONS.get(call.rpartition(".")[2], "")
    if words == "in time.sleep":
        return words
    where = _at(evidence, evidence.own)
    return f"{words}{where}" if words else f"waiting in {call}{where}" if call else ""
