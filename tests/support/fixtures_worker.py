"""Real workers for tests, on a broker and with a store of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import WorkerProcess, trace_environment
from tests.support.records import Records, open_records

StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def trace_dir(tmp_path: Path) -> Path:
    """The test's own ``trace_dir``; not made yet."""
    return tmp_path / "trace"


@pytest.fixture
def records(trace_dir: Path) -> Iterator[Records]:
    """What reached the SQLite store in :func:`trace_dir`."""
    with open_records(trace_dir) as opened:
        yield opened


@pytest.fixture
def start_worker(own_broker_url: str, trace_dir: Path, tmp_path: Path) -> Iterator[StartWorker]:
    """
    Start workers of a project and wait until they take tasks; they end with the test.

    Called with the app and its folder, and with :class:`WorkerProcess`'s keywords. ``switch=False`` leaves
    ``CELERY_TRACE=1`` out; ``settings`` are celery-trace's by bare name; ``extra`` goes into the environment;
    ``broker_url`` is :func:`own_broker_url` by default.
    """
    with ExitStack() as stack:

        def start(
            app: str,
            cwd: Path,
            *,
            switch: bool = True,
            settings: dict[str, object] | None = None,
            extra: dict[str, str] | None = None,
            broker_url: str = own_broker_url,
            **more: Any,
        ) -> WorkerProcess:
            environment = trace_environment(
                broker_url=broker_url, trace_dir=trace_dir, switch=switch, settings=settings
            )
            environment.update(extra or {})
            worker = WorkerProcess(app, cwd=cwd, work=tmp_path, environment=environment, **more)
            stack.enter_context(worker)
            return worker.wait_ready()

        yield start
