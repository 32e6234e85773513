"""A pool process's plugin and two tasks, ``add`` and ``work``, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app import trace

from celery_trace.model import AnyRecord, Rollup
from celery_trace.runtime.plugin import CeleryTrace
from celery_trace.runtime.recorder import Recorder
from celery_trace.settings import Settings
from tests.support.spooled import written

#: What a task does while it runs, by the test that needs it.
inside_of_work: dict[str, Callable[[], Any]] = {}


class Pool:
    """A pool process's plugin and tasks, in this process."""

    def __init__(self, app: Celery, plugin: CeleryTrace) -> None:
        self.app = app
        self.plugin = plugin
        self.recorder: Recorder = plugin._here().recorder

    def run(self, name: str, *args: Any, task_id: str = "id") -> tuple[Any, ...]:
        request = {"id": task_id, "task": name, "retries": 2, "is_eager": False, "args": args, "kwargs": {}}
        request["delivery_info"] = {"routing_key": "bakery"}
        request["root_id"] = "root"
        return self.app.tasks[name].__trace__(task_id, args, {}, request)

    def runs(self, name: str, count: int) -> None:
        for number in range(count):
            self.run(name, number)

    def inside(self, work: Callable[[], Any], *, task_id: str = "id") -> tuple[Any, ...]:
        """A run that calls that."""
        inside_of_work["work"] = work
        try:
            return self.run("work", task_id=task_id)
        finally:
            inside_of_work.clear()

    def written(self, kind: type[AnyRecord]) -> list[Any]:
        self.recorder.flush()
        return [record for record in written(self.recorder.settings.spool_folder) if isinstance(record, kind)]

    def totals(self, name: str) -> list[Rollup]:
        """The last word on each five minutes."""
        return list({one.key: one for one in self.written(Rollup) if one.name == name}.values())


@pytest.fixture
def pool(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pool]:
    app = Celery("pool", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task(name="add", shared=False)
    def add(number: int) -> int:
        return number + 1

    @app.task(name="work", shared=False)
    def work(*_: Any) -> Any:
        return inside_of_work["work"]() if "work" in inside_of_work else None

    app.finalize()
    for name, task in app.tasks.items():
        task.__trace__ = trace.build_tracer(name, task, app.loader, "host", app=app)
    plugin = CeleryTrace(app, Settings(dir=str(tmp_path / "trace"), memory=getattr(request, "param", "off")))
    plugin._main_pid = os.getppid()
    plugin.on_worker_process_init()
    yield Pool(app, plugin)
    plugin.close()
    app.close()
