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


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://trace:hunter2@db/trace",
        "hunter2:not an address",
        "postgresql://db/trace?user=trace&password=hunter2",
        "postgresql://db/trace?password=hunter2&password=hunter22",
        "mysql://trace@db/trace?passwd=hunter2",
        "postgresql://db/trace?sslpassword=hunter2&sslmode=require",
        "postgresql://trace:hun/hunter2@db/trace",
        "postgresql://trace:hun#x@hunter2@db/trace",
        "postgresql://trace:x@db:hunter2/trace",
    ],
)
def test_no_password_is_shown_and_no_error_repeats_it(address):
    said = shown(address)
    try:
        make_engine(address).dispose()
    except StoreUnavailable as error:
        said += f" {error} {error.what} {error.why} {error.next}"
    assert "hunter2" not in said


def test_of_an_address_everything_but_its_secrets_is_shown():
    address = "postgresql://trace:x@db:5432/trace?password=y&sslmode=require"
    assert shown(address) == "postgresql://trace:***@db:5432/trace?password=***&sslmode=require"
    assert shown("django:other") == "django:other"
    assert shown("sqlite:////srv/trace.db?mode=ro") == "sqlite:////srv/trace.db?mode=ro"
