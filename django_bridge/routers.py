"""Keeps our tables in the Django database that ``trace_store`` names, and out of all others."""

from __future__ import annotations

from typing import Any

from django_bridge import configuration

LABEL = "django_bridge"


class TraceRouter:
    """For ``DATABASE_ROUTERS``, where ``trace_store`` is ``django:<alias>`` with an alias of its own."""

    def db_for_read(self, model: Any, **_: Any) -> str | None:
        """Where our models read; no opinion on others."""
        return self._alias() if model._meta.app_label == LABEL else None

    def db_for_write(self, model: Any, **_: Any) -> str | None:
        """Where our models write; no opinion on others."""
        return self._alias() if model._meta.app_label == LABEL else None

    def allow_migrate(self, db: str, app_label: str, **_: Any) -> bool | None:
        """Our tables are made in the store's database alone; in none when the store is elsewhere."""
        return db == self._alias() if app_label == LABEL else None

    def _alias(self) -> str | None:
        return configuration.database_alias(configuration.settings().store)
