"""``manage.py trace_report``, ``trace_prune`` and ``trace_export`` on the store that the site's settings name."""

import io
import json
import stat

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test.utils import override_settings

from celery_trace.settings import Settings
from celery_trace.stores import open_store

pytest_plugins = ["tests.support.fixtures_django"]


@pytest.fixture
def filled(site):
    """A store of its own with what one failed request left; gives the failure."""
    site.client().get("/shop/7/divide/")
    records = site.records()
    store = open_store(Settings(dir=str(site.folder)))
    store.write(records)
    store.close()
    return site.failure()


def run(name, *arguments, **options):
    out = io.StringIO()
    call_command(name, *arguments, stdout=out, **options)
    return out.getvalue()


def test_the_report_names_the_failure_and_the_process(filled):
    text = run("trace_report")
    assert "ZeroDivisionError" in text
    assert "GET /shop/<int:pk>/divide/" in text
    assert "PROCESSES" in text


def test_the_report_as_json_has_the_shapes_of_the_api(filled):
    found = json.loads(run("trace_report", "--format", "json"))
    assert set(found) == {"leaks", "failures", "workers"}
    (failure,) = found["failures"]
    assert (failure["id"], failure["kind"], failure["outcome"]) == (filled.id, "request", "failed")


def test_an_export_has_one_object_a_line(filled):
    lines = [json.loads(line) for line in run("trace_export", "--what", "failures").splitlines()]
    assert [(line["record"], line["id"]) for line in lines] == [("failure", filled.id)]
    assert "frames" not in lines[0]


def test_a_detailed_export_to_a_file_has_the_locals_and_is_private(filled, tmp_path):
    path = tmp_path / "export.jsonl"
    said = run("trace_export", "--details", "--output", str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert said.strip() == f"Wrote {len(lines)} records to {path}."
    (failure,) = [line for line in lines if line["record"] == "failure"]
    values = {local["name"]: local["value"] for local in failure["frames"][0]["locals"]}
    assert "Hello" in values["context_data"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_pruning_takes_what_is_older_and_says_how_much(filled):
    assert run("trace_prune").strip().startswith("Nothing to remove.\nThe store takes ")
    assert "1 failures" in run("trace_prune", "--older-than", "0.001s")
    assert run("trace_export", "--what", "failures") == ""


@pytest.mark.parametrize("name", ["trace_report", "trace_prune", "trace_export"])
def test_a_store_that_can_not_be_opened_is_refused_in_words(site, tmp_path, name):
    with override_settings(CELERY_TRACE_STORE=f"sqlite:////{tmp_path}/nowhere.db"):
        with pytest.raises(CommandError) as refusal:
            run(name)
    assert "nowhere.db" in str(refusal.value)
    assert "does not exist" in str(refusal.value)


def test_a_wrong_time_is_refused_with_an_example(site):
    with pytest.raises(CommandError, match="12h"):
        run("trace_report", "--since", "yesterday")


def test_an_export_that_can_not_be_written_is_refused_in_words(filled, tmp_path):
    with pytest.raises(CommandError, match="Can't write"):
        run("trace_export", "--output", str(tmp_path / "no" / "file"))
