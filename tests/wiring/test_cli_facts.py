"""``celery trace``: what each subcommand shows of a real store, as a table and as JSON, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_trace.cli.renderers.style import Style
from celery_trace.commands import SUBCOMMANDS, trace
from celery_trace.failures.capture import capture_exception
from celery_trace.model import (
    AlertView,
    ExceptionInfo,
    Failure,
    Kind,
    Outcome,
    ProcessRecord,
    Role,
    ShellLine,
    ShellView,
    TaskContext,
    failure_id,
)
from celery_trace.queries import Queries
from celery_trace.redaction import Redactor
from celery_trace.settings import Limits, Settings
from celery_trace.stores import Store, leak_rows, open_store
from celery_trace.text.commands import given_app
from tests.support import store_records as make

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs ``celery trace …`` in this process, against a trace_dir of its own."""

    def run_it(*words: str, **configuration: Any) -> Result:
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.update({"trace_dir": str(folder), **configuration})
        # Celery gives this prefix to all its commands: their options can come from the environment.
        context = CLIContext(app=app, no_color=True, workdir=None)
        return CliRunner().invoke(trace, list(words), obj=context, auto_envvar_prefix="CELERY_TRACE")

    return run_it


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    opened = open_store(Settings(dir=str(folder)))
    yield opened
    opened.close()


def failing(context_data: str, password: str) -> None:
    assert password
    raise ZeroDivisionError(f"division by zero near {context_data}")


@pytest.fixture
def filled(store: Store) -> Store:
    """A leak, two failures of one group, a lost task, an alert, a transcript."""
    now_s = time.time()
    try:
        failing("Hello", "hunter2-hunter2")
    except ZeroDivisionError as error:
        capture = capture_exception(error, limits=Limits(), redactor=Redactor(()))
    store.write(
        [
            make.process(started_at_s=now_s - 600),
            make.window("x1", at_s=now_s - 60, retained_by=["shop.seen (list)", "dict"]),
            make.window("x2", at_s=now_s - 30, stage="verdict", run_number=420),
            make.failure(
                "t1", at_s=now_s - 50, capture=capture, exception=ExceptionInfo("ZeroDivisionError", "builtins", "by 0")
            ),
            make.failure("t2", at_s=now_s - 20),
            make.failure("t3", at_s=now_s - 10, outcome=Outcome.LOST, exception=None, fingerprint="fp-lost"),
            make.sample(now_s - 5, 100 * 1024 * 1024, runs=7),
            make.run("r1", started_at_s=now_s - 5),
        ]
    )
    leak_rows.refresh(store, most_s=10)
    store.save_alert(
        AlertView(
            id="alert1", rule="leak", subject="shop", state="firing", severity="warning", text="It leaks.", value=2.0,
            threshold=1.0, since=now_s - 60, fired_at=now_s - 60, resolved_at=None,
        )
    )  # fmt: skip
    store.add_shell(ShellView(id="s1", failure="f1", mode="live", started_at=now_s, ended_at=None, users=["ada"]))
    store.add_shell_line("s1", ShellLine(seq=1, at=now_s, user="ada", kind="input", text="trace.context_data"))
    store.add_shell_line("s1", ShellLine(seq=2, at=now_s, user="", kind="output", text="'Hello'"))
    return store


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_leaks_are_shown_with_their_line(run: Run, filled: Store) -> None:
    result = run("leaks")
    assert result.exit_code == 0
    assert "leaking" in result.stdout
    assert "4.0 KiB" in result.stdout
    assert "/srv/shop/tasks.py:7" in result.stdout


def test_leaks_as_json_are_the_contracts_objects(run: Run, filled: Store) -> None:
    answer = parsed(run("leaks", "--format", "json", "--verdict", "leaking"))
    assert set(answer) == {"leaks", "next"}
    (leak,) = answer["leaks"]
    assert leak["kept_bytes_per_run"] == 4096
    assert leak["name"] == "shop.charge"
    assert (leak["file"], leak["line"]) == ("/srv/shop/tasks.py", 7)
    for key in ("id", "kind", "verdict", "native", "traceback", "types", "retained_by", "samples", "first_seen"):
        assert key in leak


