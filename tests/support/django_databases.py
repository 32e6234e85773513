"""A second database of the test project, for the store alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

ALIAS = "trace"


@contextmanager
def other_database(url: sa.URL) -> Iterator[None]:
    """Another database in Django's settings, with the router that keeps everything else out of it."""
    from django.db import connections
    from django.test.utils import override_settings

    engine = {"sqlite": "sqlite3"}.get(url.get_backend_name(), url.get_backend_name())
    if engine == "mysql":
        import pymysql

        pymysql.install_as_MySQLdb()
    connections.databases[ALIAS] = connections.configure_settings(
        {
            "default": {},
            ALIAS: {
                "ENGINE": f"django.db.backends.{engine}", "NAME": url.database, "USER": url.username or "",
                "PASSWORD": url.password or "", "HOST": url.host or "", "PORT": str(url.port or ""),
            },
        }
    )[ALIAS]  # fmt: skip
    try:
        with override_settings(
            CELERY_TRACE_STORE=f"django:{ALIAS}", DATABASE_ROUTERS=["django_bridge.routers.TraceRouter"]
        ):
            yield
    finally:
        connections[ALIAS].close()
        del connections[ALIAS]
        del connections.databases[ALIAS]
