"""The first schema."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "celery_trace_alerts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("rule", sa.String(length=255), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("severity", sa.String(length=32), nullable=False),
        sa.Column(
            "text",
            sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("since_s", sa.Double(), nullable=False),
        sa.Column("fired_at_s", sa.Double(), nullable=True),
        sa.Column("resolved_at_s", sa.Double(), nullable=True),
        sa.Column("acknowledged_by", sa.String(length=255), nullable=False),
        sa.Column("acknowledged_at_s", sa.Double(), nullable=True),
        sa.Column("silenced_until_s", sa.Double(), nullable=True),
        sa.Column("link", sa.String(length=255), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_alerts_since", "celery_trace_alerts", ["since_s", "id"], unique=False)
    op.create_index("ct_alerts_state", "celery_trace_alerts", ["state", "since_s", "id"], unique=False)
    op.create_table(
        "celery_trace_audit",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("place", sa.String(length=32), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("failure", sa.String(length=64), nullable=False),
        sa.Column("session", sa.String(length=64), nullable=False),
        sa.Column("username", sa.String(length=255), nullable=False),
        sa.Column(
            "command",
            sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("verdict", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_audit_at", "celery_trace_audit", ["at_s", "id"], unique=False)
    op.create_table(
        "celery_trace_deliveries",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("alert", sa.String(length=64), nullable=False),
        sa.Column("channel", sa.String(length=255), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("ok", sa.Boolean(), nullable=False),
        sa.Column(
            "error",
            sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_deliveries_alert", "celery_trace_deliveries", ["alert", "at_s", "id"], unique=False)
    op.create_index("ct_deliveries_at", "celery_trace_deliveries", ["at_s", "id"], unique=False)
    op.create_table(
        "celery_trace_failures",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("task_id", sa.String(length=255), nullable=False),
        sa.Column("retries", sa.BigInteger(), nullable=False),
        sa.Column("root_id", sa.String(length=255), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("witness", sa.String(length=32), nullable=False),
        sa.Column("exception_type", sa.String(length=255), nullable=False),
        sa.Column("exception_module", sa.String(length=255), nullable=False),
        sa.Column("exception_message", sa.String(length=1000), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("worker", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("hostname", sa.String(length=255), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column(
            "payload",
            sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mariadb").with_variant(mysql.LONGBLOB(), "mysql"),
            nullable=True,
        ),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_failures_at", "celery_trace_failures", ["at_s", "id"], unique=False)
    op.create_index("ct_failures_both", "celery_trace_failures", ["name", "worker", "at_s", "id"], unique=False)
    op.create_index("ct_failures_kind", "celery_trace_failures", ["kind", "at_s", "id"], unique=False)
    op.create_index("ct_failures_name", "celery_trace_failures", ["name", "at_s", "id"], unique=False)
    op.create_index("ct_failures_outcome", "celery_trace_failures", ["outcome", "at_s", "id"], unique=False)
    op.create_index("ct_failures_print", "celery_trace_failures", ["fingerprint", "at_s", "id"], unique=False)
    op.create_index("ct_failures_process", "celery_trace_failures", ["process"], unique=False)
    op.create_index("ct_failures_root", "celery_trace_failures", ["root_id"], unique=False)
    op.create_index("ct_failures_task", "celery_trace_failures", ["task_id"], unique=False)
    op.create_index("ct_failures_worker", "celery_trace_failures", ["worker", "at_s", "id"], unique=False)
    op.create_table(
        "celery_trace_groups",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("exception_type", sa.String(length=255), nullable=False),
        sa.Column("exception_module", sa.String(length=255), nullable=False),
        sa.Column("exception_message", sa.String(length=1000), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_s", sa.Double(), nullable=False),
        sa.Column("last_seen_s", sa.Double(), nullable=False),
        sa.Column("latest_id", sa.String(length=64), nullable=False),
        sa.Column("resolved_at_s", sa.Double(), nullable=True),
        sa.Column("resolved_by", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_groups_seen", "celery_trace_groups", ["last_seen_s", "fingerprint"], unique=False)
    op.create_table(
        "celery_trace_kept",
        sa.Column("id", sa.String(length=130), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("failure", sa.String(length=64), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("until_s", sa.Double(), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("gone", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_kept_failure", "celery_trace_kept", ["failure"], unique=False)
    op.create_index("ct_kept_until", "celery_trace_kept", ["until_s"], unique=False)
    op.create_table(
        "celery_trace_leak_state",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("username", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_table(
        "celery_trace_leaks",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("verdict", sa.String(length=32), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("kept_bytes_per_run", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_s", sa.Double(), nullable=False),
        sa.Column("place", sa.String(length=1000), nullable=False),
        sa.Column(
            "payload",
            sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mariadb").with_variant(mysql.LONGBLOB(), "mysql"),
            nullable=True,
        ),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_leaks_name", "celery_trace_leaks", ["name", "kind"], unique=False)
    op.create_index("ct_leaks_rank", "celery_trace_leaks", ["rank", "kept_bytes_per_run", "id"], unique=False)
    op.create_table(
        "celery_trace_meta",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column(
            "value",
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
    op.create_table(
        "celery_trace_names",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_names_name", "celery_trace_names", ["name"], unique=False)
    op.create_table(
        "celery_trace_processes",
        sa.Column("uid", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(length=255), nullable=False),
        sa.Column("role", sa.String(length=32), nullable=False),
        sa.Column("parent_uid", sa.String(length=64), nullable=False),
        sa.Column("python", sa.String(length=255), nullable=False),
        sa.Column(
            "counters",
            sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("mode", sa.String(length=32), nullable=False),
        sa.Column("started_at_s", sa.Double(), nullable=False),
        sa.Column("ended_at_s", sa.Double(), nullable=True),
        sa.Column("ended_how", sa.String(length=32), nullable=False),
        sa.Column("seen_at_s", sa.Double(), nullable=False),
        sa.Column("sampled_at_s", sa.Double(), nullable=True),
        sa.Column(
            "memory",
            sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("running", sa.String(length=255), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("kept_failures", sa.BigInteger(), nullable=False),
        sa.Column("overhead_ratio", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_processes_seen", "celery_trace_processes", ["seen_at_s", "uid"], unique=False)
    op.create_index("ct_processes_worker", "celery_trace_processes", ["worker", "seen_at_s"], unique=False)
    op.create_table(
        "celery_trace_rollups",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("bucket_s", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("retried", sa.BigInteger(), nullable=False),
        sa.Column("duration_s", sa.Double(), nullable=False),
        sa.Column("duration_max_s", sa.Double(), nullable=False),
        sa.Column(
            "durations",
            sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("gated", sa.BigInteger(), nullable=False),
        sa.Column("kept_blocks", sa.BigInteger(), nullable=False),
        sa.Column("kept_bytes", sa.BigInteger(), nullable=False),
        sa.Column("rss_max_bytes", sa.BigInteger(), nullable=False),
        sa.Column("overhead_s", sa.Double(), nullable=False),
        sa.Column("concurrent", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_rollups_bucket", "celery_trace_rollups", ["bucket_s"], unique=False)
    op.create_table(
        "celery_trace_runs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("task_id", sa.String(length=255), nullable=False),
        sa.Column("retries", sa.BigInteger(), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("root_id", sa.String(length=255), nullable=False),
        sa.Column("started_at_s", sa.Double(), nullable=False),
        sa.Column("duration_s", sa.Double(), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("why", sa.String(length=32), nullable=False),
        sa.Column("kept_blocks", sa.BigInteger(), nullable=True),
        sa.Column("kept_bytes", sa.BigInteger(), nullable=True),
        sa.Column("concurrent", sa.BigInteger(), nullable=False),
        sa.Column(
            "payload",
            sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mariadb").with_variant(mysql.LONGBLOB(), "mysql"),
            nullable=True,
        ),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_runs_at", "celery_trace_runs", ["started_at_s", "id"], unique=False)
    op.create_index("ct_runs_kind", "celery_trace_runs", ["kind", "started_at_s", "id"], unique=False)
    op.create_index("ct_runs_name", "celery_trace_runs", ["name", "started_at_s", "id"], unique=False)
    op.create_index("ct_runs_task", "celery_trace_runs", ["task_id"], unique=False)
    op.create_index("ct_runs_why", "celery_trace_runs", ["why", "started_at_s", "id"], unique=False)
    op.create_table(
        "celery_trace_samples",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column(
            "memory",
            sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("kept_failures", sa.BigInteger(), nullable=False),
        sa.Column("overhead_ratio", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_samples_at", "celery_trace_samples", ["at_s"], unique=False)
    op.create_index("ct_samples_process", "celery_trace_samples", ["process", "at_s"], unique=False)
    op.create_table(
        "celery_trace_shell_lines",
        sa.Column("id", sa.String(length=90), nullable=False),
        sa.Column("shell", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("username", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
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
    op.create_index("ct_shell_lines_shell", "celery_trace_shell_lines", ["shell", "seq"], unique=False)
    op.create_table(
        "celery_trace_shells",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("failure", sa.String(length=64), nullable=False),
        sa.Column("mode", sa.String(length=32), nullable=False),
        sa.Column("started_at_s", sa.Double(), nullable=False),
        sa.Column("ended_at_s", sa.Double(), nullable=True),
        sa.Column(
            "users",
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
    op.create_index("ct_shells_failure", "celery_trace_shells", ["failure", "started_at_s", "id"], unique=False)
    op.create_index("ct_shells_started", "celery_trace_shells", ["started_at_s", "id"], unique=False)
    op.create_table(
        "celery_trace_stats",
        sa.Column("process", sa.String(length=200), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column(
            "counters",
            sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("overhead_s", sa.Double(), nullable=False),
        sa.Column("process_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("process"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_stats_at", "celery_trace_stats", ["at_s"], unique=False)
    op.create_table(
        "celery_trace_tallies",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_table(
        "celery_trace_totals",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("bucket_s", sa.BigInteger(), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("retried", sa.BigInteger(), nullable=False),
        sa.Column("duration_s", sa.Double(), nullable=False),
        sa.Column("duration_max_s", sa.Double(), nullable=False),
        sa.Column(
            "durations",
            sa.Text().with_variant(mysql.LONGTEXT(), "mariadb").with_variant(mysql.LONGTEXT(), "mysql"),
            nullable=False,
        ),
        sa.Column("gated", sa.BigInteger(), nullable=False),
        sa.Column("kept_blocks", sa.BigInteger(), nullable=False),
        sa.Column("kept_bytes", sa.BigInteger(), nullable=False),
        sa.Column("rss_max_bytes", sa.BigInteger(), nullable=False),
        sa.Column("overhead_s", sa.Double(), nullable=False),
        sa.Column("concurrent", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_totals_bucket", "celery_trace_totals", ["bucket_s", "id"], unique=False)
    op.create_index("ct_totals_name", "celery_trace_totals", ["name", "bucket_s"], unique=False)
    op.create_table(
        "celery_trace_trends",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("hour_s", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_trends_hour", "celery_trace_trends", ["hour_s"], unique=False)
    op.create_index("ct_trends_print", "celery_trace_trends", ["fingerprint", "hour_s"], unique=False)
    op.create_table(
        "celery_trace_windows",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("investigation", sa.String(length=64), nullable=False),
        sa.Column("process", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("stage", sa.String(length=32), nullable=False),
        sa.Column("verdict", sa.String(length=32), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column(
            "payload",
            sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mariadb").with_variant(mysql.LONGBLOB(), "mysql"),
            nullable=True,
        ),
        sa.PrimaryKeyConstraint("id"),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_bin",
        mariadb_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_index("ct_windows_at", "celery_trace_windows", ["at_s", "id"], unique=False)
    op.create_index("ct_windows_name", "celery_trace_windows", ["name", "kind", "at_s", "id"], unique=False)
