"""Django's models and the store's schema are one: same tables, columns, keys and indexes."""

import io

import pytest
import sqlalchemy as sa

from celery_trace.settings import Settings
from celery_trace.stores import StoreUnavailable, open_store, schema
from tests.support.schema_facts import tables_of

pytest_plugins = ["tests.support.fixtures_django"]


def test_django_makes_the_tables_that_the_store_makes_on_sqlite(django_database, tmp_path):
    from django.db import connections

    store = open_store(Settings(dir=str(tmp_path)))
    by_django = sa.create_engine(f"sqlite:///{connections['default'].settings_dict['NAME']}")
    try:
        ours, theirs = tables_of(store.engine), tables_of(by_django)
        assert set(ours) == {table.name for table in schema.metadata.sorted_tables}
        assert theirs == ours
    finally:
        store.close()
        by_django.dispose()


def test_a_database_that_lacks_a_migration_is_refused_with_the_command_that_helps(django_database, tmp_path):
    from django.core.management import call_command

    settings = Settings(dir=str(tmp_path), store="django")
    open_store(settings).close()
    call_command("migrate", "django_bridge", "0001", verbosity=0)
    try:
        with pytest.raises(StoreUnavailable, match="older version") as refused:
            open_store(settings)
    finally:
        call_command("migrate", "django_bridge", verbosity=0)
    assert "migrate django_bridge" in refused.value.next
    open_store(settings).close()


def test_a_database_that_a_newer_version_has_migrated_is_refused(django_database, tmp_path):
    from django.db import connections
    from django.db.migrations.recorder import MigrationRecorder

    settings = Settings(dir=str(tmp_path), store="django")
    recorder = MigrationRecorder(connections["default"])
    recorder.record_applied("django_bridge", "9999_of_tomorrow")
    try:
        with pytest.raises(StoreUnavailable, match="9999, made by a newer celery-trace"):
            open_store(settings)
    finally:
        recorder.record_unapplied("django_bridge", "9999_of_tomorrow")
    open_store(settings).close()


def test_the_migrations_are_those_of_the_models(django_database):
    from django.core.management import call_command

    out = io.StringIO()
    call_command("makemigrations", "django_bridge", check=True, dry_run=True, stdout=out)
    assert "No changes" in out.getvalue()


def test_every_default_of_a_model_is_the_schemas(django_database):
    """A row that Django writes (in a project's own tests, say) is one that the store can read."""
    from django.apps import apps

    models = {model._meta.db_table: model for model in apps.get_app_config("django_bridge").get_models()}
    for table in schema.metadata.sorted_tables:
        for column in table.columns:
            field = models[table.name]._meta.get_field(column.name)
            if column.default is not None:
                assert field.default == column.default.arg, f"{table.name}.{column.name}"
