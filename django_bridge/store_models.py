# mypy: disallow-subclassing-any=False
"""Creates Django models from the tables of :mod:`celery_trace.stores.schema`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import models
from django.db.models.base import ModelBase

from celery_trace.stores import schema
from django_bridge import configuration

if TYPE_CHECKING:
    from django.db.models import QuerySet


class StoreManager(models.Manager):
    """Reads from the Django database that ``trace_store`` names, ignoring routers."""

    def get_queryset(self) -> QuerySet:
        """All rows, in the store's database."""
        rows = super().get_queryset()
        alias = configuration.database_alias(configuration.settings().store)
        return rows.using(alias) if alias is not None and self._db is None else rows


_FIELDS = {
    "text": models.CharField,
    "long text": models.TextField,
    "whole": models.BigIntegerField,
    "real": models.FloatField,
    "flag": models.BooleanField,
    "bytes": models.BinaryField,
}


def field(column: schema.Column) -> models.Field:
    """The model field for a column."""
    options: dict[str, object] = {}
    if column.type.length is not None:
        options["max_length"] = column.type.length
    if column.key:
        options["primary_key"] = True
    elif column.nullable:
        options |= {"null": True, "blank": True}
    else:
        options |= {"default": column.empty, "blank": column.empty == ""}
    return _FIELDS[column.type.kind](**options)


class StoreModel(ModelBase):
    """
    The metaclass of models of the store's tables, which Django never creates or changes.

    Args:
        table: The table; without one it is an ordinary model, such as a proxy.
        only: The columns; by default all.
        verbose_name, and others: Options for ``Meta``.
    """

    def __new__(
        cls,
        name: str,
        bases: tuple[type, ...],
        attrs: dict[str, object],
        table: schema.Table | None = None,
        only: tuple[str, ...] = (),
        **options: object,
    ) -> StoreModel:
        """Add the fields and ``Meta``."""
        if table is not None:
            attrs |= {one.name: field(one) for one in table.columns if not only or one.name in only}
            attrs["Meta"] = type("Meta", (), options | {"managed": False, "db_table": table.name})
        model: StoreModel = super().__new__(cls, name, bases, attrs)
        return model


class StoreRow(models.Model, metaclass=StoreModel):
    """A read-only row of the store."""

    objects = StoreManager()

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return str(getattr(self, "name", self.pk))
