"""Run by Alembic, configured by :mod:`celery_trace.stores.migration`."""

from alembic import context

from celery_trace.stores import schema

connection = context.config.attributes.get("connection")
if connection is not None:
    context.configure(connection=connection, version_table=schema.VERSION_TABLE)
    with context.begin_transaction():
        context.run_migrations()
else:  # only the SQL is wanted; the caller has the transaction
    dialect = context.config.attributes["dialect"]
    context.configure(dialect_name=dialect, version_table=schema.VERSION_TABLE, literal_binds=True)
    context.run_migrations()