def test_failures_come_newest_first_and_can_be_filtered(run: Run, filled: Store) -> None:
    everything = parsed(run("failures", "--format", "json"))["failures"]
    assert [failure["task_id"] for failure in everything] == ["t3", "t2", "t1"]
    lost = parsed(run("failures", "--format", "json", "--outcome", "lost"))["failures"]
    assert [failure["task_id"] for failure in lost] == ["t3"]
    assert parsed(run("failures", "--format", "json", "--since", "15s"))["failures"][0]["task_id"] == "t3"
    table = run("failures", "--each").stdout
    assert "ValueError: no such card" in table
    assert "lost" in table


def test_failures_are_listed_by_group_unless_single_ones_are_asked_for(run: Run, filled: Store) -> None:
    again = next(failure for failure in Queries(filled).failures().rows if failure.task_id == "t1")
    assert again.fingerprint
    groups = run("failures").stdout
    assert "COUNT" in groups
    assert "LATEST ID" in groups
    for single in (("--each",), ("--task-id", "t1"), ("--fingerprint", again.fingerprint)):
        assert "LATEST ID" not in run("failures", *single).stdout
    assert "LATEST ID" in run("failures", "exception:ValueError").stdout
    assert "LATEST ID" not in run("failures", "id:t1").stdout, "a group has many tasks"
    assert "t3" in [row["task_id"] for row in parsed(run("failures", "--format", "json"))["failures"]]


def test_processes_in_which_no_leak_can_be_found_are_named_below_the_leaks(run: Run, filled: Store) -> None:
    now_s = time.time()
    common = {"host": "h", "started_at_s": now_s - 60, "role": Role.CHILD}
    filled.write([ProcessRecord(uid="blind", pid=77, worker="w9@h", mode="off", **common)])
    filled.write([ProcessRecord(uid="gone", pid=78, worker="w9@h", mode="off", ended_at_s=now_s, **common)])
    result = run("leaks")
    assert "Not looked at: w9@h pid 77: trace_memory is off there." in result.stdout
    assert "78" not in result.stdout.rpartition("Not looked at")[2]
    assert parsed(run("leaks", "--format", "json"))["not_looking"] == {"trace_memory is off there": ["w9@h pid 77"]}


@pytest.mark.parametrize(
    ("argv", "environment", "app"),
    [
        (["celery", "-A", "config", "trace", "leaks"], {}, "config"),
        (["celery", "--app", "my app", "trace", "leaks"], {}, "'my app'"),
        (["celery", "--app=config.celery:app", "trace"], {}, "config.celery:app"),
        (["celery", "-Aconfig", "trace"], {}, "config"),
        (["celery", "trace", "show", "-A"], {"APP": "config"}, "config"),
        (["celery", "trace"], {}, ""),
    ],
)
def test_hints_name_the_app_as_it_was_given(argv: list[str], environment: dict[str, str], app: str) -> None:
    assert given_app(argv, environment) == app
    hint = Style(now_s=0, app=app or "shop").hint("See celery trace doctor, or celery -A proj worker.")
    assert hint == f"See celery -A {app or 'shop'} trace doctor, or celery -A {app or 'shop'} worker."


def test_a_failure_of_a_workflow_names_its_tasks_each_below_the_one_that_sent_it(run: Run, store: Store) -> None:
    now_s = time.time()
    process = ProcessRecord(uid="p", pid=7, host="h", started_at_s=now_s - 99, worker="w@h", role=Role.CHILD)
    ids = {name: f"6e1f9b3a-0000-4000-8000-{number:012}" for number, name in enumerate(("first", "next", "last"))}
    failed = [
        Failure(
            id=failure_id(ids[name], 0), process="p", kind=Kind.TASK, name=f"shop.{name}", task_id=ids[name],
            outcome=Outcome.FAILED, fingerprint=name, at_s=now_s - 9, worker="w@h",
            task=TaskContext(root_id=ids["first"], parent_id=ids[parent] if parent else "", group_id="g-1"),
        )
        for name, parent in (("first", ""), ("next", "first"), ("last", "next"))
    ]  # fmt: skip
    store.write([process, *failed])
    shown = run("show", failure_id(ids["next"], 0)).stdout
    assert "member of  group g-1" in shown
    assert "\n  shop.first: failed\n→   shop.next: failed\n      shop.last: failed\n" in shown


def test_a_list_goes_on_where_its_cursor_says(run: Run, filled: Store) -> None:
    first = run("failures", "--each", "--limit", "2")
    assert "More: add --cursor " in first.stdout
    cursor = first.stdout.rsplit("--cursor ", 1)[1].strip()
    rest = parsed(run("failures", "--limit", "2", "--cursor", cursor, "--format", "json"))
    assert [failure["task_id"] for failure in rest["failures"]] == ["t1"]
    assert rest["next"] is None


