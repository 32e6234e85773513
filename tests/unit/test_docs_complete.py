"""The pages of docs/ hold what the program has: every setting, command, option, rule and metric."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from celery_trace import intervals
from celery_trace.alerting.delivery import BACK_OFF_S, GROUP_S
from celery_trace.alerting.rules import KINDS
from celery_trace.alerting.rules.configuration import KEYS
from celery_trace.cli import COMMANDS
from celery_trace.commands import SUBCOMMANDS
from celery_trace.redaction import Redactor
from celery_trace.redaction.shapes import SHAPES, Shape
from tests.support.settings_table import table, written

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_setting_stands_in_the_table_with_its_default() -> None:
    assert written() == table(), "run: python -m tests.support.settings_table"


@pytest.mark.parametrize("name", ["monitor_password", "monitor_token"])
def test_what_only_the_monitor_reads_is_named(name: str) -> None:
    assert f"`CELERY_TRACE_{name.upper()}`" in text("settings.md")


def test_every_option_of_the_monitor_is_described() -> None:
    upstream = pytest.importorskip("flower_plugin.upstream")
    for name, *_ in upstream._OPTIONS:
        assert f"| `--{name}` |" in text("monitor.md")
        assert f"`--{name}`" in text("settings.md")


def test_commands_are_registered_in_the_order_of_their_names() -> None:
    assert tuple(COMMANDS) == SUBCOMMANDS


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_command_has_a_section_that_names_its_options(name: str) -> None:
    sections = re.split(r"^## ", text("commands.md"), flags=re.MULTILINE)
    section = next((part for part in sections if re.match(rf"celery trace {name}\b", part)), "")
    assert section, f"docs/commands.md has no section 'celery trace {name}'"
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option) and not parameter.hidden and parameter.opts[0] != "--format":
            assert f"{parameter.opts[0]}" in section, f"{name}: {parameter.opts[0]} is not described"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_rule_is_described(kind: object) -> None:
    name = kind.name  # type: ignore[attr-defined]
    assert f"| `{name}` |" in text("alerts.md")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_shape_of_a_credential_is_named(shape: Shape) -> None:
    named = {word for word in re.findall(r"[\w.]+", shape.name) if not word.islower()}
    assert named <= set(re.findall(r"[\w.]+", text("captures.md")))


def test_the_names_that_the_page_on_captures_gives_are_judged_as_it_says() -> None:
    by_name = " ".join(text("captures.md").split()).partition("**By name.**")[2].partition("**By shape.**")[0]
    hidden, _, shown = by_name.partition("A name is judged by its")
    names = re.compile(r"`([\w-]+)`")
    redactor = Redactor()
    assert [name for name in names.findall(hidden) if not redactor.is_secret_name(name)] == []
    shown = shown.partition("Below such a")[0]
    assert [name for name in names.findall(shown) if redactor.is_secret_name(name)] == []


@pytest.mark.parametrize("key", ["rule", "above", *KEYS])
def test_every_key_of_a_rule_is_described(key: str) -> None:
    assert f"| `{key}` |" in text("alerts.md")


def test_the_pauses_that_the_page_names_are_those_of_the_program() -> None:
    assert BACK_OFF_S == (5, 15, 60, 300, 900)
    assert "after 5 s, 15 s, 1 min, 5 min and then every 15 min" in text("alerts.md")
    assert GROUP_S == 30
    assert "waits 30 seconds" in text("alerts.md")


def test_the_intervals_that_the_pages_name_are_those_of_the_program() -> None:
    assert (intervals.SAMPLE_S, intervals.SAMPLE_CHANGE, intervals.SAMPLE_IDLE_S) == (10, 0.01, 300)
    started = " ".join(text("getting-started.md").split())
    assert "after ten seconds: a point for each process, then one whenever its memory changes by one per" in started
    assert "and every five minutes while it is constant" in started
    assert (intervals.PROFILE_FIRST_S, intervals.PROFILE_S) == (60, 300)
    assert "after a minute, every five minutes where it has changed" in " ".join(text("monitor.md").split())


METRIC = re.compile(r"\bcelery_trace_[a-z_]+\b")


def exported_metrics() -> set[str]:
    """The names on ``/metrics``, from the program's own families."""
    metrics = pytest.importorskip("flower_plugin.api.metrics")
    from celery_trace.model import StatsView

    stats = StatsView(
        records={}, written={}, dropped={}, cut={}, own_errors={}, live={}, overhead_ratio=0.0, spool_bytes=0,
        spool_records=0, corrupt_lines=0,
    )  # fmt: skip
    names = set()
    for family in metrics.families(metrics.Snapshot(stats=stats)):
        names.add(family.name + ("_total" if family.type == "counter" else ""))
    return names


@pytest.mark.parametrize("page", ["prometheus/celery-trace.rules.yml", "prometheus/grafana-dashboard.json"])
def test_rules_file_and_dashboard_use_only_metrics_that_exist(page: str) -> None:
    used = set(METRIC.findall(text(page)))
    assert used
    assert used <= exported_metrics()


def test_the_dashboard_shows_every_metric() -> None:
    board = json.loads(text("prometheus/grafana-dashboard.json"))
    expressions = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    assert set(METRIC.findall(expressions)) >= exported_metrics() - {"celery_trace_store_up"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


def test_every_decision_is_in_their_index_under_its_own_title() -> None:
    folder = DOCS / "decisions"
    index = (folder / "README.md").read_text()
    for page in sorted(folder.glob("0*.md")):
        title = page.read_text().splitlines()[0].lstrip("# ")
        assert f"[{title}]({page.name})" in index, page.name
