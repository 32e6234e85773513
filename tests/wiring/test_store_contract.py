"""SQLite keeps what every store promises."""

import pytest

from celery_trace.settings import Settings
from celery_trace.stores import open_store
from tests.support.store_contract import CONTRACT, open_clock


@pytest.fixture
def store(tmp_path):
    store = open_store(Settings(dir=str(tmp_path)), clock=open_clock())
    yield store
    store.close()


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_sqlite_keeps_the_promise(promise, store):
    promise(store)
