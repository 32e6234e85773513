"""The settings table: sources, order, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.settings import SETTINGS, SettingError, Settings, from_app, load


def test_every_row_of_the_table_is_a_field_and_every_field_has_a_row():
    assert {setting.name for setting in SETTINGS} == set(Settings.__struct_fields__)


def test_each_default_passes_its_own_check():
    defaults = Settings()
    for setting in SETTINGS:
        assert setting.parse(getattr(defaults, setting.name), f"trace_{setting.name}") == getattr(
            defaults, setting.name
        )


def test_command_line_goes_over_environment_over_configuration_over_default():
    configuration = {"trace_memory": "rss", "trace_shell": "off", "trace_keep_failures": 3}
    environment = {"CELERY_TRACE_MEMORY": "off", "CELERY_TRACE_SHELL": "live"}
    settings = load(configuration, environment, {"memory": "always"})
    assert (settings.memory, settings.shell, settings.keep_failures) == ("always", "live", 3)
    assert settings.transport == "direct"


def test_django_settings_with_the_celery_namespace_are_celery_settings():
    app = Celery("namespaced", set_as_current=False)
    app.config_from_object({"CELERY_TRACE_STORE": "sqlite:///x.db"}, namespace="CELERY")
    assert from_app(app).store == "sqlite:///x.db"


def test_the_switch_itself_is_no_setting():
    assert load({}, {"CELERY_TRACE": "1"}) == Settings()


def test_the_monitors_secrets_are_read_from_the_environment_alone():
    assert load({}, {"CELERY_TRACE_MONITOR_PASSWORD": "x", "CELERY_TRACE_MONITOR_TOKEN": "y"}) == Settings()
    with pytest.raises(SettingError, match="Unknown setting trace_monitor_password"):
        load({"trace_monitor_password": "x"}, {})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("trace_memory", "sometimes", "off, rss, auto, always"),
        ("trace_memory_budget", 3, "a number from 0 to 1"),
        ("trace_memory_budget", float("nan"), "a number from 0 to 1"),
        ("trace_capture_bytes", "many", "a whole number, at least 1024"),
        ("trace_keep_seconds", "soon", "a number from 0 to 604800"),
        ("trace_capture_bytes", True, "a whole number"),
        ("trace_failures", "perhaps", "a boolean"),
        ("trace_redact", 7, "a list of texts"),
        ("trace_alert_rules", [{"no": "rule"}], "mappings"),
        ("CELERY_TRACE_TRANSPORT", "pigeon", "direct, broker"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_what_is_allowed(name, value, allowed):
    with pytest.raises(SettingError) as refusal:
        load({name: value}, {})
    assert name in str(refusal.value)
    assert allowed in str(refusal.value)
    assert repr(value) in str(refusal.value)


def test_an_unknown_name_is_refused_and_the_nearest_one_offered():
    with pytest.raises(SettingError, match="Did you mean CELERY_TRACE_MEMORY"):
        load({}, {"CELERY_TRACE_MEMROY": "auto"})


def test_a_refusal_never_shows_a_secret():
    with pytest.raises(SettingError) as refusal:
        load({"trace_store": "my-password@host"}, {})
    assert "my-password" not in str(refusal.value)
    assert "(hidden)" in str(refusal.value)


def test_texts_from_the_environment_are_split_at_commas():
    assert load({}, {"CELERY_TRACE_REDACT": "pin, iban,"}).redact == ("pin", "iban")


def test_the_store_is_a_file_in_the_folder_unless_named():
    settings = load({"trace_dir": "/var/lib/trace"}, {})
    assert settings.store_url == "sqlite:////var/lib/trace/trace.db"
    assert settings.spool_folder == Path("/var/lib/trace/spool")
    assert load({"trace_store": "django:replica"}, {}).store_url == "django:replica"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("keep_bytes", "64 MiB", 64 * 1024 * 1024),
        ("keep_bytes", "1_000_000", 1_000_000),
        ("keep_seconds", "15m", 900.0),
        ("keep_seconds", "0s", 0.0),
        ("keep_failures", " 3 ", 3),
        ("memory_budget", "0.5", 0.5),
        ("black_box", "off", False),
        ("black_box", "Yes", True),
        ("black_box", "", False),
        ("alert_rules", '[{"rule": "leak", "above": 5}]', ({"rule": "leak", "above": 5},)),
    ],
)
def test_the_environment_says_everything_as_text(name, text, value):
    assert getattr(load({}, {f"CELERY_TRACE_{name.upper()}": text}), name) == value


def test_a_path_or_any_list_will_do():
    settings = load({"trace_dir": Path("/var/lib/trace"), "trace_redact": {"pin"}, "trace_in_app": ("shop",)}, {})
    assert (settings.dir, settings.redact, settings.in_app) == ("/var/lib/trace", ("pin",), ("shop",))


def outcome(setting, value):
    try:
        return setting.parse(value, f"trace_{setting.name}"), ""
    except SettingError as refusal:
        return None, str(refusal)


@given(
    st.sampled_from(SETTINGS),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text())),
)
def test_any_value_becomes_its_type_or_is_refused_in_words(setting, value):
    parsed, refusal = outcome(setting, value)
    if refusal:
        assert refusal.endswith(f"but it must be {setting.allowed}.")
    else:
        assert setting.parse(parsed, "again") == parsed


def test_values_laid_over_are_checked_too():
    assert Settings().over(memory="rss").memory == "rss"
    with pytest.raises(SettingError):
        Settings().over(memory="sometimes")
