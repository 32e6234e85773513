"""What users decide about groups of failures, and the queue and route of a failure."""

from functools import partial

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0013"
down_revision = "0012"

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
    for name in ("queue", "route"):
        op.add_column(
            "celery_trace_failures", sa.Column(name, sa.String(length=255), nullable=False, server_default="")
        )
    create_table(
        "celery_trace_triage",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("assigned_to", sa.String(length=255), nullable=False),
        sa.Column("ignored_until_s", sa.Double(), nullable=True),
        sa.Column("ignored_by", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint"),
    )
    create_table(
        "celery_trace_comments",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("username", sa.String(length=255), nullable=False),
        sa.Column("text", LONG_TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ct_comments_print", "celery_trace_comments", ["fingerprint", "at_s"], unique=False)
    create_table(
        "celery_trace_retried",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("username", sa.String(length=255), nullable=False),
        sa.Column("task_id", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ct_retried_print", "celery_trace_retried", ["fingerprint", "at_s"], unique=False)
