"""What the demo prints for the person who watches."""

import time
from types import SimpleNamespace

import pytest

from tests.support.processes import REPOSITORY


def test_the_demo_says_that_it_measures_more_than_usual(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    from demo.__main__ import look_around

    look_around(
        SimpleNamespace(
            login_link="", monitor_page="", password="", site_url="", admin_password="", broker_url="", folder="",
            programs=[SimpleNamespace(cwd="")],
        )
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "up to 20 % of each process's time" in printed
    assert "default is 1 %" in printed
    assert "--keep FOLDER" in printed


@pytest.fixture
def stage(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    from demo.stage import Stage

    said = []
    made = Stage(said.append)
    made.said, made.mark = said, ""
    made.folder = tmp_path / "demo"
    (made.folder / "trace").mkdir(parents=True)
    for name in ("worker.log", "db.sqlite3", "trace/trace.db"):
        (made.folder / name).write_text("x")
    return made


def test_a_demo_that_failed_keeps_its_logs_and_names_their_folder(stage):
    folder = stage.folder
    stage.close(failed=True)
    assert [path.name for path in folder.iterdir()] == ["worker.log"]
    assert stage.said == [f"The logs are in {folder}: worker.log"]


def test_a_demo_that_ended_well_leaves_nothing(stage):
    folder = stage.folder
    stage.close()
    assert not folder.exists()


def test_a_broker_that_does_not_answer_for_a_moment_ends_no_demo(stage):
    from demo.programs import DemoError
    from demo.stage import BROKER_SLOW_S

    answers = [False]
    stage.broker = SimpleNamespace(is_running=lambda: answers[0], _process=None)
    stage._broker_seen = time.monotonic()
    stage.check()
    stage._broker_seen -= BROKER_SLOW_S + 1
    answers[0] = True
    stage.check()
    answers[0] = False
    stage.check()
    stage._broker_seen -= BROKER_SLOW_S + 1
    with pytest.raises(DemoError, match="has not answered for 30 s"):
        stage.check()
