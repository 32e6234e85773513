"""Where `trace_store = "django"` leads: Django's DATABASES, with what its OPTIONS say about connecting."""

import pytest

from celery_trace.stores import StoreUnavailable
from celery_trace.stores.engine import django_url, make_engine

pytest_plugins = ["tests.support.fixtures_django"]


@pytest.fixture
def address(django_database, monkeypatch):
    """The address that an entry of DATABASES comes to, password and all."""
    from django.conf import settings
    from django.db import connections

    monkeypatch.delattr(connections._connections, "other", raising=False)  # another test's

    def of(**entry):
        monkeypatch.setitem(settings.DATABASES, "other", entry)
        return django_url("django:other").render_as_string(hide_password=False)

    return of


def test_a_password_with_signs_of_an_address_arrives_whole(address):
    url = address(
        ENGINE="django.db.backends.postgresql", NAME="shop", USER="us/er", PASSWORD="p@ss:w/rd", HOST="db", PORT="6432"
    )
    assert url == "postgresql+psycopg://us%2Fer:p%40ss%3Aw%2Frd@db:6432/shop"


def test_a_socket_and_the_schema_of_postgresql_are_kept(address):
    url = address(
        ENGINE="django.contrib.gis.db.backends.postgis", NAME="shop", HOST="/run/pg",
        OPTIONS={"options": "-c search_path=tracing", "assume_role": "shop_owner", "pool": True, "sslmode": "require"},
    )  # fmt: skip
    engine = make_engine("django:other")
    arguments = engine.dialect.create_connect_args(engine.url)[1]
    assert arguments["host"] == "/run/pg"
    assert arguments["options"] == "-c search_path=tracing -c role=shop_owner"
    assert arguments["sslmode"] == "require"
    assert "pool" not in arguments, "Django's own"
    assert url.startswith("postgresql+psycopg:///shop?")


def test_a_postgresql_service_needs_no_name(address):
    assert address(ENGINE="django.db.backends.postgresql", OPTIONS={"service": "trace"}) == (
        "postgresql+psycopg://?service=trace"
    )


def test_the_certificates_of_mysql_are_kept(address):
    address(
        ENGINE="django.db.backends.mysql", NAME="shop", HOST="db",
        OPTIONS={"ssl": {"ca": "/ca.pem", "cert": "/me.pem"}, "init_command": "SET sql_mode='STRICT_TRANS_TABLES'"},
    )  # fmt: skip
    engine = make_engine("django:other")
    arguments = engine.dialect.create_connect_args(engine.url)[1]
    assert arguments["ssl"] == {"ca": "/ca.pem", "cert": "/me.pem"}
    assert arguments["init_command"] == "SET sql_mode='STRICT_TRANS_TABLES'"
    assert arguments["charset"] == "utf8mb4"


def test_an_engine_around_one_of_djangos_is_known_by_its_vendor(address, tmp_path, monkeypatch):
    package = tmp_path / "metered"
    (package / "lite").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "lite" / "__init__.py").touch()
    (package / "lite" / "base.py").write_text("from django.db.backends.sqlite3.base import *\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert address(ENGINE="metered.lite", NAME="/srv/site.db") == "sqlite:////srv/site.db"


def test_an_engine_without_a_counterpart_is_refused_by_its_name(address):
    with pytest.raises(StoreUnavailable, match="is not supported"):
        address(ENGINE="django.db.backends.oracle", NAME="shop")
