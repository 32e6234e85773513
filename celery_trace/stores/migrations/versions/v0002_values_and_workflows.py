"""Values of failures for the search, and a failed task's place in its workflow."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "celery_trace_failure_values",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column(
            "text",
            sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    for name in ("parent_id", "group_id"):
        # The default is for existing rows; the program always sets a value.
        op.add_column(
            "celery_trace_failures", sa.Column(name, sa.String(length=255), nullable=False, server_default="")
        )
    op.create_index("ct_runs_root", "celery_trace_runs", ["root_id"], unique=False)
