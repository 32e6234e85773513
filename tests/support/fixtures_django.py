"""Django with the bridge connected, for one test; what it recorded is read back from its spool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_trace import guard
from celery_trace.model import AnyRecord, Failure, ProcessRecord, Rollup, Run
from celery_trace.runtime import recorder
from celery_trace.spool import unpack


class Site:
    """The traced site of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def client(self, **options: Any) -> Any:
        """Django's test client; it answers 500 where a browser would see it."""
        from django.test import Client

        return Client(raise_request_exception=False, **options)

    def async_client(self) -> Any:
        """The client that drives the site as an ASGI server does."""
        from django.test import AsyncClient

        return AsyncClient(raise_request_exception=False)

    def records(self) -> list[AnyRecord]:
        """Everything on disk, after the last flush."""
        recorder.close()
        lines = [line for file in sorted(self.folder.rglob("*.spool")) for line in file.read_bytes().splitlines()[1:]]
        return [unpack(line) for line in lines]

    def bytes(self) -> bytes:
        """What stands on disk, all files together."""
        recorder.close()
        return b"".join(file.read_bytes() for file in sorted(self.folder.rglob("*")) if file.is_file())

    def failures(self) -> list[Failure]:
        return [record for record in self.records() if isinstance(record, Failure)]

    def failure(self) -> Failure:
        """The only failure."""
        (failure,) = self.failures()
        return failure

    def runs(self) -> dict[str, tuple[int, int]]:
        """Runs and failed ones by name."""
        found: dict[str, tuple[int, int, int]] = {}
        for record in self.records():
            if isinstance(record, Rollup) and record.seq >= found.get(record.name, (0, 0, 0))[2]:
                found[record.name] = (record.runs, record.failed, record.seq)
        return {name: (runs, failed) for name, (runs, failed, _) in found.items()}

    def single_runs(self) -> list[Run]:
        return [record for record in self.records() if isinstance(record, Run)]

    def processes(self) -> list[ProcessRecord]:
        return [record for record in self.records() if isinstance(record, ProcessRecord)]


@pytest.fixture(scope="session")
def django_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The project's SQLite file with all its tables."""
    from tests.support import django_project

    django_project.configure()
    from django.core.management import call_command
    from django.db import connections

    connections["default"].settings_dict["NAME"] = str(tmp_path_factory.mktemp("django") / "db.sqlite3")
    connections.databases["default"]["NAME"] = connections["default"].settings_dict["NAME"]
    call_command("migrate", verbosity=0)
    connections.close_all()
    yield
    connections.close_all()


@pytest.fixture
def site(django_database: None, tmp_path: Path) -> Iterator[Site]:
    """The traced site; each test has a spool and connections of its own."""
    from django.db import connections
    from django.test.utils import override_settings

    from django_bridge import apps

    folder = tmp_path / "trace"
    errors = dict(guard.own_errors)
    apps.connect()
    with override_settings(
        CELERY_TRACE_DIR=str(folder), CELERY_TRACE_MEMORY="rss", CELERY_TRACE_BLACK_BOX=False, CELERY_TRACE_SHELL="off"
    ):
        try:
            yield Site(folder)
        finally:
            recorder.close()
            apps.disconnect()
            connections.close_all()
    assert dict(guard.own_errors) == errors, "the bridge swallowed an error of its own"
