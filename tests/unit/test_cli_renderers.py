"""Text for terminals: what hostile strings, narrow screens and missing values look like."""

from __future__ import annotations

from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from celery_trace.cli.findings import Finding
from celery_trace.cli.renderers import alerts, checkup, failures, leaks, shells, workers
from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import TableColumn, grid, shortened, table
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
    ShellLine,
    ShellView,
    TypeCount,
    Verdict,
    WorkerView,
)
from celery_trace.text.escape import escaped
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


def worker(name: str = "w1@h1", running: str = "", processes: list[ProcessView] | None = None) -> WorkerView:
    living = ProcessView(
        uid="u", pid=7, role=Role.CHILD, started_at=1.0, ended_at=None, ended_how="", memory=None, at=NOW_S,
        running=running,
    )  # fmt: skip
    return WorkerView(
        name=name, host="h1", role="child", alive=True, rss_bytes=0, last_seen=NOW_S, overhead_ratio=0.0,
        processes=processes if processes is not None else [living],
    )  # fmt: skip


def test_a_table_lines_up_and_takes_no_more_than_it_needs() -> None:
    text = table([TableColumn("NAME"), TableColumn("RUNS", right=True)], [["a", 5], ["日本", 12]], PLAIN)
    assert text == "NAME  RUNS\n──────────\na        5\n日本    12\n"


def test_an_empty_table_says_so() -> None:
    assert leaks.leaks([], PLAIN).startswith("No leaks.")
    assert "CELERY_TRACE=1" in workers.workers([], PLAIN)
    assert failures.failures([], PLAIN) == "No failures.\n"


DEEP = "deep/" * 20


