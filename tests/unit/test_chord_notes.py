"""What is recorded of a chord, from the requests of its tasks."""

from __future__ import annotations

from typing import Any

import pytest

from celery_trace.clock import FakeClock
from celery_trace.failures import chords
from celery_trace.failures.chords import ChordNotes
from celery_trace.model import Chord, encode

A, B, BODY = (f"{number:08d}-0000-4000-8000-000000000000" for number in range(3))
TOTAL = {"task": "shop.total", "args": ["password=hunter2"], "options": {"task_id": BODY}}
UNLOCK: dict[str, Any] = {
    "id": "u", "args": ["g", TOTAL], "kwargs": {"result": [[[A, None], None], [[B, None], None]]}, "root_id": "r",
}  # fmt: skip


@pytest.fixture
def written() -> list[Chord]:
    return []


@pytest.fixture
def notes(written: list[Chord]) -> ChordNotes:
    return ChordNotes(written.append, FakeClock(100.0))


def test_an_unlock_task_that_looks_again_and_again_is_recorded_once(notes: ChordNotes, written: list[Chord]) -> None:
    for _ in range(300):
        notes.unlock(UNLOCK)
    known = Chord(
        group="g", at_s=100.0, root_id="r", unlock="u", body="shop.total", body_id=BODY, members=[A, B], complete=True
    )
    assert written == [known]
    assert b"hunter2" not in encode(known)


def test_a_member_is_recorded_with_its_body_and_other_tasks_are_not(notes: ChordNotes, written: list[Chord]) -> None:
    notes.member({"group": "g", "chord": None}, A)
    notes.member("a request of the web", A)
    notes.member({"group": "g", "chord": TOTAL, "root_id": "r", "trace_request": "web"}, A)
    notes.member({"group": "g", "chord": TOTAL}, A)
    assert written == [
        Chord(group="g", at_s=100.0, root_id="web", body="shop.total", body_id=BODY, members=[A], complete=False)
    ]


@pytest.mark.parametrize("request_", [{"id": "u"}, {"id": "u", "args": "g", "kwargs": 3}, {"id": "u", "args": [[], 7]}])
def test_arguments_of_another_shape_make_a_record_without_members(
    request_: Any, notes: ChordNotes, written: list[Chord]
) -> None:
    notes.unlock(request_)
    (known,) = written
    assert (known.body, known.members, known.complete) == ("", [], False)


def test_a_list_that_contains_itself_is_read_to_an_end(
    notes: ChordNotes, written: list[Chord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chords, "_MOST_READ", 100)
    result: list[Any] = [A]
    result.append(result)
    notes.unlock(UNLOCK | {"kwargs": {"result": result}})
    assert (written[0].members, written[0].complete) == ([A], False)
