"""Why a worker takes no messages from a queue."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    # The default fills existing rows; the program always sets a value.
    op.add_column(
        "celery_trace_consuming", sa.Column("idle_because", sa.String(length=255), nullable=False, server_default="")
    )
    op.add_column("celery_trace_consuming", sa.Column("idle_since_s", sa.Double(), nullable=True))
