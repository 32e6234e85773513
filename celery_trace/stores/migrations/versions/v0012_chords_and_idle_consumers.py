"""Chords with a body that waits, and why a worker takes no messages from a queue."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0012"
down_revision = "0011"

BLOB = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mariadb").with_variant(mysql.LONGBLOB(), "mysql")


def upgrade() -> None:
    # The default fills existing rows; the program always sets a value.
    op.add_column(
        "celery_trace_consuming", sa.Column("idle_because", sa.String(length=255), nullable=False, server_default="")
    )
    op.add_column("celery_trace_consuming", sa.Column("idle_since_s", sa.Double(), nullable=True))
    op.create_table(
        "celery_trace_chords",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("root_id", sa.String(length=255), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("payload", BLOB, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_chords_root", "celery_trace_chords", ["root_id"], unique=False)
    op.create_index("ct_chords_at", "celery_trace_chords", ["at_s"], unique=False)
