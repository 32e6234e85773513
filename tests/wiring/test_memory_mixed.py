"""Several names take turns in one process, as in any worker: each is told its own growth, holder and types."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest

from celery_trace.leaks import leak_table
from celery_trace.model import Kind, Role, Verdict
from tests.support.memory_runs import Bench

_receipts: list[Any] = []
_texts: list[bytes] = []
_latest: dict[str, Any] = {}


class Receipt:
    def __init__(self, number: int) -> None:
        self.number = number
        self.lines = [f"order {number}, line {line}" for line in range(60)]


@functools.lru_cache(maxsize=2_000)
def _prices(customer: int) -> tuple[str, ...]:
    return tuple(f"customer {customer}, product {number}" for number in range(20))


def keeps_receipts(number: int) -> None:
    _receipts.append(Receipt(number))


def keeps_texts(number: int) -> None:
    _texts.append(bytes(5_000 + number % 2))


def fills_a_cache(number: int) -> None:
    _prices(number)


def replaces(number: int) -> None:
    _latest["report"] = [f"row {number}" for number in range(2_000)]


@pytest.fixture(autouse=True)
def begins_empty() -> None:
    _receipts.clear()
    _texts.clear()
    _latest.clear()
    _prices.cache_clear()


def only_raises(number: int) -> None:
    numbers = [number] * 20_000
    raise ValueError(f"{len(numbers)} numbers")


def test_an_error_that_is_held_until_the_next_run_ends_accuses_nobody_and_hides_nothing() -> None:
    """As billiard's loop holds the last result: a failed run's traceback, its frames and their locals."""
    bench, held = Bench(role=Role.CHILD), None
    tasks = [keeps_receipts, keeps_receipts, only_raises, replaces]
    chooser = random.Random(1)
    for number in range(900):
        task = chooser.choice(tasks)
        token = bench.probe.before(Kind.TASK, task.__name__)
        error = None
        try:
            task(number)
        except ValueError as raised:
            error = raised
        bench.probe.after(token, failed=error is not None)
        held, error, token = error, None, None
    del held
    verdicts = {(row.name, row.verdict) for row in bench.close()}
    assert ("keeps_receipts", Verdict.LEAKING) in verdicts
    assert [name for name, verdict in verdicts if verdict is Verdict.LEAKING] == ["keeps_receipts"]


@pytest.fixture
def rows() -> dict[str, list[Any]]:
    """What is known of each after many runs that took turns in a child of a worker."""
    bench = Bench(role=Role.CHILD)
    for number in range(260):
        for task in (keeps_receipts, fills_a_cache, keeps_texts, replaces):
            bench.run(task, 1, start=number)
    bench.probe.close()
    found: dict[str, list[Any]] = {}
    for row in leak_table(bench.windows, now_s=0.0):
        found.setdefault(row.name, []).append(row)
    return found


def test_each_leak_is_told_its_own_holder_and_its_own_types(rows: dict[str, list[Any]]) -> None:
    receipts, texts = rows["keeps_receipts"][0], rows["keeps_texts"][0]
    assert (receipts.verdict, texts.verdict) == (Verdict.LEAKING, Verdict.LEAKING)
    assert receipts.retained_by[1] == "_receipts: list"
    assert any(row.type.endswith("Receipt") for row in receipts.types)
    assert texts.retained_by[1] == "_texts: list"
    assert [row.type for row in texts.types] == ["bytes"]
    assert texts.kept_bytes_per_run == pytest.approx(5_033, rel=0.15)


def test_a_cache_that_fills_beside_a_leak_is_known_by_its_bound(rows: dict[str, list[Any]]) -> None:
    assert {row.verdict for row in rows["fills_a_cache"]} == {Verdict.GROWING}
    assert all("lru_cache" in row.bounded for row in rows["fills_a_cache"])


def test_a_value_that_is_replaced_beside_a_leak_is_not_leaking(rows: dict[str, list[Any]]) -> None:
    # A suspicion may be on its way to being refuted when the runs end.
    assert Verdict.LEAKING not in {row.verdict for row in rows.get("replaces", [])}
