# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
# ruff: noqa: ARG002  the admin's own signatures
"""The base of our admin pages: read-only, from the store, without a full count of a long table."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING

from django.contrib import admin
from django.core.paginator import Paginator
from django.utils import timezone
from django.utils.functional import cached_property

from celery_trace.text.escape import escaped
from django_bridge import configuration

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin
    from django.db.models import Model, QuerySet
    from django.http import HttpRequest

#: The pager does not count rows beyond this; filters and the search still reach them.
MOST_COUNTED = 10_000


def local_time(at_s: float | None) -> datetime.datetime | None:
    """Seconds since the epoch as a local datetime."""
    if not at_s:
        return None
    local: datetime.datetime = timezone.localtime(datetime.datetime.fromtimestamp(at_s, datetime.UTC))
    return local


def text_column(field: str) -> Callable[..., str]:
    """A column with text from a traced process, hidden characters as escapes."""

    def column(_: object, row: object) -> str:
        return escaped(getattr(row, field))

    shown: Callable[..., str] = admin.display(column, description=field.replace("_", " "), ordering=field)
    return shown


def store_is_here() -> bool:
    """Whether ``trace_store`` is a Django database; otherwise the tables here would be empty or missing."""
    return configuration.database_alias(configuration.settings().store) is not None


class BoundedPaginator(Paginator):
    """Counts up to a limit, as an exact count of a large table takes seconds on every page."""

    @cached_property
    def count(self) -> int:
        """The number of rows, at most :data:`MOST_COUNTED`."""
        counted: int = self.object_list.order_by()[:MOST_COUNTED].count()
        return counted


class ReadOnly:
    """Permissions for the collector's records: visible by the project's permissions, never changed."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Records come from traced processes alone."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Records are never changed."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Old records are removed by ``trace_prune``."""
        return False


class ReadOnlyAdmin(ReadOnly, admin.ModelAdmin):
    """
    Shows records that the collector wrote.

    Hidden if the store is not a Django database: the monitor shows it then.
    """

    paginator = BoundedPaginator
    show_full_result_count = False
    list_per_page = 50
    actions = None

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        """The rows without their payload, which lists don't show; a record's page loads it."""
        return super().get_queryset(request).defer("payload")

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Users with the project's permission, if the store is a Django database."""
        return store_is_here() and bool(super().has_view_permission(request, obj))

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Whether the section is shown on the admin's index page."""
        return store_is_here() and bool(super().has_module_permission(request))


class ChoiceFilter(admin.SimpleListFilter):
    """A filter by a column with known values, without a DISTINCT over a large table."""

    choices_shown: tuple[str, ...] = ()

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[str, str]]:
        """The values and their labels."""
        return [(value, value.replace("_", " ")) for value in self.choices_shown]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        """The rows with the chosen value."""
        value = self.value()
        return queryset.filter(**{self.parameter_name: value}) if value in self.choices_shown else queryset
