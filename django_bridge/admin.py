# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
"""Admin pages for runs, leaks and failures, and the failures of a task on its stored result."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from django.apps import apps
from django.contrib import admin
from django.urls import NoReverseMatch, reverse

from celery_trace import model
from celery_trace.failures import views
from celery_trace.model import Kind, Outcome, Verdict
from celery_trace.text.escape import escaped
from celery_trace.text.format import duration, size
from django_bridge import links, payloads
from django_bridge.models import Failure, Kept, Leak, Run, SharedCapture
from django_bridge.pages import ChoiceFilter, ReadOnlyAdmin, local_time, text_column

if TYPE_CHECKING:
    from django.http import HttpRequest


class KindFilter(ChoiceFilter):
    title = "kind"
    parameter_name = "kind"
    choices_shown = tuple(Kind)


class OutcomeFilter(ChoiceFilter):
    title = "outcome"
    parameter_name = "outcome"
    choices_shown = tuple(Outcome)


class VerdictFilter(ChoiceFilter):
    title = "verdict"
    parameter_name = "verdict"
    choices_shown = tuple(Verdict)


class WhyFilter(ChoiceFilter):
    title = "reason"
    parameter_name = "why"
    choices_shown = ("failed", "outlier", "sampled", "traced")


@admin.register(Failure)
class FailureAdmin(ReadOnlyAdmin):
    """Failed tasks and requests, and one with its frames and their locals."""

    list_display = ("shown_name", "outcome", "raised", "at", "worker_or_host", "retries")
    list_filter = (KindFilter, OutcomeFilter)
    search_fields = ("name", "=task_id", "=root_id", "exception_type", "=fingerprint")
    search_help_text = "Name or exception, or a whole task id, root id or fingerprint."
    ordering = ("-at_s", "-id")
    change_form_template = "admin/django_bridge/failure/change_form.html"
    fields = (
        "shown_name",
        "kind",
        "outcome",
        "raised",
        "at",
        "worker_or_host",
        "pid",
        "shown_task_id",
        "retries",
        "shown_root_id",
    )
    readonly_fields = fields

    shown_name = text_column("name")
    shown_task_id = text_column("task_id")
    shown_root_id = text_column("root_id")

    @admin.display(description="exception")
    def raised(self, row: Failure) -> str:
        """Type and message."""
        said = f"{row.exception_type}: {row.exception_message}" if row.exception_type else row.exception_message
        return escaped(said or "–")

    @admin.display(description="when", ordering="at_s")
    def at(self, row: Failure) -> datetime.datetime | None:
        """When it failed."""
        return local_time(row.at_s)

    @admin.display(description="worker", ordering="worker")
    def worker_or_host(self, row: Failure) -> str:
        """The worker, or for a request the host."""
        return escaped(row.worker or row.hostname)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, object] | None = None
    ) -> object:
        """The page of one failure."""
        row = self.get_object(request, object_id)
        if row is None or not self.has_view_permission(request, row):
            return super().change_view(request, object_id, form_url, extra_context)
        shared = SharedCapture.objects.filter(id=row.shared).values_list("payload", flat=True).first()
        record = payloads.read(row.payload, model.Failure, shared)
        context = {
            "title": escaped(row.name),
            "detail": views.detail(record) if record is not None else None,
            "result_url": result_url(row.task_id, request),
            "related": related(row, record),
            "live_until": live_until(row.id),
        }
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})


def result_url(task_id: str, request: HttpRequest) -> str:
    """The URL of a task's page in django-celery-results; empty without a page or without permission."""
    if not task_id or not apps.is_installed("django_celery_results"):
        return ""
    from django_celery_results.models import TaskResult

    if not request.user.has_perm("django_celery_results.view_taskresult"):
        return ""
    key = TaskResult.objects.filter(task_id=task_id).values_list("pk", flat=True).first()
    try:
        return reverse("admin:django_celery_results_taskresult_change", args=[key]) if key is not None else ""
    except NoReverseMatch:
        return ""


def related(row: Failure, record: model.Failure | None) -> list[Failure]:
    """Other failures of the same tree: of the request that sent this task, and of tasks that it sent."""
    roots = {row.root_id}
    if record is not None and record.task is not None:
        roots.add(record.task.headers.get(links.HEADER, ""))
    roots.discard("")
    if not roots:
        return []
    found = Failure.objects.filter(root_id__in=roots).exclude(pk=row.pk).order_by("at_s")
    return list(found.defer("payload")[:20])


def live_until(failure: str) -> datetime.datetime | None:
    """Until when the failed process holds the objects; None if it doesn't."""
    import time

    kept = Kept.objects.filter(failure=failure, gone="", until_s__gt=time.time()).order_by("-until_s").first()
    return local_time(kept.until_s) if kept is not None else None


@admin.register(Leak)
class LeakAdmin(ReadOnlyAdmin):
    """The leak table, and one leak with its line, types and retainers."""

    list_display = ("shown_name", "verdict", "per_run", "shown_place", "seen")
    list_filter = (VerdictFilter, KindFilter)
    search_fields = ("name", "place")
    ordering = ("rank", "-kept_bytes_per_run", "id")
    change_form_template = "admin/django_bridge/leak/change_form.html"
    fields = ("shown_name", "kind", "verdict", "per_run", "shown_place", "seen")
    readonly_fields = fields

    shown_name = text_column("name")
    shown_place = text_column("place")

    @admin.display(description="kept per run", ordering="kept_bytes_per_run")
    def per_run(self, row: Leak) -> str:
        """Memory retained per run."""
        return size(row.kept_bytes_per_run)

    @admin.display(description="last seen", ordering="last_seen_s")
    def seen(self, row: Leak) -> datetime.datetime | None:
        """When it was last seen."""
        return local_time(row.last_seen_s)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, object] | None = None
    ) -> object:
        """The page of one leak."""
        row = self.get_object(request, object_id)
        leak = payloads.read(row.payload, model.Leak) if row is not None else None
        context = {"title": escaped(row.name) if row is not None else "", "leak": leak}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin):
    """Runs that are stored individually: slow, traced or sampled ones."""

    list_display = ("shown_name", "state", "why", "started", "took", "kept")
    list_filter = (WhyFilter, KindFilter)
    search_fields = ("name", "=task_id", "=root_id")
    ordering = ("-started_at_s", "-id")
    fields = (
        "shown_name",
        "kind",
        "state",
        "why",
        "started",
        "took",
        "kept",
        "shown_task_id",
        "retries",
        "shown_queue",
        "shown_root_id",
    )
    readonly_fields = fields

    shown_name = text_column("name")
    shown_task_id = text_column("task_id")
    shown_root_id = text_column("root_id")
    shown_queue = text_column("queue")

    @admin.display(description="started", ordering="started_at_s")
    def started(self, row: Run) -> datetime.datetime | None:
        """When it started."""
        return local_time(row.started_at_s)

    @admin.display(description="took", ordering="duration_s")
    def took(self, row: Run) -> str:
        """How long it ran."""
        return duration(row.duration_s)

    @admin.display(description="memory kept", ordering="kept_bytes")
    def kept(self, row: Run) -> str:
        """Memory that it retained, if it was measured and alone in its process."""
        if row.kept_bytes is None:
            return "–"
        shown = size(row.kept_bytes)
        return shown if row.concurrent <= 1 else f"{shown} (process, {row.concurrent} at once)"


if apps.is_installed("django_celery_results"):
    from django_bridge import results_admin

    results_admin.add_inline()
