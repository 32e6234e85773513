"""Drop a column of rollups and totals that was always 0."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0008"
down_revision = "0007"

TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql")
TABLES = {
    "celery_trace_rollups": {
        "ct_rollups_bucket": ["bucket_s"],
        "ct_rollups_process": ["process", "bucket_s"],
    },
    "celery_trace_totals": {
        "ct_totals_bucket": ["bucket_s", "id"],
        "ct_totals_name": ["name", "bucket_s"],
    },
}


def upgrade() -> None:
    for table, indexes in TABLES.items():
        if op.get_context().dialect.name == "sqlite":
            _make_anew(table, indexes)
        else:
            op.drop_column(table, "overhead_s")


def _make_anew(table: str, indexes: dict[str, list[str]]) -> None:
    """Recreate a table: SQLite can drop columns since 3.35, and Python 3.11 may come with an older version."""
    new = table + "_new"
    columns = _columns(of_process=table == "celery_trace_rollups")
    names = ", ".join(column.name for column in columns)
    op.create_table(new, *columns, sa.PrimaryKeyConstraint("id"))
    op.execute(f"INSERT INTO {new} ({names}) SELECT {names} FROM {table}")  # noqa: S608 - constants
    op.drop_table(table)
    op.rename_table(new, table)
    for index, over in indexes.items():
        op.create_index(index, table, over, unique=False)


def _columns(*, of_process: bool) -> list[sa.Column[Any]]:
    texts = {"id": 64, "process": 64, "kind": 32, "name": 255}
    if not of_process:
        del texts["process"]
    return [
        *(sa.Column(name, sa.String(length=length), nullable=False) for name, length in texts.items()),
        *(_count(name) for name in (["bucket_s", "seq"] if of_process else ["bucket_s"])),
        *map(_count, ("runs", "failed", "retried")),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("duration_s", "duration_max_s")),
        sa.Column("durations", TEXT, nullable=False),
        *map(_count, ("gated", "kept_blocks", "kept_bytes", "rss_max_bytes")),
        sa.Column("concurrent", sa.Boolean(), nullable=False),
    ]


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)
