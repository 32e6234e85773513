"""The settings of the bridge: Django's ``CELERY_TRACE_*``, then the environment, checked once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from celery_trace.redaction import Redactor
from celery_trace.settings import SettingError, Settings, load

PREFIX = "CELERY_TRACE_"


def read() -> Settings:
    """
    Read and check the settings as they stand now.

    Raises:
        SettingError: A name that does not exist, or a value that is not allowed.
    """
    return load({name: getattr(django_settings, name) for name in dir(django_settings) if name.startswith(PREFIX)})


@lru_cache(maxsize=1)
def settings() -> Settings:
    """
    The settings of this process.

    Raises:
        ImproperlyConfigured: As :func:`read`, in Django's own words for it, so that the process doesn't start.
    """
    try:
        return read()
    except SettingError as error:
        raise ImproperlyConfigured(str(error)) from None


@lru_cache(maxsize=1)
def redactor() -> Redactor:
    """What takes secrets out of requests in this process."""
    return Redactor(settings().redact)


def forget(*, setting: str = "", **_: Any) -> None:
    """Read the settings again when they are next asked for; connected to Django's ``setting_changed``."""
    if not setting or setting.startswith(PREFIX):
        settings.cache_clear()
        redactor.cache_clear()


def database_alias(store: str) -> str | None:
    """The Django database that a ``trace_store`` names, or None where it names another store."""
    if store == "django":
        return "default"
    if store.startswith("django:"):
        return store.removeprefix("django:") or "default"
    return None
