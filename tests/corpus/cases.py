"""
The register of the corpus: what is to be found of each leak, and by when each look-alike is full.

A line that ends in ``# LEAK name`` is where the memory that stays is allocated; of several lines with the same name any
is right, and a line that leaks for several tasks carries all their names. A line that ends in ``# KEPT`` keeps
something, too, but is not what is to be found.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from tests.corpus.app import app

FOLDER = Path(__file__).parent
MARK = re.compile(r"# (?:LEAK ([\w ]+?)|(KEPT))\s*$")
#: Runs after which a leak of ordinary size is to be named.
USUAL_RUNS = 220
#: So many sampled allocations are enough for a verdict, at one in so many bytes.
PICKS_FOR_A_VERDICT, BYTES_A_PICK = 12, 8192


class LeakCase(Struct, frozen=True):
    """A leak and what is to be found of it."""

    name: str  # of the case and its mark; of the task, too, unless that leaks in several places
    task: str
    kept_bytes: int | None  # by a run, at the marked lines; None where it is not Python's to tell
    holders: tuple[str, ...] = ()  # attributes of which one stands on the way to it, or words of the note
    native: str = ""  # the resource, where it is not on Python's heap
    every: int = 1  # it leaks in one run of so many; ``kept_bytes`` is the mean of all runs
    begins_at: int = 0  # the first run of a process that leaks
    raises: bool = False
    by_process: bool = False  # allocated by another thread: the process's own row may tell of it, too

    @property
    def lines(self) -> frozenset[tuple[str, int]]:
        """Files and lines that carry its mark."""
        return marked_lines().get(self.name.removeprefix("corpus."), frozenset())

    @property
    def due_runs(self) -> int:
        """Runs in one process by which its sample is large enough to name it."""
        picks = PICKS_FOR_A_VERDICT * BYTES_A_PICK / self.kept_bytes if self.kept_bytes else 0
        return self.begins_at + max(USUAL_RUNS, math.ceil(picks), PICKS_FOR_A_VERDICT * self.every)


class DecoyCase(Struct, frozen=True):
    """A look-alike: from the run ``full_by`` on it keeps no more than before."""

    name: str
    full_by: int = 100
    raises: bool = False
    from_zero: bool = False  # whether its number has to be small at first


LEAKS: dict[str, LeakCase] = {}
DECOYS: dict[str, DecoyCase] = {}


def leak(
    kept_bytes: int | None, *holders: str, bind: bool = False, **facts: Any
) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as a task that leaks; see :class:`LeakCase`."""

    def register(function: Callable[..., Any]) -> Any:
        name = f"corpus.{function.__name__}"
        LEAKS[name] = LeakCase(name, name, kept_bytes, holders, **facts)
        return app.task(name=name, bind=bind)(function)

    return register


def leaks_also(task: Any, name: str, kept_bytes: int, *holders: str) -> None:
    """Register a second place in which a task leaks, marked with a name of its own."""
    LEAKS[f"corpus.{name}"] = LeakCase(f"corpus.{name}", task.name, kept_bytes, holders)


def decoy(function: Callable[..., Any] | None = None, **facts: Any) -> Any:
    """Register a function as a task that only looks like a leak; see :class:`DecoyCase`."""
    if function is None:
        return functools.partial(decoy, **facts)
    name = f"corpus.{function.__name__}"
    DECOYS[name] = DecoyCase(name, **facts)
    return app.task(name=name)(function)


@functools.cache
def marked_lines() -> dict[str, frozenset[tuple[str, int]]]:
    """Mark to the files and lines that carry it, of all modules of the corpus."""
    lines: dict[str, set[tuple[str, int]]] = {}
    for path in sorted(FOLDER.glob("*.py")):
        for number, text in enumerate(path.read_text().splitlines(), 1):
            found = MARK.search(text)
            for name in (found[1] or found[2]).split() if found and path.name != "cases.py" else ():
                lines.setdefault(name, set()).add((str(path), number))
    return {name: frozenset(places) for name, places in lines.items()}


def load() -> None:
    """Import all modules that hold cases."""
    app.loader.import_default_modules()
    missing = [name for name in app.conf.include if name not in sys.modules]
    assert not missing, missing
