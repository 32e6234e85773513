"""Addresses of stores, as people write them."""

import pytest

from celery_trace.stores import StoreUnavailable
from celery_trace.stores.engine import make_engine, shown


@pytest.mark.parametrize(
    ("address", "driver"),
    [
        ("postgresql://trace@db/trace", "postgresql+psycopg"),
        ("postgres://trace@db/trace", "postgresql+psycopg"),  # Heroku's, and many others'
        ("postgresql+psycopg2://trace@db/trace", "postgresql+psycopg"),  # the application's own
        ("postgresql+asyncpg://trace@db/trace", "postgresql+psycopg"),
        ("mysql://trace@db/trace", "mysql+pymysql"),
        ("mysql+mysqldb://trace@db/trace", "mysql+pymysql"),
        ("mariadb://trace@db/trace", "mariadb+pymysql"),
        ("sqlite:////srv/trace.db", "sqlite"),
    ],
)
def test_an_address_is_reached_by_the_driver_that_comes_with_us(address, driver):
    engine = make_engine(address)
    assert engine.url.drivername == driver
    engine.dispose()


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("oracle://trace@db/trace", "Use sqlite, postgresql, mysql or mariadb."),
        ("trace.db", "Correct trace_store."),
        ("redis://127.0.0.1/0", "Use sqlite, postgresql, mysql or mariadb."),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_with_what_to_do(address, advice):
    with pytest.raises(StoreUnavailable) as refused:
        make_engine(address).connect()
    assert refused.value.next == advice


def test_no_password_is_shown():
    assert "hunter2" not in shown("postgresql://trace:hunter2@db/trace")
    assert "hunter2" not in shown("hunter2:not an address")
