"""SQLAlchemy engines for a store URL or a database of Django's settings."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url

from celery_trace.redaction import Redactor
from celery_trace.stores.database_file import Connection, DatabaseFile
from celery_trace.stores.errors import StoreUnavailable

_SECRETS = Redactor()
#: How long SQLite waits for another writer, seconds.
BUSY_S = 10.0

_DRIVERS = {
    "postgresql": ("postgresql+psycopg", "psycopg", "postgres"),
    "postgres": ("postgresql+psycopg", "psycopg", "postgres"),
    "mysql": ("mysql+pymysql", "pymysql", "mysql"),
    "mariadb": ("mariadb+pymysql", "pymysql", "mysql"),
}
_DJANGO_BACKENDS = {
    "sqlite3": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgis": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
}
#: The connection parameters that Django passes from OPTIONS to libpq.
_LIBPQ = frozenset(
    [
        "service",
        "passfile",
        "options",
        "hostaddr",
        "target_session_attrs",
        "channel_binding",
        "gssencmode",
        "krbsrvname",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslpassword",
        "sslcrl",
        "sslcrldir",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
    ]
)


def shown(url: str | URL) -> str:
    """A store's address without secrets, for logs, errors and pages. Nothing else may show such an address."""
    if url == "django" or str(url).startswith("django:"):
        return str(url)
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return "(unreadable address)"
    if parsed.host and "@" in parsed.host:  # the end of a password with an @ was parsed as part of the host
        parsed = parsed.set(host=parsed.host.rpartition("@")[2])
    secret = [name for name in parsed.query if _SECRETS.is_secret_name(name) or "pass" in name.lower()]
    parsed = parsed.update_query_dict(dict.fromkeys(secret, "***"))
    return parsed.render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def make_engine(store_url: str) -> Engine:
    """
    The engine for ``trace_store``; it does not connect yet.

    Raises:
        StoreUnavailable: The address is invalid, or its driver is not installed.
    """
    if store_url == "django" or store_url.startswith("django:"):
        return _from_url(django_url(store_url), store_url)
    try:
        url = make_url(store_url)
    except (sa.exc.ArgumentError, ValueError):  # the error may contain part of the password
        raise StoreUnavailable(
            "Can't open the store", "its address is not an SQLAlchemy URL", "Correct trace_store."
        ) from None
    return _from_url(_with_driver(url), store_url)


def _with_driver(url: URL) -> URL:
    """The URL with the driver that we install, also if an application's own address names another."""
    backend = url.drivername.partition("+")[0]
    return url.set(drivername=_DRIVERS[backend][0]) if backend in _DRIVERS else url


def _from_url(url: URL, store_url: str) -> Engine:
    backend = url.get_backend_name()
    arguments: dict[str, object] = {"pool_pre_ping": True}
    connect: dict[str, object] = {}
    if backend == "sqlite":
        arguments.pop("pool_pre_ping")
        connect = {"check_same_thread": False}
        if "timeout" not in url.query:
            connect["timeout"] = BUSY_S
    elif backend == "postgresql":
        # A plan prepared while a table was empty would scan it after it has grown.
        connect = {"connect_timeout": 5, "application_name": "celery-trace", "prepare_threshold": None}
        arguments["isolation_level"] = "READ COMMITTED"
    elif backend in {"mysql", "mariadb"}:
        connect = {"connect_timeout": 5, "read_timeout": 60, "write_timeout": 60}
        arguments["isolation_level"] = "READ COMMITTED"
        if "charset" not in url.query:
            url = url.update_query_dict({"charset": "utf8mb4"})
    if backend != "sqlite":
        arguments.update(pool_size=4, max_overflow=8, pool_recycle=1800, pool_timeout=10)
    try:
        engine = sa.create_engine(url, connect_args=connect, **arguments)
    except (ImportError, sa.exc.NoSuchModuleError) as error:
        extra = next((row[2] for name, row in _DRIVERS.items() if url.drivername.startswith(name)), None)
        advice = f'pip install "celery-trace[{extra}]"' if extra else "Use sqlite, postgresql, mysql or mariadb."
        raise StoreUnavailable(f"Can't open the store {shown(store_url)}", str(error), advice) from None
    if backend == "sqlite":
        _configure_sqlite(engine, wal=is_ours_alone(engine, store_url))
    return engine


def is_ours_alone(engine: Engine, store_url: str) -> bool:
    """Whether the store is its own SQLite file, which we may configure; a Django database belongs to the project."""
    database = engine.url.database
    writable = not store_url.startswith("django") and "mode=ro" not in store_url
    return engine.dialect.name == "sqlite" and writable and database not in (None, "", ":memory:")


