# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False
# ruff: noqa: ARG002  the admin's own signatures
"""What all our admin pages share: they only read, they read the store, and a long table costs no full count."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.core.paginator import Paginator
from django.utils import timezone
from django.utils.functional import cached_property

from celery_trace.text.escape import escaped
from django_bridge import configuration

#: Rows beyond this are not counted for the pager; filters and the search still reach them.
MOST_COUNTED = 10_000


def local_time(at_s: float | None) -> datetime.datetime | None:
    """Seconds since the epoch as the admin shows times."""
    if not at_s:
        return None
    local: datetime.datetime = timezone.localtime(datetime.datetime.fromtimestamp(at_s, datetime.UTC))
    return local


def text_column(field: str) -> Callable[..., str]:
    """A column of text from a traced process, its hidden characters as escapes."""

    def column(_: Any, row: Any) -> str:
        return escaped(getattr(row, field))

    shown: Callable[..., str] = admin.display(column, description=field.replace("_", " "), ordering=field)
    return shown


def store_is_here() -> bool:
    """Whether ``trace_store`` is a Django database; otherwise the tables here would be empty or missing."""
    return configuration.database_alias(configuration.settings().store) is not None


class BoundedPaginator(Paginator):
    """Counts up to a bound: an exact count of a large table takes seconds on every page."""

    @cached_property
    def count(self) -> int:
        """How many rows there are, or :data:`MOST_COUNTED`."""
        counted: int = self.object_list.order_by()[:MOST_COUNTED].count()
        return counted


class ReadOnly:
    """Permissions of what the collector wrote: to be seen by those whom the project allows to, never changed."""

    def has_add_permission(self, request: Any, obj: Any = None) -> bool:
        """Records come from traced processes alone."""
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        """What happened has happened."""
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        """Old records go by ``trace_prune``."""
        return False


class ReadOnlyAdmin(ReadOnly, admin.ModelAdmin):
    """
    Shows records that the collector wrote.

    Hidden where the store is elsewhere: the monitor shows it then.
    """

    paginator = BoundedPaginator
    show_full_result_count = False
    list_per_page = 50
    actions = None

    def get_queryset(self, request: Any) -> Any:
        """The rows without their payload, of which a list shows nothing; one record's page loads it."""
        return super().get_queryset(request).defer("payload")

    def has_view_permission(self, request: Any, obj: Any = None) -> bool:
        """Those whom the project allows to, while the store is a Django database."""
        return store_is_here() and bool(super().has_view_permission(request, obj))

    def has_module_permission(self, request: Any) -> bool:
        """Whether the section stands on the admin's first page."""
        return store_is_here() and bool(super().has_module_permission(request))


class ChoiceFilter(admin.SimpleListFilter):
    """A filter by a column whose values are known: no DISTINCT over a large table."""

    choices_shown: tuple[str, ...] = ()

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        """The values as the page shows them."""
        return [(value, value.replace("_", " ")) for value in self.choices_shown]

    def queryset(self, request: Any, queryset: Any) -> Any:
        """The rows with the chosen value."""
        value = self.value()
        return queryset.filter(**{self.parameter_name: value}) if value in self.choices_shown else queryset
