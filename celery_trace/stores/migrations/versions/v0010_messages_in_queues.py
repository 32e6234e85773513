"""Messages in queues: their waits, the queues' depth, messages started twice, and schedules."""

from functools import partial

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0010"
down_revision = "0009"


LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql")
create_table = partial(
    op.create_table,
    mariadb_charset="utf8mb4",
    mariadb_collate="utf8mb4_bin",
    mariadb_engine="InnoDB",
    mysql_charset="utf8mb4",
    mysql_collate="utf8mb4_bin",
    mysql_engine="InnoDB",
)


def upgrade() -> None:
    create_table(
        "celery_trace_flows",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("bucket_s", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("published", sa.BigInteger(), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("started", sa.BigInteger(), nullable=False),
        sa.Column("redelivered", sa.BigInteger(), nullable=False),
        sa.Column("waits", LONG_TEXT, nullable=False),
        sa.Column("transfers", LONG_TEXT, nullable=False),
        sa.Column("reserved", LONG_TEXT, nullable=False),
        sa.Column("wait_max_s", sa.Double(), nullable=False),
        sa.Column("eta_max_s", sa.Double(), nullable=False),
        sa.Column("acks_late", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ct_flows_bucket", "celery_trace_flows", ["bucket_s"], unique=False)
    op.create_index("ct_flows_queue", "celery_trace_flows", ["queue", "bucket_s"], unique=False)
    create_table(
        "celery_trace_consuming",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("worker", sa.String(length=255), nullable=False),
        sa.Column("running", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("scheduled", sa.BigInteger(), nullable=False),
        sa.Column("reserved_since_s", sa.Double(), nullable=True),
        sa.Column("ahead", LONG_TEXT, nullable=False),
        sa.Column("visibility_timeout_s", sa.Double(), nullable=True),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ct_consuming_at", "celery_trace_consuming", ["at_s"], unique=False)
    create_table(
        "celery_trace_queue_samples",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("depth", sa.BigInteger(), nullable=True),
        sa.Column("consumers", sa.BigInteger(), nullable=True),
        sa.Column("oldest_age_s", sa.Double(), nullable=True),
        sa.Column("running", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ct_queue_samples_queue", "celery_trace_queue_samples", ["queue", "at_s"], unique=False)
    op.create_index("ct_queue_samples_at", "celery_trace_queue_samples", ["at_s"], unique=False)
    create_table(
        "celery_trace_starts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("worker", sa.String(length=255), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("task_id", sa.String(length=255), nullable=False),
        sa.Column("retries", sa.BigInteger(), nullable=False),
        sa.Column("started_at_s", sa.Double(), nullable=False),
        sa.Column("ended_at_s", sa.Double(), nullable=True),
        sa.Column("succeeded", sa.Boolean(), nullable=False),
        sa.Column("redelivered", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ct_starts_at", "celery_trace_starts", ["started_at_s"], unique=False)
    op.create_index("ct_starts_task", "celery_trace_starts", ["task_id"], unique=False)
    create_table(
        "celery_trace_schedules",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("entry", sa.String(length=255), nullable=False),
        sa.Column("task", sa.String(length=255), nullable=False),
        sa.Column("every", sa.String(length=255), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("due_at_s", sa.Double(), nullable=True),
        sa.Column("interval_s", sa.Double(), nullable=False),
        sa.Column("published_at_s", sa.Double(), nullable=True),
        sa.Column("published", sa.BigInteger(), nullable=False),
        sa.Column("missed", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("late_max_s", sa.Double(), nullable=False),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ct_schedules_at", "celery_trace_schedules", ["at_s"], unique=False)
