# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False

"""Shows a task's failures on its result page in django-celery-results, with links to their frames."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import django_celery_results.admin  # noqa: F401  its own registration must come first
from django.apps.registry import Apps
from django.contrib import admin
from django.db import models
from django.urls import reverse
from django.utils.html import format_html
from django_celery_results.models import TaskResult

from celery_trace.stores import schema
from celery_trace.text.escape import escaped
from django_bridge.pages import ReadOnly, local_time, store_is_here
from django_bridge.store_models import StoreRow

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite
    from django.db.models import Model
    from django.http import HttpRequest

#: A separate registry: in the project's, ``makemigrations`` would see a model that exists only if
#: django-celery-results is installed.
_registry = Apps()
_registry.register_model("django_celery_results", TaskResult)


class TaskFailure(
    StoreRow,
    table=schema.failures,
    only=("id", "retries", "outcome", "exception_type", "exception_message", "at_s"),
    apps=_registry,
    app_label="django_bridge",
    verbose_name="failure",
    verbose_name_plural="failures recorded by celery-trace",
    ordering=["retries", "at_s"],
):
    """The failures table with the task's id as the relation that an inline needs. Never written."""

    task_result = models.ForeignKey(
        TaskResult,
        to_field="task_id",
        db_column="task_id",
        db_constraint=False,
        on_delete=models.DO_NOTHING,
        related_name="+",
    )

    def __str__(self) -> str:
        return f"{self.exception_type} (retry {self.retries})" if self.retries else str(self.exception_type)


class FailureInline(ReadOnly, admin.TabularInline):
    """The failures of one task, one for each failed attempt."""

    model = TaskFailure
    extra = 0
    max_num = 0
    can_delete = False
    fields = readonly_fields = ("page", "outcome", "retries", "raised", "at")

    @admin.display(description="failure")
    def page(self, row: TaskFailure) -> object:
        """A link to its frames and locals."""
        address = reverse("admin:django_bridge_failure_change", args=[row.pk])
        return format_html('<a href="{}">{}</a>', address, row.pk)

    @admin.display(description="exception")
    def raised(self, row: TaskFailure) -> str:
        """Type and message."""
        return escaped(f"{row.exception_type}: {row.exception_message}")

    @admin.display(description="when")
    def at(self, row: TaskFailure) -> datetime.datetime | None:
        """When it failed."""
        return local_time(row.at_s)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Users who may see failures, if the store is a Django database and the task has any."""
        if not store_is_here() or not request.user.has_perm("django_bridge.view_failure"):
            return False
        return obj is None or TaskFailure.objects.filter(task_result=obj.task_id).exists()


def add_inline(site: AdminSite = admin.site) -> None:
    """
    Add the inline to the page of a task result; a second call changes nothing.

    The registered class is extended, not replaced, so that a project's changes to it stay.
    """
    registered = site._registry.get(TaskResult)
    if registered is None or FailureInline in registered.inlines:
        return
    options = type(registered)
    extended = type(options.__name__, (options,), {"inlines": [*options.inlines, FailureInline]})
    site.unregister(TaskResult)
    site.register(TaskResult, extended)
