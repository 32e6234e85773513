# mypy: disallow-subclassing-any=False
"""``manage.py trace_prune``: remove records beyond the retention settings, for a cron job."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from django_bridge import configuration
from django_bridge.management.store_command import StoreCommand, duration_s

if TYPE_CHECKING:
    from django.core.management import CommandParser


class Command(StoreCommand):
    """Prunes the store in small batches between which others can write."""

    help = "Remove records older than CELERY_TRACE_RETENTION_DAYS or beyond the other retention settings."

    def add_arguments(self, parser: CommandParser) -> None:
        """``--older-than``, ``--keep-runs``, ``--keep-failures``, ``--keep-bytes``."""
        parser.add_argument("--older-than", type=duration_s, metavar="TIME", help="instead of the setting, such as 7d")
        for what in ("runs", "failures", "bytes"):
            parser.add_argument(f"--keep-{what}", type=int, metavar="N", help="instead of the setting")

    def handle(
        self,
        *_: object,
        older_than: float | None,
        keep_runs: int | None,
        keep_failures: int | None,
        keep_bytes: int | None,
        **_options: object,
    ) -> None:
        """Prune, and report the removed rows and the store's size."""
        from celery_trace.stores import sizes

        given = {
            "retention_days": older_than / 86400 if older_than is not None else None,
            "retention_runs": keep_runs,
            "retention_failures": keep_failures,
            "retention_bytes": keep_bytes,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        now_s = time.time()
        with self.store() as (store, queries):
            pruned = store.prune(configuration.read().over(**chosen), now_s)
            found = queries.stats().size
        parts = ", ".join(f"{count} {table}" for table, count in sorted(pruned.rows.items()))
        self.stdout.write(f"Removed {pruned.total} rows: {parts}." if pruned.total else "Nothing to remove.")
        for line in sizes.sentences(found, now_s) if found is not None else ():
            self.stdout.write(line)