def test_a_failure_is_shown_with_frames_and_redacted_locals(run: Run, filled: Store) -> None:
    id = make.failure("t1").id
    shown = run("show", id)
    assert shown.exit_code == 0
    assert "context_data = 'Hello'" in shown.stdout
    assert "in failing" in shown.stdout
    assert "password = (redacted)" in shown.stdout
    assert "hunter2" not in shown.stdout
    detail = parsed(run("show", id, "--format", "json"))
    assert detail["frames"][0]["function"] == "failing"
    assert {"locals", "context", "in_app", "code", "file", "line"} <= set(detail["frames"][0])
    assert "hunter2" not in json.dumps(detail)


def test_a_leak_an_alert_and_a_transcript_are_shown_by_their_ids(run: Run, filled: Store) -> None:
    leak = parsed(run("leaks", "--format", "json"))["leaks"][0]
    shown = run("show", leak["id"]).stdout
    assert "seen.append(x)" in shown
    assert "Held by\n  shop.seen (list)" in shown
    assert "It leaks." in run("show", "alert1").stdout
    transcript = run("show", "s1").stdout
    assert "ada> trace.context_data\n  'Hello'" in transcript


@pytest.mark.parametrize("words", [("show", "nothing"), ("shell", "nothing"), ("alerts", "--ack", "nothing")])
def test_an_unknown_id_is_refused_in_a_clear_line(run: Run, filled: Store, words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: There is no ")
    assert "with the id nothing in the store" in result.stderr
    assert "celery -A shop trace failures" in result.stderr


def test_workers_are_shown_with_their_processes(run: Run, filled: Store) -> None:
    assert "pid 11" in run("workers").stdout
    (worker,) = parsed(run("workers", "--format", "json"))["workers"]
    assert (worker["name"], worker["rss_bytes"]) == ("w1@h1", 100 * 1024 * 1024)


def test_the_store_is_not_made_by_looking(run: Run, folder: Path) -> None:
    result = run("leaks")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert str(folder) in result.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("configuration", "says"),
    [
        ({"trace_memroy": "auto"}, "Unknown setting trace_memroy. Did you mean trace_memory?"),
        ({"trace_memory": "often"}, "trace_memory is 'often', but it must be one of"),
        ({"trace_store": "sqlite:////nowhere/at/all.db"}, "/nowhere"),
        ({"trace_store": "teapot://x"}, "teapot"),
        ({"trace_store": "postgresql://u:s3cret@127.0.0.1:9/x"}, "127.0.0.1"),
    ],
)
def test_bad_settings_are_refused_by_every_subcommand(run: Run, configuration: dict[str, Any], says: str) -> None:
    result = run("failures", **configuration)
    assert result.exit_code == 1
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert "s3cret" not in result.output


def test_a_bad_cursor_and_a_bad_age_are_refused(run: Run, filled: Store) -> None:
    assert run("failures", "--cursor", "bogus!").exit_code == 1
    age = run("failures", "--since", "yesterday")
    assert age.exit_code == 2
    assert "invalid duration 'yesterday' (examples: 30m, 12h, 7d)." in age.stderr


def test_an_unknown_subcommand_names_the_known_ones(run: Run) -> None:
    result = run("leeks")
    assert result.exit_code == 2
    assert "leaks, failures, show" in result.stderr


def test_help_lists_every_subcommand(run: Run) -> None:
    listed = run("--help").stdout
    for name in SUBCOMMANDS:
        assert f"\n  {name} " in listed
        assert run(name, "--help").exit_code == 0


