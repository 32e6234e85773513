# mypy: disallow-subclassing-any=False
"""``manage.py trace_prune``: remove what is older than the retention, for a cron job."""

from __future__ import annotations

import time
from typing import Any

from django_bridge import configuration
from django_bridge.management.store_command import StoreCommand, duration_s


class Command(StoreCommand):
    """Prunes the store in small batches, while others write to it."""

    help = "Remove records older than CELERY_TRACE_RETENTION_DAYS, and runs beyond CELERY_TRACE_RETENTION_RUNS."

    def add_arguments(self, parser: Any) -> None:
        """``--older-than``, ``--keep-runs``."""
        parser.add_argument("--older-than", type=duration_s, metavar="TIME", help="instead of the setting, such as 7d")
        parser.add_argument("--keep-runs", type=int, metavar="N", help="instead of the setting")

    def handle(self, *_: Any, older_than: float | None, keep_runs: int | None, **_options: Any) -> None:
        """Prune and say what went."""
        chosen: dict[str, Any] = {}
        if older_than is not None:
            chosen["retention_days"] = older_than / 86400
        if keep_runs is not None:
            chosen["retention_runs"] = keep_runs
        with self.store() as (store, _queries):
            pruned = store.prune(configuration.read().over(**chosen), time.time())
        parts = ", ".join(f"{count} {table}" for table, count in sorted(pruned.rows.items()))
        self.stdout.write(f"Removed {pruned.total} rows: {parts}." if pruned.total else "Nothing was too old.")
