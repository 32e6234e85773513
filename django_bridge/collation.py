# mypy: disallow-subclassing-any=False
"""Our tables compare text byte by byte, as the store's own migrations make them."""

from __future__ import annotations

from typing import Any

from django.db.migrations.operations.base import Operation


class CompareByBytes(Operation):
    """
    Give new tables the collation ``utf8mb4_bin`` on MySQL and MariaDB; does nothing elsewhere.

    By default these compare texts without case and trailing spaces, and two of our keys would be one.

    Args:
        names: The models whose tables are new; all of them when none is named.
    """

    reversible = True
    reduces_to_sql = True

    def __init__(self, *names: str) -> None:
        self.names = names

    def state_forwards(self, app_label: str, state: Any) -> None:
        """The models stay as they are."""

    def database_forwards(self, app_label: str, schema_editor: Any, _from_state: Any, to_state: Any) -> None:
        """Convert each table; they are new, so nothing has to be copied."""
        if schema_editor.connection.vendor != "mysql" or not self.allow_migrate_model(
            schema_editor.connection.alias, next(iter(to_state.apps.get_app_config(app_label).get_models()))
        ):
            return
        for model in to_state.apps.get_app_config(app_label).get_models():
            if self.names and model.__name__ not in self.names:
                continue
            table = schema_editor.quote_name(model._meta.db_table)
            schema_editor.execute(f"ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")

    def database_backwards(self, app_label: str, schema_editor: Any, _from_state: Any, to_state: Any) -> None:
        """Nothing to undo: the tables go."""

    def describe(self) -> str:
        """What ``migrate --plan`` shows."""
        return "Compare text byte by byte on MySQL and MariaDB"
