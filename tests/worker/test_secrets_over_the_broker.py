"""What anybody with the broker may ask a worker for, and that our secrets are not in the answer."""

import json

import pytest
from celery import Celery

APP = """
from celery import Celery

app = Celery("errands")
app.conf.trace_store = "postgresql://trace:hunter2@127.0.0.1:1/trace?password=hunter3"
app.conf.trace_alert_channels = ["webhook+https://hooks.example.com/hunter4", "mailto://user:hunter5@example.com"]
app.conf.trace_shell_key = "hunter6-hunter6-hunter6"
app.conf.trace_collector = False
app.conf.errands_own = "shown"
{plugin}


@app.task
def own_settings():
    from celery_trace.settings import from_app

    found = from_app(app)
    return [found.store, list(found.alert_channels), found.shell_key, app.conf.trace_store]
"""

#: As Django has them, without a namespace.
UPPER = {
    "CELERY_TRACE_STORE": "postgresql://trace:hunter2@127.0.0.1:1/trace",
    "CELERY_TRACE_ALERT_CHANNELS": ["webhook+https://hooks.example.com/hunter4"],
    "CELERY_TRACE_SHELL_KEY": "hunter6-hunter6-hunter6",
}


@pytest.mark.parametrize("way", ["in code", "by the environment", "by -I", "switched off"])
def test_a_worker_tells_nobody_its_secrets(way, own_broker_url, start_worker, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    plugin = "from celery_trace import CeleryTrace\nCeleryTrace(app)" if way in ("in code", "switched off") else ""
    if way == "switched off":
        plugin += "\napp.conf.trace_enabled = False"
    (folder / "errands.py").write_text(APP.format(plugin=plugin))
    worker = start_worker(
        "errands", folder, switch=way == "by the environment",
        options=["-I", "celery_trace.auto"] if way == "by -I" else [],
    )  # fmt: skip
    with Celery("asker", broker=own_broker_url, backend=own_broker_url, set_as_current=False) as asker:
        inspect = asker.control.inspect([worker.node], timeout=10, limit=1)
        for answer in (inspect.conf(), inspect.conf(with_defaults=True), inspect.report()):
            told = json.dumps(answer)
            assert "hunter" not in told
            assert "errands_own" in told, "the rest is told as before"
            assert "trace_collector" in told
    worker.stop()


def test_the_values_stay_where_the_app_its_children_and_the_monitor_read_them(own_broker_url, start_worker, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    plugin = f"from celery_trace import CeleryTrace\nCeleryTrace(app)\napp.conf.result_backend = {own_broker_url!r}"
    (folder / "errands.py").write_text(APP.format(plugin=plugin))
    worker = start_worker("errands", folder, switch=False)
    with Celery("asker", broker=own_broker_url, backend=own_broker_url, set_as_current=False) as asker:
        result = asker.send_task("errands.own_settings").get(timeout=60)
    store = "postgresql://trace:hunter2@127.0.0.1:1/trace?password=hunter3"
    channels = ["webhook+https://hooks.example.com/hunter4", "mailto://user:hunter5@example.com"]
    assert result == [store, channels, "hunter6-hunter6-hunter6", store]
    worker.stop()


def test_djangos_spelling_is_hidden_too():
    from celery_trace import CeleryTrace

    with Celery("errands", set_as_current=False) as app:
        app.config_from_object(UPPER)
        plugin = CeleryTrace(app)
        try:
            assert "hunter" not in repr(app.conf.table()) + app.conf.humanize()
            assert app.conf["CELERY_TRACE_STORE"] == UPPER["CELERY_TRACE_STORE"]
        finally:
            plugin.close()
