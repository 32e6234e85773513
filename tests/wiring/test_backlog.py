"""Failures that repeat wait for each other: none is lost, none twice, and nobody sees more of them than before."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_trace.collector.adoption import adopt
from celery_trace.failures import repeats
from celery_trace.failures.backlog import may_wait
from celery_trace.failures.capture.source import SourceLines
from celery_trace.failures.watcher import FailureWatcher
from celery_trace.guard import own_errors
from celery_trace.model import Failure, Kind, Outcome
from tests.support.fixtures_pool import Pool, inside_of_work


@pytest.fixture
def fails(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let ``work`` fail with those arguments, after as many failures as are captured in full at once."""
    # The ticker's own beat would write what waits at some moment of the test.
    monkeypatch.setattr(pool.recorder.ticker, "_entries", [])
    pool.plugin._here().watcher._repeats.charge(2 * repeats.CREDIT_S)

    def fail() -> None:
        raise ValueError("no price for this one")

    def fails(*args: Any, task_id: str) -> None:
        inside_of_work["work"] = fail
        try:
            pool.run("work", *args, task_id=task_id)
        finally:
            inside_of_work.clear()

    for number in range(repeats.FULL_A_MINUTE):
        fails(number, task_id=f"full-{number}")
    return fails


@pytest.fixture
def three_wait(pool: Pool, fails: Callable[..., None]) -> FailureWatcher:
    """The watcher, with the failures of ``id-0`` to ``id-2`` in its backlog."""
    for number in range(3):
        fails(number, task_id=f"id-{number}")
    return pool.plugin._here().watcher


def failures(pool: Pool) -> dict[str, list[Failure]]:
    """What stands in the spool, by task id; nothing is written for it."""
    flush, pool.recorder.write_waiting = pool.recorder.write_waiting, None
    found: dict[str, list[Failure]] = {}
    for failure in pool.written(Failure):
        found.setdefault(failure.task_id, []).append(failure)
    pool.recorder.write_waiting = flush
    return found


def killed(pool: Pool, folder: Path) -> list[Failure]:
    """What would be said of the process if it were killed now."""
    box = folder / "copy.box"
    shutil.copy(pool.recorder.settings.spool_folder / f"{pool.recorder.process.uid}.box", box)
    found = adopt(pool.recorder.process, box, time.time(), SourceLines(None))  # type: ignore[arg-type]
    return [record for record in found if isinstance(record, Failure)]


def test_each_failure_is_written_once_with_what_was_its_own(pool: Pool, fails: Callable[..., None]) -> None:
    began_s = time.time()
    for number in range(100):
        fails(number, f"order {number}", task_id=f"id-{number}")
    pool.recorder.flush()
    found = failures(pool)
    assert len(found) == 100 + repeats.FULL_A_MINUTE
    assert {len(records) for records in found.values()} == {1}
    at_s = began_s
    for number in range(100):
        [failure] = found[f"id-{number}"]
        assert failure.capture is not None
        assert failure.task is not None
        assert failure.duration_s is not None
        assert failure.exception is not None
        row = failure.capture.heap[failure.capture.args]
        assert [failure.capture.heap[ref].value for ref in row.items] == [number, f"order {number}"]
        assert failure.exception.message == "no price for this one"
        assert (failure.retries, failure.task.queue, failure.task.root_id) == (2, "bakery", "root")
        assert at_s <= failure.at_s <= time.time(), "when it failed, not when it was written"
        at_s = failure.at_s
        assert 0 < failure.duration_s < 10
    [totals] = pool.totals("work")
    assert totals.failed == 100 + repeats.FULL_A_MINUTE


def test_a_killed_process_leaves_none_out(pool: Pool, fails: Callable[..., None], tmp_path: Path) -> None:
    for number in range(37):
        fails(number, task_id=f"id-{number}")
    found = failures(pool)
    waiting = [f"id-{number}" for number in range(37) if f"id-{number}" not in found]
    assert waiting, "some wait"
    last_words = killed(pool, tmp_path)
    assert sorted(failure.task_id for failure in last_words) == sorted(waiting)
    pool.recorder.flush()
    whole = failures(pool)
    for failure in last_words:
        assert (failure.outcome, failure.name, failure.witness) == (Outcome.FAILED, "work", "box")
        assert failure.id == whole[failure.task_id][0].id, "the same failure, whoever tells of it"
        assert "before the error's words" in failure.note
    assert killed(pool, tmp_path) == [], "nothing waits any more"


