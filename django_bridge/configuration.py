"""The bridge's settings: Django's ``CELERY_TRACE_*``, then the environment, validated once."""

from __future__ import annotations

from functools import lru_cache

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from celery_trace.redaction import Redactor
from celery_trace.settings import SettingError, Settings, load

PREFIX = "CELERY_TRACE_"


def read() -> Settings:
    """
    Read and validate the current settings.

    Raises:
        SettingError: An unknown name, or an invalid value.
    """
    return load({name: getattr(django_settings, name) for name in dir(django_settings) if name.startswith(PREFIX)})


@lru_cache(maxsize=1)
def settings() -> Settings:
    """
    The settings of this process.

    Raises:
        ImproperlyConfigured: As for :func:`read`, as Django's exception, so that the process doesn't start.
    """
    try:
        return read()
    except SettingError as error:
        raise ImproperlyConfigured(str(error)) from None


@lru_cache(maxsize=1)
def redactor() -> Redactor:
    """This process's redactor for requests."""
    return Redactor(settings().redact)


def forget(*, setting: str = "", **_: object) -> None:
    """Read the settings again at their next use; connected to Django's ``setting_changed``."""
    if not setting or setting.startswith(PREFIX):
        settings.cache_clear()
        redactor.cache_clear()


def database_alias(store: str) -> str | None:
    """The Django database that a ``trace_store`` names, or None for another store."""
    if store == "django":
        return "default"
    if store.startswith("django:"):
        return store.removeprefix("django:") or "default"
    return None
