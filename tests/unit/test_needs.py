"""What a run needs, by the peaks that were counted, and the limits that follow."""

from __future__ import annotations

import pytest

from celery_trace.heap.needs import HEADROOM, Need, bucket_bytes, need_of, propose

MIB = 1024 * 1024


def test_a_bucket_is_a_quarter_of_an_octave_from_a_kibibyte_on() -> None:
    assert [bucket_bytes(bucket) for bucket in (0, 4, 8, 40)] == [0, 2048, 4096, MIB]
    assert bucket_bytes(41) / bucket_bytes(40) == pytest.approx(2**0.25)


def test_half_and_99_in_100_of_the_runs_of_all_processes_held_no_more() -> None:
    need = need_of([{0: 10, 40: 40}, {40: 48, 44: 1, 60: 1}])
    assert need == Need(100, bucket_bytes(40), bucket_bytes(44), bucket_bytes(60))


def test_runs_without_a_pick_need_nothing_that_counts_and_no_runs_say_nothing() -> None:
    assert need_of([{0: 30}]) == Need(30, 0, 0, 0)
    assert need_of([]) is None
    assert need_of([{}, {}]) is None


def test_limits_follow_from_what_the_largest_task_needs() -> None:
    proposal = propose(
        name="shop.report", need=Need(500, 20 * MIB, 180 * MIB, 400 * MIB), base_bytes=60 * MIB, main_bytes=70 * MIB,
        concurrency=4, room_bytes=1024 * MIB,
    )  # fmt: skip
    child_mib = (60 + 180) * HEADROOM
    assert proposal.child_kib == child_mib * 1024
    assert proposal.container_bytes == (70 + 4 * child_mib) * MIB
    assert proposal.fits == (1024 - 70) // child_mib
    assert proposal.how == (
        "A child: (60.0 MiB at its start + 180.0 MiB for a run of shop.report, p99) × 1.25 = 300.0 MiB; "
        "the container: 70.0 MiB for the main process + 4 × 300.0 MiB = 1.2 GiB"
    )


def test_a_limit_that_is_too_small_for_the_main_process_fits_no_child() -> None:
    need = Need(500, MIB, MIB, MIB)
    found = propose(name="t", need=need, base_bytes=MIB, main_bytes=9 * MIB, concurrency=1, room_bytes=5 * MIB)
    assert found.fits == 0
    unknown = propose(name="t", need=need, base_bytes=MIB, main_bytes=9 * MIB, concurrency=1, room_bytes=None)
    assert unknown.fits is None
