"""Rollups by process, to show what one worker's runs retained."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_index("ct_rollups_process", "celery_trace_rollups", ["process", "bucket_s"], unique=False)
