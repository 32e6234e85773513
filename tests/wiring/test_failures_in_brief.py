"""Failures that repeat are captured in brief: each is written at once, with what is its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from celery_trace.failures import repeats
from celery_trace.model import Failure, Outcome
from tests.support.fixtures_pool import Pool, inside_of_work
from tests.support.spooled import written


@pytest.fixture
def fails(pool: Pool) -> Callable[..., None]:
    """Let ``work`` fail with those arguments, after as many failures as are captured in full at once."""
    pool.plugin._here().watcher._writer.repeats.charge(2 * repeats.CREDIT_S)

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


def failures(pool: Pool) -> dict[str, list[Failure]]:
    """What is in the spool, by task id, as a kill at this moment would leave it: nothing is flushed."""
    found: dict[str, list[Failure]] = {}
    for record in written(pool.recorder.settings.spool_folder):
        if isinstance(record, Failure):
            found.setdefault(record.task_id, []).append(record)
    return found


def test_each_failure_is_written_at_once_with_what_is_its_own(pool: Pool, fails: Callable[..., None]) -> None:
    began_s = time.time()
    for number in range(100):
        fails(number, f"order {number}", task_id=f"id-{number}")
    found = failures(pool)
    assert len(found) == 100 + repeats.FULL_A_MINUTE
    assert {len(records) for records in found.values()} == {1}
    at_s = began_s
    for number in range(100):
        [failure] = found[f"id-{number}"]
        assert failure.capture is not None
        assert failure.capture.brief
        assert failure.task is not None
        assert failure.duration_s is not None
        assert failure.exception is not None
        row = failure.capture.heap[failure.capture.args]
        assert [failure.capture.heap[ref].value for ref in row.items] == [number, f"order {number}"]
        assert failure.exception.message == "no price for this one"
        assert (failure.retries, failure.task.queue, failure.task.root_id) == (2, "bakery", "root")
        assert at_s <= failure.at_s <= time.time()
        at_s = failure.at_s
        assert 0 < failure.duration_s < 10
    assert len({records[0].fingerprint for records in found.values()}) == 1
    [totals] = pool.totals("work")
    assert totals.failed == 100 + repeats.FULL_A_MINUTE


def test_arguments_that_the_task_changes_later_are_recorded_as_they_were(
    pool: Pool, fails: Callable[..., None]
) -> None:
    basket = [1, 2]
    fails(basket, task_id="changes")
    basket.append(3)
    [failure] = failures(pool)["changes"]
    assert failure.capture is not None
    assert failure.capture.brief
    [basket_ref] = failure.capture.heap[failure.capture.args].items
    assert failure.capture.heap[basket_ref].length == 2


def test_a_run_that_is_being_killed_is_recorded_in_brief_too(pool: Pool, fails: Callable[..., None]) -> None:
    assert fails
    # The interpreter may run the same call by another instruction, once it has seen it often.
    ids = [f"exits-{number}" for number in range(2 * repeats.FULL_A_MINUTE + 1)]
    for task_id in ids:
        with pytest.raises(SystemExit):
            pool.inside(lambda: sys.exit(3), task_id=task_id)
    found = failures(pool)
    assert [found[task_id][0].outcome for task_id in ids] == [Outcome.LOST] * len(ids)
    assert found[ids[-1]][0].note.startswith("in brief")
    assert len(found[ids[-1]][0].kills) == 1
