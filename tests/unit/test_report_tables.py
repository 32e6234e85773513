"""Text for terminals: what hostile strings, narrow screens and missing values look like."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.cli import report
from celery_trace.cli.doctor import Finding
from celery_trace.cli.report import Column, Style, columns_of, plain, shortened, table
from celery_trace.model import (
    ChainLink,
    ExceptionInfo,
    FailureDetail,
    FrameView,
    LastSample,
    Line,
    LocalValue,
    Outcome,
    ProcessView,
    Role,
    Site,
    TypeCount,
    Verdict,
    WorkerView,
)
from tests.support.alerting import leak

NOW_S = 1_700_000_000.0
PLAIN = Style(now_s=NOW_S)
HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\u202eevil\u2066 \U000e0041 <b>\udc80"


def detail(**more: Any) -> FailureDetail:
    frame = FrameView(
        file="/srv/shop/tasks.py", line=9, function="charge", code="    return 1 / 0", context=[(9, "return 1 / 0")],
        in_app=True, folded=3,
        locals=[
            LocalValue(name="context_data", type="str", value="'Hello'", cut=0, redacted=False),
            LocalValue(name="password", type="str", value="", cut=0, redacted=True),
            LocalValue(name="rows", type="list", value="[1, 2]", cut=98, redacted=False),
        ],
    )  # fmt: skip
    values: dict[str, Any] = {
        "id": "f1", "kind": "task", "name": "shop.charge", "task_id": "t1", "retries": 2, "outcome": Outcome.FAILED,
        "exception": ExceptionInfo("ZeroDivisionError", "builtins", "division by zero"), "fingerprint": "fp",
        "count": 4,
        "worker": "w1@h1", "pid": 7, "hostname": "h1", "at": NOW_S - 30, "live": True, "live_until": NOW_S + 60,
        "frames": [frame], "args": [LocalValue(name="", type="int", value="5", cut=0, redacted=False)], "kwargs": [],
        "request": None, "memory": None, "cut_values": 98, "redacted_values": 1,
        "chain": [
            ChainLink(type="ZeroDivisionError", module="builtins", message="division by zero", link="", parent=-1,
                      frames=[frame], frames_cut=2),
            ChainLink(type="KeyError", module="builtins", message="'x'", link="cause", parent=0, frames=[]),
        ],
    }  # fmt: skip
    return FailureDetail(**{**values, **more})


def test_a_table_lines_up_and_takes_no_more_than_it_needs() -> None:
    text = table([Column("NAME"), Column("RUNS", right=True)], [["a", 5], ["日本", 12]], PLAIN)
    assert text == "NAME  RUNS\n────  ────\na        5\n日本    12\n"


def test_an_empty_table_says_so() -> None:
    assert report.leaks([], PLAIN).startswith("No leak was found.")
    assert "CELERY_TRACE=1" in report.workers([], PLAIN)
    assert report.failures([], PLAIN) == "No failure was recorded.\n"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_table_fits_the_screen_by_cutting_its_elastic_columns(width: int) -> None:
    columns = [Column("ID"), Column("TEXT", elastic=True), Column("WHERE", elastic=True)]
    text = table(columns, [["id1", "long " * 60, "/a/long/path" * 9 + "/tasks.py:7"]], Style(now_s=0, width=width))
    assert max(columns_of(line) for line in text.splitlines()) <= width
    assert "tasks.py:7" in text  # the end of a path says most


@given(st.text(max_size=60), st.integers(8, 40))
def test_a_shortened_text_is_short_enough_or_whole(text: str, columns: int) -> None:
    short = shortened(plain(text), columns)
    assert short == plain(text) or len(short) <= columns


@given(st.text(alphabet=st.characters(), max_size=50))
def test_no_text_can_steer_the_terminal(text: str) -> None:
    shown = plain(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode("utf-8")


def test_hostile_strings_are_shown_as_escapes_everywhere() -> None:
    from celery_trace.model import AlertView

    views = [
        report.leaks([leak(5, name=HOSTILE, file=HOSTILE)], PLAIN),
        report.leak(leak(5, name=HOSTILE, code=HOSTILE, retained_by=[HOSTILE], note=HOSTILE), PLAIN),
        report.failures([detail(name=HOSTILE, exception=ExceptionInfo(HOSTILE, "", HOSTILE), worker=HOSTILE)], PLAIN),
        report.failure(
            detail(name=HOSTILE, note=HOSTILE, exception=ExceptionInfo(HOSTILE, "", HOSTILE), task_id=HOSTILE), PLAIN
        ),
        report.alerts(
            [
                AlertView(
                    id="a", rule=HOSTILE, subject=HOSTILE, state="firing", severity="info", text=HOSTILE, value=1,
                    threshold=0, since=1, fired_at=1, resolved_at=None, acknowledged_by=HOSTILE,
                )
            ],
            PLAIN,
        ),
        report.top_differences([Site(file=HOSTILE, line=1, code=HOSTILE, bytes=1, blocks=1)], HOSTILE, PLAIN),
    ]  # fmt: skip
    for view in views:
        assert "\x1b" not in view
        assert "\x07" not in view
        assert "\r" not in view
        assert "\u202e" not in view
        assert "\\x1b" in view
        view.encode("utf-8")


def test_colours_are_only_where_they_were_asked_for() -> None:
    found = leak(5000)
    assert "\x1b" not in report.leaks([found], PLAIN)
    assert "\x1b[31mleaking\x1b[0m" in report.leaks([found], Style(now_s=NOW_S, colour=True))


def test_files_are_shown_relative_to_the_project_and_others_whole() -> None:
    style = Style(now_s=NOW_S, root="/srv")
    assert style.place("/srv/shop.py", 7) == "shop.py:7"
    assert style.place("/srvother/shop.py", 7) == "/srvother/shop.py:7"
    assert style.place("<string>", 1) == "<string>:1"
    assert style.place("", 0) == "–"
    assert style.place("/opt/v/lib/python3.12/site-packages/celery/app/trace.py", 5) == "celery/app/trace.py:5"


@pytest.mark.parametrize(
    ("at_s", "words"),
    [(NOW_S - 5, "5 s ago"), (NOW_S, "1 s ago"), (NOW_S - 7200, "2 h ago"), (NOW_S + 60, "in 60 s"), (None, "–")],
)
def test_moments_are_told_from_where_the_reader_stands(at_s: float | None, words: str) -> None:
    assert PLAIN.ago(at_s) == words


def test_a_leak_is_told_with_line_holder_and_types() -> None:
    text = report.leak(
        leak(
            5000, retained_by=["shop._cache (dict)", "'orders' (list)"], types=[TypeCount("Order", 12, 3000)],
            traceback=[Line("/srv/shop.py", 7, "leak", "x"), Line("/srv/run.py", 3, "main", "leak()")],
            bounded="lru_cache",
        ),
        PLAIN,
    )  # fmt: skip
    assert "keeps      4.9 KiB a run" in text
    assert "/srv/shop.py:7 in leak\n    _cache.append(x)" in text
    assert "called from\n  /srv/run.py:3 in main" in text
    assert "Held by\n  shop._cache (dict)\n    └ 'orders' (list)" in text
    assert "Order" in text
    assert "bounded by lru_cache" in text


def test_a_leaked_descriptor_is_counted_and_not_weighed() -> None:
    found = leak(0, resource="fds", native=True, file="", line=0, kept_blocks_per_run=1.0, verdict=Verdict.LEAKING)
    assert "1 fds" in report.leaks([found], PLAIN)
    assert "native (fds)" in report.leaks([found], PLAIN)


def test_ended_processes_are_counted_by_the_way_they_ended() -> None:
    processes = [
        ProcessView(
            uid="u", pid=pid, role=Role.CHILD, started_at=1.0, ended_at=ended_at, ended_how=how, memory=None, at=None
        )
        for pid, (ended_at, how) in enumerate([(None, ""), (5.0, "exit"), (6.0, "killed"), (7.0, "exit")])
    ]  # fmt: skip
    worker = WorkerView(
        name="w1@h1", host="h1", role="child", alive=True, rss_bytes=0, last_seen=NOW_S, overhead_ratio=0.0,
        processes=processes,
    )  # fmt: skip
    lines = [line.strip() for line in report.workers([worker], PLAIN).splitlines()]
    assert "3 ended: 2 by exit, 1 killed" in lines


def test_a_failure_is_told_with_its_chain_and_what_was_left_out() -> None:
    text = report.failure(detail(), PLAIN)
    for part in (
        "task shop.charge: failed",
        "still held there until",
        "t1, 2 retries before",
        "4 of the same (fingerprint fp)",
        "Arguments\n  5",
        "/srv/shop/tasks.py:9 in charge (3 more of the same)",
        "> return 1 / 0",
        "context_data = 'Hello'",
        "password = (redacted)",
        "rows = [1, 2] … 98 cut",
        "… 2 frames were cut",
        "caused by KeyError: 'x'",
        "98 values were cut, 1 redacted.",
    ):
        assert part in text


def test_a_killed_task_is_told_with_its_last_stack() -> None:
    sample = LastSample(at_s=NOW_S, age_s=0.14, stack=[Line("/srv/shop/tasks.py", 9, "charge", "time.sleep(9)")])
    lost = detail(outcome=Outcome.LOST, exception=None, frames=[], chain=[], last_sample=sample)
    text = report.failure(lost, PLAIN)
    assert "task shop.charge: lost" in text
    assert "Last seen 140 ms before its end, innermost first\n  /srv/shop/tasks.py:9 in charge" in text


def test_the_stack_of_a_black_box_is_not_told_twice() -> None:
    sample = LastSample(at_s=NOW_S, age_s=0.14, stack=[Line("/srv/shop/tasks.py", 9, "charge", "")])
    frame = FrameView(file="/srv/shop/tasks.py", line=9, function="charge", code="", context=[], in_app=True, locals=[])
    lost = detail(outcome=Outcome.LOST, exception=None, frames=[frame], chain=[], last_sample=sample)
    assert report.failure(lost, PLAIN).count("tasks.py:9 in charge") == 1


def test_a_failure_with_text_alone_shows_it() -> None:
    text = report.failure(detail(chain=[], frames=[], traceback_text="Traceback …\n  boom\x1b[2J"), PLAIN)
    assert "Traceback …\n  boom\\x1b[2J" in text


def test_the_top_ten_differences_are_ten() -> None:
    top = [Site(file="/srv/shop.py", line=line, code="x = []", bytes=2048, blocks=2) for line in range(1, 15)]
    text = report.top_differences(top, "task shop.leak", Style(now_s=0, root="/srv"), kept_bytes=30_000)
    assert text.startswith("[ Top 10 differences ] task shop.leak (kept 29.3 KiB in all)\n")
    assert text.count("shop.py:") == 10
    assert "+2.0 KiB in +2 blocks, 1.0 KiB each  shop.py:1" in text
    assert "nothing stayed" in report.top_differences([], "x", PLAIN)


def test_what_the_doctor_found_has_its_advice_below() -> None:
    text = report.examination(
        [Finding(level="ok", check="python", found="3.11"),
         Finding(level="fail", check="store", found="gone", advice="Look.")],
        PLAIN,
    )  # fmt: skip
    assert (
        text
        == "ok    python  3.11\nfail  store   gone\n              → Look.\n\n2 checks: 1 failed, 0 with a warning.\n"
    )
