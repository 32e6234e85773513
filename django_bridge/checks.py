"""System checks: find settings that would record nothing, record in the wrong place, or expose too much."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from django.conf import settings as django_settings
from django.core import checks
from django.utils.module_loading import import_string

from celery_trace.settings import SettingError, Settings
from django_bridge import configuration

if TYPE_CHECKING:
    from django.core.checks import CheckMessage

MIDDLEWARE = "django_bridge.middleware.TraceMiddleware"
ROUTER = "django_bridge.routers.TraceRouter"

#: The driver's module for each kind of store, and the extra that installs it.
_DRIVERS = {
    "postgresql": ("psycopg", "postgres"),
    "postgres": ("psycopg", "postgres"),
    "mysql": ("pymysql", "mysql"),
    "mariadb": ("pymysql", "mysql"),
}
_BACKENDS = {"sqlite3", "postgresql", "postgis", "mysql"}


def register_all() -> None:
    """Register the checks with Django; a second call is harmless."""
    checks.register(check_settings, "celery_trace")
    checks.register(check_middleware, "celery_trace")
    checks.register(check_store, "celery_trace")
    checks.register(check_shell, checks.Tags.security)


def _settings() -> Settings | None:
    try:
        return configuration.read()
    except SettingError:
        return None


def check_settings(**_: object) -> list[CheckMessage]:
    """Whether each ``CELERY_TRACE_*`` is known and valid."""
    try:
        configuration.read()
    except SettingError as error:
        return [checks.Error(str(error), hint="docs/settings.md lists them all.", id="celery_trace.E001")]
    return []


def check_middleware(**_: object) -> list[CheckMessage]:
    """Whether the middleware is present, once and last."""
    settings = _settings()
    if settings is not None and not settings.enabled:
        return []
    places = [number for number, path in enumerate(django_settings.MIDDLEWARE) if _is_ours(path)]
    if not places:
        return [
            checks.Warning(
                "Requests are not traced: celery-trace's middleware is not in MIDDLEWARE.",
                hint=f'Add "{MIDDLEWARE}" as the last one.',
                id="celery_trace.W001",
            )
        ]
    found: list[CheckMessage] = []
    if len(places) > 1:
        found.append(
            checks.Error(
                "celery-trace's middleware is in MIDDLEWARE more than once; each request would be counted twice.",
                hint="Keep the last one.",
                id="celery_trace.E002",
            )
        )
    behind = django_settings.MIDDLEWARE[places[-1] + 1 :]
    if behind:
        found.append(
            checks.Warning(
                f"celery-trace's middleware is before {', '.join(behind)}.",
                hint="Make it the last one: a later one can answer a request or swallow an exception unseen.",
                id="celery_trace.W002",
            )
        )
    return found


def check_store(**_: object) -> list[CheckMessage]:
    """Whether ``trace_store`` can be opened, without opening it."""
    settings = _settings()
    if settings is None or not settings.enabled:
        return []
    alias = configuration.database_alias(settings.store)
    problem = _database_problem(alias) if alias is not None else _url_problem(settings.store_url)
    if problem is not None:
        why, hint = problem
        return [checks.Error(f"CELERY_TRACE_STORE can't be used: {why}", hint=hint, id="celery_trace.E003")]
    if alias not in (None, "default") and ROUTER not in django_settings.DATABASE_ROUTERS:
        return [
            checks.Warning(
                f"celery-trace's tables belong in the database {alias!r}, but migrate would also create them "
                "in the others.",
                hint=f'Add "{ROUTER}" to DATABASE_ROUTERS, then run migrate --database={alias}.',
                id="celery_trace.W003",
            )
        ]
    return []


def check_shell(**_: object) -> list[CheckMessage]:
    """Whether the live shell is more accessible than intended."""
    settings = _settings()
    if settings is None or not settings.enabled or settings.shell != "live":
        return []
    found: list[CheckMessage] = []
    authenticated = any(name in os.environ for name in ("FLOWER_BASIC_AUTH", "FLOWER_AUTH"))
    if not django_settings.DEBUG and not authenticated:
        found.append(
            checks.Warning(
                "The live shell runs code in this site's processes, and the monitor has no authentication configured.",
                hint="Start the monitor with --basic-auth or --auth (or FLOWER_BASIC_AUTH, FLOWER_AUTH in the "
                "environment); otherwise it generates a password at each start. Silence this check if the monitor "
                "is configured elsewhere.",
                id="celery_trace.W004",
            )
        )
    if settings.folder.exists() and settings.folder.stat().st_mode & 0o077:
        found.append(
            checks.Warning(
                f"{settings.folder} is accessible to other users; it has the key that signs live shell commands.",
                hint=f"chmod 700 {settings.folder}",
                id="celery_trace.W005",
            )
        )
    return found


def _is_ours(path: str) -> bool:
    if path == MIDDLEWARE:
        return True
    from django_bridge.middleware import TraceMiddleware

    try:
        found = import_string(path)
    except ImportError:
        return False
    return isinstance(found, type) and issubclass(found, TraceMiddleware)


def _database_problem(alias: str) -> tuple[str, str] | None:
    databases = django_settings.DATABASES
    if alias not in databases:
        return f"DATABASES has no {alias!r}.", f"It has: {', '.join(databases) or 'none'}."
    backend = str(databases[alias].get("ENGINE", "")).rpartition(".")[2]
    if backend not in _BACKENDS:
        return f"the ENGINE of {alias!r} is not supported.", "Use sqlite3, postgresql or mysql."
    return _driver_problem(backend)


def _url_problem(url: str) -> tuple[str, str] | None:
    scheme = urlsplit(url).scheme.partition("+")[0]
    if scheme == "sqlite":
        return _file_problem(Path(unquote(url.partition(":///")[2].partition("?")[0])))
    if scheme not in _DRIVERS:
        return f"unknown kind of store {scheme!r}.", "Use sqlite, postgresql, mysql or mariadb, or django[:alias]."
    return _driver_problem(scheme)


def _driver_problem(kind: str) -> tuple[str, str] | None:
    module, extra = _DRIVERS.get(kind, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        return f"the driver {module} is not installed.", f'pip install "celery-trace[{extra}]"'
    return None


def _file_problem(path: Path) -> tuple[str, str] | None:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        return f"{path} is not writable by uid {os.getuid()}.", "Set CELERY_TRACE_STORE to a writable place."
    return None
