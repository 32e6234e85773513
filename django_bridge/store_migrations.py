# mypy: disallow-subclassing-any=False
"""Django's migrations run the store's own, on Django's connection."""

from __future__ import annotations

from typing import Any

from django.db import migrations, router
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ModelState

from celery_trace.stores import schema

FIRST = "0001"


class MigrateStore(Operation):
    """
    One migration of :mod:`celery_trace.stores.migrations`.

    Going back changes no table: the store's migrations go forward only, and tables that are newer serve until they
    are needed again. Only to go back before the first one (``migrate django_bridge zero``) drops all of them.

    Args:
        revision: Its number, such as ``0002``.
    """

    reduces_to_sql = True
    reversible = True

    def __init__(self, revision: str) -> None:
        self.revision = revision

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Django makes none of our tables, so it need not know how they looked before: the models are as they are."""
        from django.apps import apps

        if self.revision == FIRST:
            for model in apps.get_app_config(app_label).get_models():
                state.add_model(ModelState.from_model(model))

    def database_forwards(self, app_label: str, schema_editor: Any, _from_state: Any, _to_state: Any) -> None:
        """Run it, unless the tables are as new: the store may have made them itself."""
        from celery_trace.stores import migration

        if not router.allow_migrate(schema_editor.connection.alias, app_label):
            return
        if not schema_editor.collect_sql and _version(schema_editor.connection) >= self.revision:
            return
        for statement in migration.statements(self.revision, schema_editor.connection.vendor):
            schema_editor.execute(statement, params=None)

    def database_backwards(self, app_label: str, schema_editor: Any, _from_state: Any, _to_state: Any) -> None:
        """Drop all tables of the store before its first migration; nothing before that."""
        connection = schema_editor.connection
        if self.revision != FIRST or not router.allow_migrate(connection.alias, app_label):
            return
        for name in connection.introspection.table_names():
            if name.startswith(schema.PREFIX):
                schema_editor.execute(f"DROP TABLE {schema_editor.quote_name(name)}", params=None)

    def describe(self) -> str:
        """What ``migrate --plan`` shows."""
        return f"Run migration {self.revision} of celery-trace's store"


def _version(connection: Any) -> str:
    """The tables' version; empty where none is noted, as in databases of Django before version 8."""
    if schema.VERSION_TABLE not in connection.introspection.table_names():
        return ""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT version_num FROM {schema.VERSION_TABLE}")  # noqa: S608 - a constant
        row = cursor.fetchone()
    return str(row[0]) if row else ""


class StoreMigration(migrations.Migration):
    """A migration of Django that runs the store's with the same number."""

    #: The name of the one before.
    after = ""

    def __init__(self, name: str, app_label: str) -> None:
        super().__init__(name, app_label)
        self.dependencies = [(app_label, self.after)] if self.after else []
        self.initial = not self.after
        self.operations = [MigrateStore(name.partition("_")[0])]
