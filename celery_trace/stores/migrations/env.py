"""Alembic runs this; the connection comes from :mod:`celery_trace.stores.migration`."""

from alembic import context

from celery_trace.stores import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    version_table=schema.PREFIX + "alembic",
)
with context.begin_transaction():
    context.run_migrations()
