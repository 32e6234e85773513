# mypy: disallow-subclassing-any=False
"""The Django app: connects signals for what the middleware can't see, and registers the checks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from django.apps import AppConfig

if TYPE_CHECKING:
    from celery.utils.dispatch import Signal as CelerySignal
    from django.db.models import Model
    from django.dispatch import Signal

UID = "celery_trace.django"

#: A signal, its receiver, and the sender; None means any sender.
_Connected: TypeAlias = "tuple[Signal | CelerySignal, Callable[..., None], type[Model] | None]"


class TraceConfig(AppConfig):
    """Celery trace in a Django project."""

    name = "django_bridge"
    verbose_name = "Celery trace"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect the signals. With invalid settings or tracing disabled nothing is connected; the checks report it."""
        from django.core.exceptions import ImproperlyConfigured

        from django_bridge import checks, configuration

        checks.register_all()
        try:
            enabled = configuration.settings().enabled
        except ImproperlyConfigured:
            return
        if enabled:
            connect()


def _signals() -> list[_Connected]:
    """The bridge's signals, receivers and senders."""
    from celery.signals import before_task_publish
    from django.apps import apps
    from django.core.signals import got_request_exception, setting_changed
    from django.db.backends.signals import connection_created
    from django.db.models.signals import pre_save

    from celery_trace.runtime import publishing
    from django_bridge import configuration, database_time, links, tracer

    found: list[_Connected] = [
        (setting_changed, configuration.forget, None),
        (setting_changed, tracer.forget, None),
        (got_request_exception, tracer.note_uncaught, None),
        (connection_created, database_time.watch_connection, None),
        (before_task_publish, links.add_request_header, None),
        (before_task_publish, publishing.message_published, None),
    ]
    if apps.is_installed("django_celery_results"):
        results = apps.get_model("django_celery_results", "TaskResult")
        found.append((pre_save, links.note_in_failed_result, results))
    return found


def connect() -> None:
    """Connect the receivers that record requests and failures; a second call changes nothing."""
    from django.db import connections

    from django_bridge import database_time
    from django_bridge.security_log import SuspicionHandler

    for signal, receiver, sender in _signals():
        uid = f"{UID}.{receiver.__qualname__}.{receiver.__module__}"
        signal.connect(receiver, sender=sender, weak=False, dispatch_uid=uid)
    for connection in connections.all(initialized_only=True):
        database_time.watch_connection(connection=connection)  # opened by another app before this one was ready
    security = logging.getLogger("django.security")
    if not any(isinstance(handler, SuspicionHandler) for handler in security.handlers):
        security.addHandler(SuspicionHandler())


def disconnect() -> None:
    """Undo :func:`connect`."""
    from django_bridge.security_log import SuspicionHandler

    for signal, receiver, sender in _signals():
        signal.disconnect(sender=sender, dispatch_uid=f"{UID}.{receiver.__qualname__}.{receiver.__module__}")
    security = logging.getLogger("django.security")
    for handler in [handler for handler in security.handlers if isinstance(handler, SuspicionHandler)]:
        security.removeHandler(handler)
