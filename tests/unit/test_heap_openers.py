"""Which line opened what stays open, from picks with their stacks and the objects in them."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from celery_trace.heap.openers import opened_at
from celery_trace.heap.picks import Pick, Stack
from celery_trace.text.code_owner import CodeOwner

HERE = str(Path(__file__).parent / "shop.py")
THREADING = threading.__file__
MAKES: Stack = ((THREADING, 250, "Condition.__init__"), (THREADING, 870, "Thread.__init__"), (HERE, 10, "poll"))
OTHER: Stack = ((THREADING, 870, "Thread.__init__"), (HERE, 30, "begin"))
KEEPS: Stack = ((HERE, 20, "remember"),)
STACKS = (MAKES, OTHER, KEEPS)


def picks(*stacks: int) -> list[Pick]:
    return [
        Pick(
            serial=number, address=16 * number, size=100, weight=8e3, born_s=0.0, tag=1, run=number, collections=0,
            stack=stack,
        )
        for number, stack in enumerate(stacks, 1)
    ]  # fmt: skip


def opened(resource: str, *stacks: int, holds: dict[int, Any] | None = None) -> Stack:
    """The answer for picks with these stacks; ``holds`` are objects in picks, by their number."""

    def referrers(blocks: list[tuple[int, int]], *_: Any) -> list[tuple[int, Any, Any]]:
        known = {16 * number: thing for number, thing in (holds or {}).items()}
        return [(address, known[address], known) for address, _ in blocks if address in known]

    return opened_at(resource, picks(*stacks), STACKS.__getitem__, referrers, CodeOwner())


def test_the_line_below_which_most_threads_were_made_is_told() -> None:
    assert opened("threads", 0, 2, 0, 1, 2, 0) == MAKES


def test_what_is_kept_beside_them_is_not_told() -> None:
    assert opened("threads", 2, 2, 2, 2) == ()


def test_one_alone_is_not_believed_and_of_two_lines_the_one_with_more_is() -> None:
    assert opened("threads", 0) == ()
    assert opened("threads", 0, 0, 1, 1, 1) == OTHER
    assert opened("fds", 0, 0) == ()


@pytest.mark.parametrize("mode", ["rb", "r"])
def test_an_object_is_known_by_its_type(mode: str) -> None:
    with open(__file__, mode) as file:
        assert opened("fds", 2, 2, 0, holds={1: file, 2: file}) == KEEPS
        assert opened("threads", 2, 2, holds={1: file, 2: file}) == ()


def test_a_module_that_was_never_imported_made_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sqlite3", raising=False)
    assert opened("fds", 2, 2, holds={1: object()}) == ()
