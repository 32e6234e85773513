"""Queues of names, deployed releases, and columns to sort leaks by."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "celery_trace_queues",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_queues_queue", "celery_trace_queues", ["queue", "name"], unique=False)
    op.add_column(
        "celery_trace_processes", sa.Column("release", sa.String(length=255), nullable=False, server_default="")
    )
    for name in ("kept_bytes_total", "runs"):
        op.add_column("celery_trace_leaks", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    # The leak table is computed from the windows: each name in it is recomputed with the next read.
    leaks = sa.table("celery_trace_leaks", sa.column("id"), sa.column("kind"), sa.column("name"))
    state = sa.table("celery_trace_leak_state", *map(sa.column, ("id", "kind", "name", "at_s", "username")))
    due = sa.select(
        sa.literal("name:").concat(sa.func.min(leaks.c.id)), leaks.c.kind, leaks.c.name, sa.literal(0.0),
        sa.literal("0003"),
    ).group_by(leaks.c.kind, leaks.c.name)  # fmt: skip
    op.execute(state.insert().from_select(["id", "kind", "name", "at_s", "username"], due))