def _configure_sqlite(engine: Engine, *, wal: bool) -> None:
    """Use WAL, so that readers never wait, and explicit transactions in which writers lock at once."""

    path = sqlite_path(engine)
    path = path.absolute() if path is not None else None  # the working directory may change later

    @sa.event.listens_for(engine, "do_connect")
    def refuse_to_make(_dialect: object, _record: object, arguments: list[object], options: dict[str, object]) -> None:
        # We recreate a deleted file ourselves, as SQLite would give it other permissions.
        if path is not None:
            arguments[0] = f"file:{quote(str(path))}?mode=rw"
            options["uri"] = True
            options["factory"] = Connection

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late for a consistent read
        if wal and path is not None and isinstance(connection, Connection):
            connection.folder = path.parent
        try:
            if wal:
                connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # affects new files only
                connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA cache_size=-32000")
            connection.execute("PRAGMA temp_store=MEMORY")
        except sqlite3.Error:
            connection.close()  # the pool only drops it
            raise

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writing = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def prepare_sqlite_file(file: DatabaseFile | None, address: str, *, create: bool) -> None:
    """
    Create the database file if there is none.

    Raises:
        StoreUnavailable: It can't be created, or it is missing and ``create`` is False.
    """
    if file is None or file.path.exists():
        return
    what = f"Can't open the store {address}"
    if not create:
        raise StoreUnavailable(
            what,
            "the file does not exist",
            "Nothing was recorded there yet: start a worker with CELERY_TRACE=1, or set CELERY_TRACE_STORE.",
        )
    try:
        file.make()
    except OSError as error:
        raise StoreUnavailable(
            what,
            f"{error.strerror} for uid {os.getuid()}: {error.filename}",
            "Set CELERY_TRACE_STORE to a writable place; tasks go on, records wait in the spool.",
        ) from None


def sqlite_path(engine: Engine) -> Path | None:
    """The path of an SQLite database file; None for other databases."""
    name = engine.url.database
    if engine.dialect.name != "sqlite" or not name or name == ":memory:" or name.startswith("file:"):
        return None  # a file: address has its own options
    return Path(name)


def django_url(store_url: str) -> URL:
    """
    The SQLAlchemy URL of ``django[:alias]``, read from Django's ``DATABASES``.

    Raises:
        StoreUnavailable: Django is not set up here, or the alias or its backend is unknown.
    """
    alias = store_url.partition(":")[2] or "default"
    what = f"Can't open the store {store_url}"
    try:
        from django.conf import settings
        from django.core.exceptions import ImproperlyConfigured
    except ImportError:
        raise StoreUnavailable(what, "Django is not installed here", 'pip install "celery-trace[django]"') from None
    try:
        databases = settings.DATABASES
    except (ImproperlyConfigured, ImportError) as error:
        raise StoreUnavailable(
            what, f"Django's settings can't be read ({error})", "Set DJANGO_SETTINGS_MODULE."
        ) from None
    if alias not in databases:
        known = ", ".join(databases) or "none"
        raise StoreUnavailable(what, f"DATABASES has no {alias!r}", f"It has: {known}.")
    database = databases[alias]
    backend = str(database.get("ENGINE", "")).rpartition(".")[2]
    driver = _DJANGO_BACKENDS.get(backend) or _driver_of_a_wrapper(alias)
    if driver is None:
        raise StoreUnavailable(
            what, f"its ENGINE {database.get('ENGINE')!r} is not supported", "Use sqlite3, postgresql or mysql."
        )
    name = str(database.get("NAME") or "")
    if driver == "sqlite":
        return URL.create("sqlite", database=name)
    host = str(database.get("HOST") or "") or None
    options = database.get("OPTIONS") or {}
    if driver.startswith("postgresql"):
        query = {key: str(value) for key, value in options.items() if key in _LIBPQ}
        if options.get("assume_role"):
            query["options"] = f"{query.get('options', '')} -c role={options['assume_role']}".strip()
        if host and host.startswith("/"):
            query["host"], host = host, None
    else:
        query = _mysql_query(options)
        if host and host.startswith("/"):
            query["unix_socket"], host = host, "localhost"
    return URL.create(
        driver,
        username=str(database.get("USER") or "") or None,
        password=str(database.get("PASSWORD") or "") or None,
        host=host or ("localhost" if driver.startswith("mysql") else None),
        port=int(database["PORT"]) if database.get("PORT") else None,
        database=name or None,  # a PostgreSQL service may name it
        query=query,
    )


def _driver_of_a_wrapper(alias: str) -> str | None:
    """Many packages (for metrics, tenants, pools) have their own ENGINE around one of Django's."""
    from django.core.exceptions import ImproperlyConfigured
    from django.db import connections

    try:
        vendor = str(connections[alias].vendor)
    except (ImproperlyConfigured, ImportError):
        return None
    return {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}.get(vendor)


def _mysql_query(options: Mapping[str, object]) -> dict[str, str]:
    """Translate Django's OPTIONS for mysqlclient into SQLAlchemy's query for PyMySQL."""
    query = {name: str(options[name]) for name in ("unix_socket", "charset", "init_command") if options.get(name)}
    # mysqlclient reads them from the file; PyMySQL can read the same one.
    query |= {name: str(options[name]) for name in ("read_default_file", "read_default_group") if options.get(name)}
    ssl = options.get("ssl")
    if isinstance(ssl, Mapping):
        query |= {f"ssl_{name}": str(ssl[name]) for name in ("ca", "cert", "key", "capath", "cipher") if ssl.get(name)}
    return query
