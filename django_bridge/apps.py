# mypy: disallow-subclassing-any=False
"""The Django app: connects what the middleware alone can't see, and registers the checks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django.apps import AppConfig

UID = "celery_trace.django"


class TraceConfig(AppConfig):
    """Celery trace in a Django project."""

    name = "django_bridge"
    verbose_name = "Celery trace"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect the signals. With a wrong or switched off setting nothing is connected; the checks tell."""
        from django.core.exceptions import ImproperlyConfigured

        from django_bridge import checks, configuration

        checks.register_all()
        try:
            enabled = configuration.settings().enabled
        except ImproperlyConfigured:
            return
        if enabled:
            connect()


def _signals() -> list[tuple[Any, Callable[..., None]]]:
    """Which signals the bridge hears, and with what."""
    from celery.signals import before_task_publish, task_prerun
    from django.apps import apps
    from django.core.signals import got_request_exception, setting_changed
    from django.db.backends.signals import connection_created

    from django_bridge import configuration, database_time, links, tracer

    pairs: list[tuple[Any, Callable[..., None]]] = [
        (setting_changed, configuration.forget),
        (setting_changed, tracer.forget),
        (got_request_exception, tracer.note_uncaught),
        (connection_created, database_time.watch_connection),
        (before_task_publish, links.add_request_header),
    ]
    if apps.is_installed("django_celery_results"):
        pairs.append((task_prerun, links.note_in_result_before_run))
    return pairs


def connect() -> None:
    """Connect what records requests and their failures; doing it twice changes nothing."""
    from django.db import connections

    from django_bridge import database_time
    from django_bridge.security_log import SuspicionHandler

    for signal, receiver in _signals():
        signal.connect(receiver, weak=False, dispatch_uid=f"{UID}.{receiver.__qualname__}.{receiver.__module__}")
    for connection in connections.all(initialized_only=True):
        database_time.watch_connection(connection=connection)  # another app opened it before this one was ready
    security = logging.getLogger("django.security")
    if not any(isinstance(handler, SuspicionHandler) for handler in security.handlers):
        security.addHandler(SuspicionHandler())


def disconnect() -> None:
    """Undo :func:`connect`."""
    from django_bridge.security_log import SuspicionHandler

    for signal, receiver in _signals():
        signal.disconnect(dispatch_uid=f"{UID}.{receiver.__qualname__}.{receiver.__module__}")
    security = logging.getLogger("django.security")
    for handler in [handler for handler in security.handlers if isinstance(handler, SuspicionHandler)]:
        security.removeHandler(handler)
