"""Django's models and the store's schema are one: same tables, columns, keys and indexes."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import StoreUnavailable, migration, open_store, schema, tables
from tests.support import old_django
from tests.support.django_databases import ALIAS, other_database
from tests.support.schema_facts import tables_of
from tests.support.store_records import failure

pytest_plugins = ["tests.support.fixtures_django"]


def test_django_makes_the_tables_that_the_store_makes_on_sqlite(django_database, tmp_path):
    from django.db import connections

    store = open_store(Settings(dir=str(tmp_path)))
    by_django = sa.create_engine(f"sqlite:///{connections['default'].settings_dict['NAME']}")
    try:
        ours, theirs = tables_of(store.engine), tables_of(by_django)
        assert set(ours) == {table.name for table in tables.metadata.sorted_tables}
        assert theirs == ours
    finally:
        store.close()
        by_django.dispose()


@pytest.fixture
def other(site, tmp_path):
    """An empty SQLite database that is Django's; the engine reads it beside Django."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/other.sqlite3")
    engine.connect().close()
    with other_database(engine.url):
        yield engine
    engine.dispose()


def migrate(*which):
    from django.core.management import call_command

    call_command("migrate", "django_bridge", *which, database=ALIAS, verbosity=0)


@pytest.mark.parametrize("last", old_django.VERSIONS)
def test_a_database_that_django_made_before_moves_up_with_its_rows(last, other, tmp_path):
    store = open_store(Settings(dir=str(tmp_path / "new")))
    expected = tables_of(store.engine)
    store.close()
    old_django.moves_up(other, ALIAS, tmp_path, last, expected)


def test_a_database_that_lacks_a_migration_is_refused_with_the_command_that_helps(other, tmp_path):
    settings = Settings(dir=str(tmp_path), store=f"django:{ALIAS}")
    with pytest.raises(StoreUnavailable, match="tables are missing"):
        open_store(settings)
    migrate("0005")
    by_address = Settings(dir=str(tmp_path), store=f"sqlite:///{other.url.database}")
    for one in (settings, by_address):
        with pytest.raises(StoreUnavailable, match="older version") as refused:
            open_store(one)
        assert "migrate django_bridge" in refused.value.next
    migrate()
    open_store(settings).close()
    open_store(by_address).close()


def test_a_database_that_a_newer_version_has_migrated_is_refused(other, tmp_path):
    migrate()
    settings = Settings(dir=str(tmp_path), store=f"django:{ALIAS}")
    with other.begin() as connection:
        connection.execute(sa.text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StoreUnavailable, match="9999, made by a newer celery-trace"):
        open_store(settings)


def test_tables_that_the_store_has_made_are_taken_over_with_their_rows(other, tmp_path):
    store = open_store(Settings(dir=str(tmp_path), store=f"sqlite:///{other.url.database}"))
    store.write([failure("t1")])
    store.close()
    migrate()
    store = open_store(Settings(dir=str(tmp_path), store=f"django:{ALIAS}"))
    assert [row.task_id for row in Queries(store).failures().rows] == ["t1"]
    store.close()


def test_going_back_keeps_the_rows_and_going_back_to_zero_leaves_nothing(other, tmp_path):
    migrate()
    settings = Settings(dir=str(tmp_path), store=f"django:{ALIAS}")
    store = open_store(settings)
    store.write([failure("t1")])
    migrate("0003")
    migrate()
    assert [row.task_id for row in Queries(store).failures().rows] == ["t1"]
    store.close()
    migrate("zero")
    assert [name for name in sa.inspect(other).get_table_names() if name.startswith(schema.PREFIX)] == []
    migrate()
    open_store(settings).close()


def test_each_migration_of_the_store_is_one_of_django(django_database):
    folders = Path("celery_trace/stores/migrations/versions"), Path("django_bridge/migrations")
    ours, django = ({file.stem.lstrip("v")[:4] for file in folder.glob("*0*.py")} for folder in folders)
    assert ours == django
    assert max(ours) == migration.HEAD


def test_what_a_migration_will_do_can_be_read(other):
    from django.core.management import call_command

    out = io.StringIO()
    call_command("sqlmigrate", "django_bridge", "0006", database=ALIAS, stdout=out)
    assert "CREATE TABLE celery_trace_captures" in out.getvalue()
    call_command("migrate", "django_bridge", "0001", plan=True, database=ALIAS, stdout=out)
    assert "Run migration 0001 of celery-trace's store" in out.getvalue()


def test_the_migrations_are_those_of_the_models(django_database):
    from django.core.management import call_command

    out = io.StringIO()
    call_command("makemigrations", check=True, dry_run=True, stdout=out)
    assert "No changes" in out.getvalue()
    call_command("makemigrations", "django_bridge", check=True, dry_run=True, stdout=out)


def test_a_site_that_reads_no_store_loads_no_sqlalchemy():
    code = (
        "import django, sys\n"
        "from django.conf import settings\n"
        "databases = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}\n"
        "settings.configure(INSTALLED_APPS=['django_bridge'], DATABASES=databases)\n"
        "django.setup()\n"
        "import django_bridge.models\n"
        "print(sorted({'sqlalchemy', 'alembic'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_models_are_unmanaged_and_a_project_can_extend_them(django_database):
    from django.apps import apps

    from django_bridge.models import AuditEntry, Failure, Group

    assert not any(model._meta.managed for model in apps.get_app_config("django_bridge").get_models())
    assert (Failure._meta.verbose_name, Failure._meta.verbose_name_plural) == ("failure", "failures")
    assert (Group._meta.verbose_name, AuditEntry._meta.verbose_name_plural) == ("group of failures", "audit entries")
    assert [str(Failure(id="f1", name="shop.pay")), str(AuditEntry(id="a1"))] == ["shop.pay", "a1"]

    class LostTask(Failure):
        class Meta:
            proxy = True
            app_label = "shop"

    try:
        assert LostTask._meta.db_table == Failure._meta.db_table
        assert LostTask._meta.proxy
    finally:
        del apps.all_models["shop"]
        apps.clear_cache()


def test_every_default_of_a_model_is_the_schemas(django_database):
    """A row that Django writes (in a project's own tests, say) is one that the store can read."""
    from django.apps import apps

    models = {model._meta.db_table: model for model in apps.get_app_config("django_bridge").get_models()}
    for table in tables.metadata.sorted_tables:
        for column in table.columns:
            field = models[table.name]._meta.get_field(column.name)
            if column.default is not None:
                assert field.default == column.default.arg, f"{table.name}.{column.name}"
