# mypy: disallow-subclassing-any=False
"""What the models share: the lengths of columns, keys, and where they read."""

from __future__ import annotations

from typing import Any

from django.db import models

from django_bridge import configuration

PREFIX = "celery_trace_"
ID = 64
NAME = 255
WORD = 32
MESSAGE = 1000


class KeyField(models.CharField):
    """
    A textual primary key without PostgreSQL's second index for LIKE, which Django would add.

    Nobody searches keys by prefix, and each index more is paid for by every write.
    """

    def db_type(self, connection: Any) -> str | None:
        """The column's type; under its long name on PostgreSQL, where Django looks for ``varchar``."""
        if connection.vendor == "postgresql":
            return f"character varying({self.max_length})"
        found: str | None = super().db_type(connection)
        return found


class StoreManager(models.Manager):
    """Reads from the Django database that ``trace_store`` names, whatever the routers say."""

    def get_queryset(self) -> Any:
        """All rows, in the store's own database."""
        rows = super().get_queryset()
        alias = configuration.database_alias(configuration.settings().store)
        return rows.using(alias) if alias is not None and self._db is None else rows
