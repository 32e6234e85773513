"""What beat's start means in a process: a recorder of its own, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, signals

from celery_trace import CeleryTrace
from celery_trace.guard import own_errors
from celery_trace.model import Role
from celery_trace.runtime import plugin, recorder
from celery_trace.runtime.probes.stack_probe import StackProbe
from celery_trace.settings import Settings


class Sender:
    """A worker or a scheduler, as far as signals tell."""

    def __init__(self, app: Any, **values: Any) -> None:
        self.app = app
        vars(self).update(values)


@pytest.fixture
def app() -> Iterator[Celery]:
    made = Celery("scheduled", broker="memory://", set_as_current=False)
    yield made
    CeleryTrace(made).close()
    recorder.close()
    made.close()


def settings(folder: Path, **values: Any) -> Settings:
    return Settings(dir=str(folder), memory="off", collector=False).over(**values)


@pytest.mark.parametrize("way", ["by its app", "by celery_trace.auto", "by both"])
def test_a_scheduler_has_one_recorder_however_it_was_switched_on(app: Celery, tmp_path: Path, way: str) -> None:
    app.conf.update(trace_dir=str(tmp_path), trace_memory="off", trace_collector=False)
    if way != "by celery_trace.auto":
        CeleryTrace(app)
    if way != "by its app":
        plugin.install_when_a_worker_starts()
    try:
        signals.beat_init.send(sender=Sender(app))
    finally:
        signals.worker_init.disconnect(dispatch_uid="celery_trace.install")
        signals.beat_init.disconnect(dispatch_uid="celery_trace.install")
    found = recorder.current()
    assert found is not None
    assert (found.process.role, found.process.worker, found.process.parent_uid) == (Role.BEAT, "", "")
    assert found.probe(StackProbe).box is None, "it runs nothing that could be killed"
    signals.beat_init.send(sender=Sender(app))
    assert recorder.current() is found


def test_a_scheduler_in_a_workers_own_process_is_recorded_with_it(app: Celery, tmp_path: Path) -> None:
    CeleryTrace(app, settings(tmp_path))
    signals.worker_init.send(sender=Sender(app, hostname="w@h", pool_cls="solo", options={}))
    signals.beat_init.send(sender=Sender(app))
    assert recorder.current() is None, "the worker is not ready yet, and its recorder comes then"


def test_the_scheduler_of_another_app_is_not_ours(app: Celery, tmp_path: Path) -> None:
    CeleryTrace(app, settings(tmp_path))
    signals.beat_init.send(sender=Sender(object()))
    assert recorder.current() is None


def test_a_scheduler_goes_on_without_us_where_we_are_off_or_a_setting_is_wrong(
    app: Celery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    CeleryTrace(app, settings(tmp_path, enabled=False))
    signals.beat_init.send(sender=Sender(app))
    assert recorder.current() is None
    CeleryTrace(app).close()
    app.conf.trace_memory = "much"
    CeleryTrace(app)
    with caplog.at_level(logging.ERROR, "celery_trace"):
        signals.beat_init.send(sender=Sender(app))
    assert recorder.current() is None
    assert "this scheduler is not recorded: trace_memory" in caplog.text
    assert not own_errors
