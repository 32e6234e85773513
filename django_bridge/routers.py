"""Routes our tables to the Django database that ``trace_store`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_bridge import configuration

if TYPE_CHECKING:
    from django.db.models import Model

LABEL = "django_bridge"


class TraceRouter:
    """For ``DATABASE_ROUTERS``, if ``trace_store`` is ``django:<alias>`` with a separate alias."""

    def db_for_read(self, model: type[Model], **_: object) -> str | None:
        """The database that our models read; None for other models."""
        return self._alias() if model._meta.app_label == LABEL else None

    def db_for_write(self, model: type[Model], **_: object) -> str | None:
        """The database that our models write; None for other models."""
        return self._alias() if model._meta.app_label == LABEL else None

    def allow_migrate(self, db: str, app_label: str, **_: object) -> bool | None:
        """Create our tables only in the store's database; in none if the store is not a Django database."""
        return db == self._alias() if app_label == LABEL else None

    def _alias(self) -> str | None:
        return configuration.database_alias(configuration.settings().store)
