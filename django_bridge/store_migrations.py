# mypy: disallow-subclassing-any=False
"""Django migrations that run the store's own on Django's connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import migrations, router
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ModelState

from celery_trace.stores import schema

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.migrations.state import ProjectState

FIRST = "0001"


class MigrateStore(Operation):
    """
    Runs one migration of :mod:`celery_trace.stores.migrations`.

    Migrating backwards changes no table: the store's migrations go forward only, and newer tables stay usable. Only
    migrating back before the first one (``migrate django_bridge zero``) drops all tables.

    Args:
        revision: Its number, such as ``0002``.
    """

    reduces_to_sql = True
    reversible = True

    def __init__(self, revision: str) -> None:
        self.revision = revision

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Add the current models; Django creates none of our tables, so it needs no earlier state."""
        from django.apps import apps

        if self.revision == FIRST:
            for model in apps.get_app_config(app_label).get_models():
                state.add_model(ModelState.from_model(model))

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        _from_state: ProjectState,
        _to_state: ProjectState,
    ) -> None:
        """Run the migration, unless the store has already migrated its tables."""
        from celery_trace.stores import migration

        if not router.allow_migrate(schema_editor.connection.alias, app_label):
            return
        if not schema_editor.collect_sql and _version(schema_editor.connection) >= self.revision:
            return
        for statement in migration.statements(self.revision, schema_editor.connection.vendor):
            schema_editor.execute(statement, params=None)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        _from_state: ProjectState,
        _to_state: ProjectState,
    ) -> None:
        """Drop all tables of the store when the first migration is undone; nothing for the others."""
        connection = schema_editor.connection
        if self.revision != FIRST or not router.allow_migrate(connection.alias, app_label):
            return
        for name in connection.introspection.table_names():
            if name.startswith(schema.PREFIX):
                schema_editor.execute(f"DROP TABLE {schema_editor.quote_name(name)}", params=None)

    def describe(self) -> str:
        """The text of ``migrate --plan``."""
        return f"Run migration {self.revision} of celery-trace's store"


def _version(connection: BaseDatabaseWrapper) -> str:
    """The tables' version; empty if none is stored, as in Django databases before version 8."""
    if schema.VERSION_TABLE not in connection.introspection.table_names():
        return ""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT version_num FROM {schema.VERSION_TABLE}")  # noqa: S608 - a constant
        row = cursor.fetchone()
    return str(row[0]) if row else ""


class StoreMigration(migrations.Migration):
    """A Django migration that runs the store's with the same number."""

    #: The name of the previous migration.
    after = ""

    def __init__(self, name: str, app_label: str) -> None:
        super().__init__(name, app_label)
        self.dependencies = [(app_label, self.after)] if self.after else []
        self.initial = not self.after
        self.operations = [MigrateStore(name.partition("_")[0])]