def test_one_that_is_killed_before_its_run_is_over_has_failed(
    pool: Pool, fails: Callable[..., None], tmp_path: Path
) -> None:
    fails(1, task_id="waits")
    token = pool.recorder.run_started(Kind.TASK, "work", task_id="at it", retries=1)
    assert [(one.task_id, one.outcome) for one in killed(pool, tmp_path)] == [
        ("at it", Outcome.LOST),
        ("waits", Outcome.FAILED),
    ]
    assert pool.recorder.box is not None
    place = pool.recorder.box.failed()
    assert place is not None
    assert pool.recorder.box.failed() is None, "once"
    assert {one.outcome for one in killed(pool, tmp_path)} == {Outcome.FAILED}
    pool.recorder.box.told(place)
    assert {(one.task_id, one.outcome) for one in killed(pool, tmp_path)} == {
        ("at it", Outcome.LOST),
        ("waits", Outcome.FAILED),
    }
    pool.recorder.run_ended(token, "FAILURE", failed=True)
    pool.recorder.flush()
    assert killed(pool, tmp_path) == []


def test_places_in_the_box_come_back(pool: Pool, fails: Callable[..., None]) -> None:
    box = pool.recorder.box
    assert box is not None
    pool.recorder.flush()
    free = len(box._free)
    for number in range(500):
        fails(number, task_id=f"id-{number}")
    pool.recorder.flush()
    assert len(box._free) == free


def test_what_can_change_does_not_wait(pool: Pool, fails: Callable[..., None]) -> None:
    basket = [1, 2]
    fails(basket, task_id="changes")
    basket.append(3)
    [failure] = failures(pool)["changes"]
    assert failure.capture is not None
    assert failure.capture.brief
    [basket_ref] = failure.capture.heap[failure.capture.args].items
    assert failure.capture.heap[basket_ref].length == 2


@pytest.mark.parametrize(
    ("args", "kwargs", "may"),
    [
        ((1, "a", None, 2.5, True), {}, True),
        ([1], None, True),
        ((), {"order": 7}, True),
        ((), {"order": []}, False),
        ((object(),), {}, False),
        ((type("Text", (str,), {})("a"),), {}, False),
        ((b"bytes",), {}, False),
        (("x" * 5000,), {}, False),
        (tuple(range(500)), {}, False),
        (None, {}, False),
        ((), [("order", 7)], False),
    ],
)
def test_plain_values_may_wait(args: Any, kwargs: Any, may: bool) -> None:
    assert may_wait(args, kwargs) is may


def test_a_time_limit_while_they_are_written_is_the_tasks_and_loses_none(
    pool: Pool, three_wait: FailureWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = three_wait._emit
    struck: list[Any] = []

    def strikes(record: Any) -> None:
        write(record)
        if not struck:
            struck.append(record)
            raise SoftTimeLimitExceeded

    monkeypatch.setattr(three_wait, "_emit", strikes)
    assert pool.recorder.write_waiting is not None
    with pytest.raises(SoftTimeLimitExceeded):
        pool.recorder.write_waiting()
    pool.recorder.write_waiting()
    found = failures(pool)
    assert {f"id-{number}" for number in range(3)} <= set(found)
    assert len({failure.id for failure in found["id-0"]}) == 1, "twice is one"


def test_a_run_that_is_being_killed_does_not_wait(pool: Pool, fails: Callable[..., None]) -> None:
    assert fails
    # The interpreter may tell the same call by another instruction, once it has seen it often.
    ids = [f"exits-{number}" for number in range(2 * repeats.FULL_A_MINUTE + 1)]
    for task_id in ids:
        with pytest.raises(SystemExit):
            pool.inside(lambda: sys.exit(3), task_id=task_id)
    found = failures(pool)
    assert [found[task_id][0].outcome for task_id in ids] == [Outcome.LOST] * len(ids)
    assert found[ids[-1]][0].note.startswith("in brief")


def test_an_error_of_ours_costs_one_and_is_counted(
    pool: Pool, three_wait: FailureWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = three_wait._emit
    before = own_errors["writing a failure that waited"]

    def breaks(record: Any) -> None:
        if record.task_id == "id-1":
            raise RuntimeError("ours")
        write(record)

    monkeypatch.setattr(three_wait, "_emit", breaks)
    assert pool.recorder.write_waiting is not None
    pool.recorder.write_waiting()
    assert {"id-0", "id-2"} <= set(failures(pool))
    assert own_errors["writing a failure that waited"] == before + 1
    del own_errors["writing a failure that waited"]


def test_a_process_that_a_task_forks_writes_none_of_them(pool: Pool, fails: Callable[..., None]) -> None:
    fails(1, task_id="parents")
    child = os.fork()
    if not child:
        try:
            pool.recorder.flush()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert "parents" not in failures(pool)
    pool.recorder.flush()
    assert len(failures(pool)["parents"]) == 1