def test_what_our_own_mistake_breaks_is_one_line_and_no_traceback(
    run: Run, filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("celery_trace.cli.renderers.failures.failures", broken)
    result = run("failures", "--each")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Unexpected error: KeyError: 'surprise'" in result.stderr
    assert isinstance(run("failures", "--each", "--debug").exception, KeyError)


# --- alerts


def test_alerts_are_listed_acknowledged_and_silenced(run: Run, filled: Store) -> None:
    assert "It leaks." in run("alerts", "--state", "firing").stdout
    assert "No alerts." in run("alerts", "--state", "pending").stdout
    acknowledged = parsed(run("alerts", "--ack", "alert1", "--format", "json"))
    assert acknowledged["acknowledged_by"]
    silenced = parsed(run("alerts", "--silence", "alert1", "--for", "2h", "--format", "json"))
    assert silenced["silenced_until"] == pytest.approx(time.time() + 7200, abs=60)
    assert silenced["acknowledged_by"] == acknowledged["acknowledged_by"]


def test_the_rules_in_force_are_shown(run: Run, filled: Store) -> None:
    shown = run("alerts", "--rules", trace_alert_rules=[{"rule": "leak", "above": "2 KiB"}])
    assert "2.0 KiB" in shown.stdout
    assert "none; set trace_alert_channels" in shown.stdout


def test_a_wrong_rule_is_refused_with_what_is_allowed(run: Run, filled: Store) -> None:
    result = run("alerts", "--rules", trace_alert_rules=[{"rule": "leek"}])
    assert result.exit_code == 1
    assert "unknown rule 'leek'. Did you mean 'leak'?" in result.stderr


def test_one_evaluation_fires_and_delivers(run: Run, filled: Store, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "celery_trace.alerts"):
        found = parsed(run("alerts", "--evaluate", "--format", "json", trace_alert_channels=["log:"]))["alerts"]
    rules = {alert["rule"]: alert for alert in found}
    assert rules["leak"]["state"] == "firing"
    assert "keeps 4.0 KiB each run at /srv/shop/tasks.py:7" in rules["leak"]["text"]
    assert rules["lost"]["state"] == "firing"
    assert "[critical] lost: task shop.charge" in caplog.text
    log = run("alerts", "--deliveries").stdout
    assert "log:" in log
    assert "ok" in log


def test_channels_are_tested_and_a_failure_is_status_1(run: Run, filled: Store) -> None:
    assert run("alerts", "--test", "all", trace_alert_channels=["log:"]).exit_code == 0
    down = run("alerts", "--test", "all", trace_alert_channels=["webhook+http://127.0.0.1:9/s3cret"])
    assert down.exit_code == 1
    assert "no answer" in down.stdout
    assert "s3cret" not in down.output
    assert "No channel is configured" in run("alerts", "--test", "all").stderr
    assert "Channels: log:" in run("alerts", "--test", "x", trace_alert_channels=["log:"]).stderr
    assert "Use only one of" in run("alerts", "--test", "all", "--rules").stderr


# --- maintenance


def test_prune_removes_what_is_old_and_says_how_much(run: Run, filled: Store) -> None:
    said = run("prune").stdout
    assert "Nothing to remove." in said
    assert "The store takes" in said
    answer = parsed(run("prune", "--older-than", "15s", "--format", "json"))
    assert answer["total"] == sum(answer["pruned"].values()) > 0
    assert [f["task_id"] for f in parsed(run("failures", "--format", "json"))["failures"]] == ["t3"]


def test_export_writes_one_object_a_line(run: Run, filled: Store, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run("export", "--format", "json", "--details", "--output", str(out)).exit_code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    kinds = [line["record"] for line in lines]
    assert set(kinds) == {"leak", "failure", "group", "run", "worker", "alert", "shell"}
    assert kinds.count("failure") == 3
    assert any(line.get("frames") for line in lines if line["record"] == "failure")
    tables = run("export").stdout
    assert "LEAKS" in tables
    assert "FAILURES" in tables
    assert "runs have no table format" in run("export", "--what", "runs").stderr


def test_an_export_to_a_file_is_for_its_owner_alone(run: Run, filled: Store, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run("export", "--format", "json", "--output", str(out)).exit_code == 0
    assert out.stat().st_mode & 0o777 == 0o600
    refused = run("export", "--output", str(tmp_path / "no" / "file"))
    assert refused.exit_code != 0
    assert "No such file or directory. Name another file." in refused.stderr


def test_export_as_parquet_writes_a_file_for_each_table(run: Run, filled: Store, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out"
    done = run("export", "--format", "parquet", "--output", str(out))
    assert done.exit_code == 0, done.stderr
    assert f"{out / 'failures.parquet'}  3 rows" in done.stdout
    rows = parquet.read_table(out / "failures.parquet").to_pylist()
    assert {row["task_id"] for row in rows} == {json.loads(row["payload"])["task_id"] for row in rows}
    assert {"runs.parquet", "windows.parquet", "processes.parquet"} <= {path.name for path in out.iterdir()}

    some = run(
        "export", "--format", "parquet", "--what", "workers", "--what", "windows", "--output", str(tmp_path / "b")
    )
    assert some.exit_code == 0, some.stderr
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"processes.parquet", "windows.parquet"}


def test_what_can_not_be_exported_that_way_is_refused_with_the_way(run: Run, filled: Store, tmp_path: Path) -> None:
    assert "Add --output FOLDER" in run("export", "--format", "parquet").stderr
    assert "Add --format parquet" in run("export", "--format", "json", "--what", "windows").stderr
    (tmp_path / "taken").write_text("a file")
    refused = run("export", "--format", "parquet", "--output", str(tmp_path / "taken"))
    assert refused.exit_code != 0
    assert "Name another folder." in refused.stderr


def test_collect_once_hands_on_what_waits(run: Run, folder: Path) -> None:
    from celery_trace.clock import SystemClock
    from celery_trace.spool import SpoolWriter

    spool = folder / "spool"
    writer = SpoolWriter(spool, make.process(), cap_bytes=10**7, clock=SystemClock())
    writer.append(make.failure("t1"))
    writer.close("exit")
    result = run("collect", "--once", "--format", "json")
    assert result.exit_code == 0, result.output
    status = json.loads(result.stdout)
    assert status["delivered"] >= 2
    assert [f["task_id"] for f in parsed(run("failures", "--format", "json"))["failures"]] == ["t1"]


# --- a failure as a test


def test_a_test_is_printed_or_written_once(run: Run, filled: Store, tmp_path: Path) -> None:
    [id] = [row["id"] for row in parsed(run("failures", "--format", "json", "--task-id", "t1"))["failures"]]
    printed = run("make-test", id)
    compile(printed.stdout, "printed", "exec")
    assert "error='builtins.ZeroDivisionError'" in printed.stdout
    assert "def local_context_data():\n    return 'Hello'" in printed.stdout
    assert "hole('password', 'redacted')" in printed.stdout
    assert "hunter2" not in printed.stdout
    file = tmp_path / "test_it.py"
    written = run("make-test", id, "--output", str(file))
    assert file.read_text() == printed.stdout
    assert file.stat().st_mode & 0o777 == 0o600
    assert "No such file or directory. Choose another place." in run("make-test", id, "--output", "/no/where.py").stderr
    assert f"Wrote {file}. Run: python -m pytest {file}" in written.stderr
    assert "hole: args (the capture has no arguments)" in written.stderr
    again = run("make-test", id, "--output", str(file))
    assert again.exit_code == 1
    assert "it exists. Choose another name, or remove it." in again.stderr
    made = parsed(run("make-test", id, "--format", "json"))
    assert made["text"] == printed.stdout
    assert made["name"].startswith("test_shop_charge_")
    assert [hole["where"] for hole in made["holes"]] == ["args", "kwargs"]


@pytest.mark.parametrize("command", ["make-test", "replay"])
def test_what_cannot_be_repeated_is_refused_with_the_reason(run: Run, filled: Store, command: str) -> None:
    [id] = [row["id"] for row in parsed(run("failures", "--format", "json", "--task-id", "t3"))["failures"]]
    assert "its process was killed" in run(command, id).stderr
    assert "There is no failure with the id nothing" in run(command, "nothing").stderr


def test_failures_and_leaks_take_a_search(store: Store, run: Run) -> None:
    store.write([make.failure("t1"), make.failure("t2", name="shop.send mail", fingerprint="fp2")])

    def found(*words: str) -> list[str]:
        return [row["task_id"] for row in json.loads(run("failures", "--format", "json", *words).output)["failures"]]

    assert found("task:shop.charge") == ["t1"]
    assert found("task:shop.send mail") == ["t2"]
    assert sorted(found("no such card")) == ["t1", "t2"]
    assert found("--", "-task:*charge") == ["t2"]
    refused = run("failures", "tsak:x")
    assert refused.exit_code == 1
    assert "Did you mean task?" in refused.output
    assert run("leaks", "task:shop.*").exit_code == 0
    assert "Unknown qualifier" in run("leaks", "exception:x").output


def test_the_commands_load_no_database_before_they_read_a_store() -> None:
    program = "import sys, celery_trace.cli; print(*({'sqlalchemy', 'alembic'} & {*sys.modules}))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []
