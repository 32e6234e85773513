"""What runs on each host."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0011"
down_revision = "0010"

BLOB = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mariadb").with_variant(mysql.LONGBLOB(), "mysql")


def upgrade() -> None:
    op.create_table(
        "celery_trace_running",
        sa.Column("id", sa.String(length=255), nullable=False),
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
    op.create_index("ct_running_at", "celery_trace_running", ["at_s"], unique=False)
