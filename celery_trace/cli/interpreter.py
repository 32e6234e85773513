"""What ``celery trace doctor`` says of the Python interpreter that it runs on: the workers' must be the same."""

from __future__ import annotations

import platform
import sys
import sysconfig
from collections.abc import Iterator
from typing import Final

from celery_trace.cli.findings import Finding, ok, warn
from celery_trace.process import tracing_right
from celery_trace.running import outside

#: The versions that the tests run on.
_TESTED: Final = ((3, 11), (3, 14))
#: They collect garbage in small steps. Later versions, and those before, collect each generation at once.
_INCREMENTAL: Final = ((3, 14, 0), (3, 14, 4))


def examine() -> Iterator[Finding]:
    """All findings about this interpreter."""
    name = f"{platform.python_version()} ({sys.implementation.name})"
    yield from version(name, sys.version_info[:3], free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
    yield stacks(outside.unavailable(), tracing_right.scope())


def version(name: str, number: tuple[int, ...], *, free_threaded: bool) -> Iterator[Finding]:
    """
    Findings about a version of Python.

    Args:
        name: How it is shown.
        number: Such as ``(3, 14, 2)``.
        free_threaded: Whether the build can run without the global interpreter lock.
    """
    if free_threaded:
        yield warn(
            "python",
            f"{name}, free-threaded",
            "celery-trace relies on the global interpreter lock: with the lock off it switches itself off, and with "
            "PYTHON_GIL=1 it measures memory by tracemalloc. Use the standard build.",
        )
    elif not _TESTED[0] <= number[:2] <= _TESTED[1]:
        first, last = (".".join(map(str, tested)) for tested in _TESTED)
        yield warn("python", name, f"Tested with Python {first} to {last}.")
    else:
        yield ok("python", name)
    if _INCREMENTAL[0] <= number <= _INCREMENTAL[1]:
        yield warn(
            "garbage",
            "Python 3.14.0 to 3.14.4 collect garbage in small steps",
            "Garbage stays in memory longer, which looks like growth. Use Python 3.14.5 or newer.",
        )


def stacks(why_not: str, scope: int) -> Finding:
    """
    How the stack of a run is read while C code holds the interpreter's lock.

    Args:
        why_not: Why stacks can't be read from outside; empty if they can.
        scope: Yama's limit (:func:`celery_trace.process.tracing_right.scope`).
    """
    check, signal = "stacks", "by the signal trace_stack_signal"
    if why_not:
        return ok(check, f"of a run in C code: {signal}; not from outside: {why_not}")
    if scope > tracing_right.ANCESTORS:
        return ok(check, f"of a run in C code: {signal}; from outside only by root (ptrace_scope is {scope})")
    by_whom = ", by the collector only (ptrace_scope is 1)" if scope == tracing_right.ANCESTORS else ""
    return ok(check, f"of a run in C code: from outside{by_whom}")