def _all_tables(style: Style) -> list[str]:
    return [
        leaks.leaks(
            [leak(5000, name="shop.tasks.remember_order", file="/srv/shop/" + "deep/" * 20 + "tasks.py")], style
        ),
        failures.failures([detail(name="shop.tasks.charge_" + "x" * 90, worker="w1@host" + "y" * 40)], style),
        workers.workers([worker(name="日本" * 30, running="shop.tasks.slow")], style),
        checkup.examination([Finding(level="warn", check="disk", found="long " * 40, advice="Look " * 40)], style),
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("colour", [False, True])
def test_no_row_is_wider_than_the_terminal(width: int, colour: bool) -> None:
    for text in _all_tables(Style(now_s=NOW_S, width=width, colour=colour)):
        assert max(cell_len(click.unstyle(line)) for line in text.splitlines()) <= width


def test_what_is_piped_is_whole_plain_and_the_same_each_time() -> None:
    once, again = _all_tables(PLAIN), _all_tables(PLAIN)
    assert once == again
    assert f"/srv/shop/{DEEP}tasks.py:7" in once[0]
    assert "Look " * 39 + "Look" in once[3]
    assert all(line == line.rstrip() and "\x1b" not in line for text in once for line in text.splitlines())


def test_a_narrow_terminal_cuts_names_in_their_middle_and_leaves_spare_columns_out() -> None:
    columns = [TableColumn("ID", whole=True), TableColumn("RUNS", spare=True), TableColumn("WHERE", elastic=True)]
    rows = [["0123456789abcdef", 5, "/a/long/path" * 9 + "/tasks.py:7"]]
    wide = table(columns, rows, Style(now_s=0, width=60))
    assert wide.splitlines()[2].startswith("0123456789abcdef  5     /a/long/path")
    assert wide.splitlines()[2].endswith("/tasks.py:7")
    narrow = table(columns, rows, Style(now_s=0, width=32)).splitlines()
    assert narrow[0] == "ID                WHERE"
    assert narrow[2].endswith("ks.py:7")
    assert narrow[3] == "Hidden columns: RUNS."
    assert table(columns, rows, Style(now_s=0, width=16)).count("abcdef") <= 1  # an id is folded, not cut


def test_cells_without_a_head_line_up() -> None:
    assert grid([["a", "b", "c"], [("long", "red"), "", "d"]], PLAIN) == "a     b  c\nlong     d\n"


@given(st.text(max_size=60), st.integers(8, 40))
def test_a_shortened_text_is_short_enough_or_whole(text: str, columns: int) -> None:
    short = shortened(escaped(text), columns)
    assert short == escaped(text) or cell_len(short) <= columns
    assert cell_len(short) >= min(cell_len(escaped(text)), columns - 2)


def test_hostile_strings_are_shown_as_escapes_everywhere() -> None:
    from celery_trace.model import AlertView

    views = [
        leaks.leaks([leak(5, name=HOSTILE, file=HOSTILE)], PLAIN),
        leaks.leak(leak(5, name=HOSTILE, code=HOSTILE, retained_by=[HOSTILE], note=HOSTILE), PLAIN),
        failures.failures([detail(name=HOSTILE, exception=ExceptionInfo(HOSTILE, "", HOSTILE), worker=HOSTILE)], PLAIN),
        failures.failure(
            detail(name=HOSTILE, note=HOSTILE, exception=ExceptionInfo(HOSTILE, "", HOSTILE), task_id=HOSTILE), PLAIN
        ),
        alerts.alerts(
            [
                AlertView(
                    id="a", rule=HOSTILE, subject=HOSTILE, state="firing", severity="info", text=HOSTILE, value=1,
                    threshold=0, since=1, fired_at=1, resolved_at=None, acknowledged_by=HOSTILE,
                )
            ],
            PLAIN,
        ),
        workers.workers([worker(name=HOSTILE, running=HOSTILE)], PLAIN),
        shells.shell(
            ShellView(
                id="s", failure="f1", mode="live", started_at=1.0, ended_at=None, users=[HOSTILE],
                lines=[ShellLine(seq=1, at=1.0, user=HOSTILE, kind="input", text=HOSTILE)],
            ),
            PLAIN,
        ),
        checkup.examination([Finding(level="fail", check="store", found=HOSTILE, advice=HOSTILE)], PLAIN),
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
    assert "\x1b" not in leaks.leaks([found], PLAIN)
    assert "\x1b[31mleaking\x1b[0m" in leaks.leaks([found], Style(now_s=NOW_S, colour=True))


def test_files_are_shown_relative_to_the_project_and_others_whole() -> None:
    style = Style(now_s=NOW_S, root="/srv")
    assert style.place("/srv/shop.py", 7) == "shop.py:7"
    assert style.place("/srvother/shop.py", 7) == "/srvother/shop.py:7"
    assert style.place("<string>", 1) == "<string>:1"
    assert style.place("", 0) == "–"
    assert style.place("/opt/v/lib/python3.12/site-packages/celery/app/trace.py", 5) == "celery/app/trace.py:5"


@pytest.mark.parametrize(
    ("at_s", "words"),
    [(NOW_S - 5, "5 s ago"), (NOW_S, "now"), (NOW_S - 7200, "2 h ago"), (NOW_S + 60, "in 60 s"), (None, "–")],
)
def test_moments_are_told_from_where_the_reader_stands(at_s: float | None, words: str) -> None:
    assert PLAIN.ago(at_s) == words


def test_a_leak_is_told_with_line_holder_and_types() -> None:
    text = leaks.leak(
        leak(
            5000, retained_by=["shop._cache (dict)", "'orders' (list)"], types=[TypeCount("Order", 12, 3000)],
            traceback=[Line("/srv/shop.py", 7, "leak", "x"), Line("/srv/run.py", 3, "main", "leak()")],
            bounded="lru_cache",
        ),
        PLAIN,
    )  # fmt: skip
    assert "retained   4.9 KiB per run" in text
    assert "/srv/shop.py:7 in leak\n    _cache.append(x)" in text
    assert "called from\n  /srv/run.py:3 in main" in text
    assert "Held by\n  shop._cache (dict)\n    └ 'orders' (list)" in text
    assert "Order" in text
    assert "bound      lru_cache" in text


def test_a_leaked_descriptor_is_counted_and_not_weighed() -> None:
    found = leak(0, resource="fds", native=True, file="", line=0, kept_blocks_per_run=1.0, verdict=Verdict.LEAKING)
    assert "1 fds" in leaks.leaks([found], PLAIN)
    assert "native (fds)" in leaks.leaks([found], PLAIN)


def test_ended_processes_are_counted_by_the_way_they_ended() -> None:
    processes = [
        ProcessView(
            uid="u", pid=pid, role=Role.CHILD, started_at=1.0, ended_at=ended_at, ended_how=how, memory=None, at=None
        )
        for pid, (ended_at, how) in enumerate([(None, ""), (5.0, "exit"), (6.0, "killed"), (7.0, "exit")])
    ]  # fmt: skip
    lines = [line.strip() for line in workers.workers([worker(processes=processes)], PLAIN).splitlines()]
    assert "3 ended: 2 by exit, 1 killed" in lines


def test_a_failure_is_told_with_its_chain_and_what_was_left_out() -> None:
    text = failures.failure(detail(), PLAIN)
    for part in (
        "task shop.charge: failed",
        "still held there until",
        "t1, 2 retries before",
        "4 alike (fingerprint fp)",
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
    text = failures.failure(lost, PLAIN)
    assert "task shop.charge: lost" in text
    assert "Last sample, 140 ms before its end, innermost first\n  /srv/shop/tasks.py:9 in charge" in text


def test_the_stack_of_a_black_box_is_not_told_twice() -> None:
    sample = LastSample(at_s=NOW_S, age_s=0.14, stack=[Line("/srv/shop/tasks.py", 9, "charge", "")])
    frame = FrameView(file="/srv/shop/tasks.py", line=9, function="charge", code="", context=[], in_app=True, locals=[])
    lost = detail(outcome=Outcome.LOST, exception=None, frames=[frame], chain=[], last_sample=sample)
    assert failures.failure(lost, PLAIN).count("tasks.py:9 in charge") == 1


def test_a_failure_with_text_alone_shows_it() -> None:
    text = failures.failure(detail(chain=[], frames=[], traceback_text="Traceback …\n  boom\x1b[2J"), PLAIN)
    assert "Traceback …\n  boom\\x1b[2J" in text


def test_what_the_doctor_found_has_its_advice_below() -> None:
    text = checkup.examination(
        [Finding(level="ok", check="python", found="3.11"),
         Finding(level="fail", check="store", found="gone", advice="Look.")],
        PLAIN,
    )  # fmt: skip
    assert (
        text
        == "ok    python  3.11\nfail  store   gone\n              → Look.\n\n2 checks: 1 failed, 0 with a warning.\n"
    )
