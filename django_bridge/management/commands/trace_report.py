# mypy: disallow-subclassing-any=False
"""``manage.py trace_report``: leaking tasks and requests, and recent failures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from celery_trace.cli.renderers.failures import failures as failure_table
from celery_trace.cli.renderers.leaks import leaks as leak_table
from celery_trace.cli.renderers.workers import workers as worker_table
from django_bridge.management.store_command import StoreCommand, duration_s

if TYPE_CHECKING:
    from django.core.management import CommandParser


class Command(StoreCommand):
    """The leak table, the failures and the traced processes, as text or as JSON."""

    help = "Show leaking tasks and requests, recent failures, and the processes' memory."

    def add_arguments(self, parser: CommandParser) -> None:
        """``--since``, ``--limit``, ``--format``."""
        parser.add_argument(
            "--since", type=duration_s, default=86400.0, metavar="TIME", help="such as 12h (default 1d)"
        )
        parser.add_argument("--limit", type=int, default=20, help="rows of each table (default %(default)s)")
        parser.add_argument("--format", choices=["table", "json"], default="table", help="json: as the JSON API has it")

    def handle(self, *_: object, since: float, limit: int, format: str, **options: object) -> None:
        """Read and print."""
        since_s = time.time() - since
        with self.store() as (_store, queries):
            leaks = queries.leaks(since_s=since_s, limit=limit).rows
            failures = queries.failures(since_s=since_s, limit=limit).rows
            workers = queries.workers(since_s=since_s, limit=limit).rows
        if format == "json":
            found = {"leaks": leaks, "failures": failures, "workers": workers}
            self.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
            return
        style = self.style_of(options)
        for title, text in (
            ("LEAKS", leak_table(leaks, style)),
            ("FAILURES", failure_table(failures, style)),
            ("PROCESSES", worker_table(workers, style)),
        ):
            self.stdout.write(f"{title}\n\n{text}\n")
