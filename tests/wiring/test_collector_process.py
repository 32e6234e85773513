"""A worker and a monitor share a folder: only one of them may start a Python for the collector."""

from __future__ import annotations

import fcntl
import os

import pytest

from celery_trace.clock import FakeClock
from celery_trace.collector import process as module
from celery_trace.collector.process import ELSEWHERE_S, CollectorProcess, folder_is_taken
from celery_trace.collector.status import LOCK_FILE
from celery_trace.settings import Settings


@pytest.fixture
def settings(tmp_path):
    settings = Settings(dir=str(tmp_path / "trace"))
    settings.spool_folder.mkdir(parents=True)
    return settings


@pytest.fixture
def held(settings):
    """The folder's lock, as another collector holds it."""
    descriptor = os.open(settings.spool_folder / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


def test_nobody_is_started_while_another_collector_has_the_folder(settings, held, monkeypatch):
    spawned = []
    monkeypatch.setattr(module.subprocess, "Popen", lambda *a, **k: spawned.append(a))
    clock = FakeClock()
    collector = CollectorProcess(settings, clock=clock)
    collector.start()
    for _ in range(10):
        clock.advance(ELSEWHERE_S)
        collector.watch()
    collector.stop()
    assert spawned == []
    assert folder_is_taken(settings.spool_folder)


def test_a_folder_that_falls_free_gets_a_collector(settings, held, monkeypatch):
    monkeypatch.setattr(CollectorProcess, "_spawn", lambda self: spawned.append(1))
    spawned = []
    clock = FakeClock()
    collector = CollectorProcess(settings, clock=clock)
    collector.start()
    fcntl.flock(held, fcntl.LOCK_UN)
    collector.watch()
    assert spawned == []
    clock.advance(ELSEWHERE_S)
    collector.watch()
    assert spawned == [1]
    collector.stop()


def test_asking_leaves_the_folder_free(settings):
    assert not folder_is_taken(settings.spool_folder)
    (settings.spool_folder / LOCK_FILE).touch()
    assert not folder_is_taken(settings.spool_folder)
    assert not folder_is_taken(settings.spool_folder / "nowhere")
