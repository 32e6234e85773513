"""A test that `make-test` writes is red for the captured error, and green only when that is fixed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support import repeatable_project
from tests.support.processes import trace_environment
from tests.support.repeatable_project import SECRETS

PROGRAM = Path(repeatable_project.__file__)
FAILED_AND_TRIED_ONCE = ("second_try", "by_itself", "by_hand")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "repeatable.py").write_text(repeatable_project.module())
    return folder


@pytest.fixture
def run(project, own_broker_url, trace_dir):
    """Runs Python in the project's folder; gives what it printed."""

    def run(*words: str, given: str = "", status: tuple[int, ...] = (0,)) -> str:
        environment = trace_environment(broker_url=own_broker_url, trace_dir=trace_dir, switch=False)
        done = subprocess.run(
            [sys.executable, *words], cwd=project, env=environment, input=given, capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode in status, done.stdout + done.stderr
        return done.stdout

    return run


def outcomes(run, folder: Path, report: Path) -> dict[str, str]:
    """By file name, how its test ended: passed, failed (only if it says "reproduced"), error, skipped; and the text."""
    run("-m", "pytest", "-q", f"--junitxml={report}", str(folder), status=(0, 1))
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        word = outcome.tag if outcome is not None else "passed"
        if outcome is not None and word == "failure":
            word = "failed" if "reproduced: " in str(outcome.text) else "failed for another reason"
        found[str(case.get("classname")).rpartition(".")[2] + ".py"] = word
    return found


@pytest.mark.timeout(400)
def test_two_thirds_of_all_failures_are_red_for_the_captured_error_and_none_is_green_for_a_wrong_reason(
    start_worker, project, run, records, tmp_path
):
    worker = start_worker(
        "repeatable", project, settings={"memory": "off"}, extra={"IN_WORKER": "1", "C_FORCE_ROOT": "1"}
    )
    sent = json.loads(run(str(PROGRAM), "send"))
    ids: dict[str, str] = {}
    expected: dict[str, str] = {}
    for name, (task_id, kind) in sent.items():
        tries = 2 if name in FAILED_AND_TRIED_ONCE else 1

        def rows(queries, task_id=task_id, tries=tries):
            found = queries.failures(task_id=task_id).rows
            return found if len(found) == tries else None

        for row in records.wait(rows, f"failures of {name}", explain=worker.tail):
            ids[f"{name}/{row.retries}"] = row.id
            expected[f"{name}/{row.retries}"] = kind
    tests = project / "made"
    tests.mkdir()
    answers = json.loads(run(str(PROGRAM), "make", str(tests), given=json.dumps(ids)))
    refused = {name for name, (status, _) in answers.items() if status}
    assert refused == {name for name, kind in expected.items() if kind == "refused"}, answers
    assert all("Can't repeat" in answers[name][1] and "trace show" in answers[name][1] for name in refused)

    assert not [file.name for file in tests.iterdir() for secret in SECRETS if secret in file.read_text()]

    def results(expected):
        """The tests with another result than expected."""
        results = outcomes(run, tests, tmp_path / "report.xml")
        words = {"red": "failed", "skip": "skipped", "error": "error", "green": "passed"}
        got = {name: results[f"test_{ids[name]}.py"] for name in ids if name not in refused}
        return {name: (got[name], expected[name]) for name in got if got[name] != words[expected[name]]}

    assert results(expected) == {}
    assert len(ids) >= 24
    assert 3 * list(expected.values()).count("red") >= 2 * len(expected)

    # The lines move, two tasks are fixed, and a third by a line elsewhere: its test was red here before.
    source = (project / "repeatable.py").read_text()
    source = source.replace("return prices[item]", "return prices.get(item)").replace('{"low": 0}', '{"low": 2}')
    source = source.replace("100 // second", "100 // (second or 1)")
    source = source.replace("\nIN_WORKER", "\n\n# moved\n\n\nIN_WORKER")
    (project / "repeatable.py").write_text(source)
    assert results(expected | {"missing_key/0": "green", "twice/0": "green", "limited/0": "green"}) == {}
    shutil.rmtree(project / ".pytest_cache")
    assert results(expected | {"missing_key/0": "green", "twice/0": "green", "limited/0": "skip"}) == {}
