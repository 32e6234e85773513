"""Several Celery apps in one process: each plugin records its own app's runs, and goes when its app goes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from celery import Celery, shared_task, signals

from celery_trace import CeleryTrace
from celery_trace.model import Failure, Rollup
from celery_trace.runtime import recorder
from celery_trace.settings import Settings
from tests.support.spooled import written

MakeApp = Callable[[str], Celery]


@shared_task(name="two_apps.shared")
def shared() -> int:
    return 1


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[MakeApp]:
    """Apps whose tasks run eagerly, each with its plugin, all with one ``trace_dir``."""
    with ExitStack() as stack:

        def make(name: str) -> Celery:
            app = Celery(name, broker="memory://", set_as_current=False)
            app.conf.task_always_eager = True
            plugin = CeleryTrace(app, Settings(dir=str(tmp_path), memory="off", collector=False))
            stack.callback(app.close)
            stack.callback(plugin.close)

            @app.task(name=f"{name}.ok", shared=False)
            def ok() -> int:
                return 1

            @app.task(name=f"{name}.bad", shared=False)
            def bad() -> None:
                raise ValueError("once")

            return app

        yield make
        recorder.close("exit")


def test_two_apps_in_one_process_count_each_run_once(make_app: MakeApp, tmp_path: Path) -> None:
    first, second = make_app("first"), make_app("second")
    for app in (first, second):
        app.tasks[f"{app.main}.ok"].delay()
        app.tasks[f"{app.main}.bad"].delay()
        app.tasks["two_apps.shared"].delay()
    recorder.close("exit")
    records = written(Settings(dir=str(tmp_path)).spool_folder)
    runs = {rollup.name: (rollup.runs, rollup.failed) for rollup in records if isinstance(rollup, Rollup)}
    assert runs == {
        "first.ok": (1, 0), "first.bad": (1, 1), "second.ok": (1, 0), "second.bad": (1, 1), "two_apps.shared": (2, 0),
    }  # fmt: skip
    failures = [failure.name for failure in records if isinstance(failure, Failure)]
    assert sorted(failures) == ["first.bad", "second.bad"]


def test_runs_count_that_ended_before_the_folder_could_be_written(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app("late")
    in_its_place = Settings(dir=str(tmp_path)).spool_folder
    in_its_place.write_text("a file")
    app.tasks["late.ok"].delay()
    app.tasks["late.ok"].delay()
    in_its_place.unlink()
    app.tasks["late.ok"].delay()
    recorder.close("exit")
    (rollup,) = (record for record in written(in_its_place) if isinstance(record, Rollup))
    assert rollup.runs == 3


def test_a_recorder_that_could_not_start_is_tried_again(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("celery_trace.runtime.plugin.AGAIN_S", 0.0)
    app = make_app("late")

    def refuse(self: object) -> None:
        raise RuntimeError("no further thread")

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Ticker, "start", refuse)
        app.tasks["late.ok"].delay()
    app.tasks["late.ok"].delay()
    assert recorder.current() is not None
    recorder.close("exit")
    told = [record.getMessage() for record in caplog.records if record.name == "celery_trace"]
    assert any("no further thread" in line for line in told)
    assert "recording works now" in told[-1]


def ours() -> int:
    """Receivers of living plugins; Celery takes dead ones out when somebody connects next."""
    return sum(
        1
        for name in signals.__all__
        for _, held in getattr(signals, name).receivers
        if (receiver := held() if hasattr(held, "__callback__") else held) is not None
        and isinstance(getattr(receiver, "__self__", None), CeleryTrace)
    )


def test_apps_that_are_gone_leave_no_receivers() -> None:
    before = ours()
    for number in range(300):
        app = Celery(f"app{number}", broker="memory://", set_as_current=False)
        CeleryTrace(app, Settings(collector=False))
        del app
        if number % 50 == 49:
            gc.collect()
    gc.collect()
    assert ours() == before
    lasting = Celery("lasting", broker="memory://", set_as_current=False)
    CeleryTrace(lasting, Settings(collector=False))
    gc.collect()
    assert ours() > before, "a living app's plugin listens though nobody else holds it"
    assert len(signals.task_failure.receivers) < 10, "the dead are cleared away"
    CeleryTrace(lasting).close()
    assert ours() == before
