# mypy: disallow-subclassing-any=False
"""``manage.py trace_export``: export records as JSON Lines."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from django.core.management.base import CommandError

from celery_trace import private_files
from django_bridge.management.store_command import StoreCommand, duration_s

if TYPE_CHECKING:
    from django.core.management import CommandParser

    from celery_trace.queries import Queries

NOUNS = ("leaks", "failures", "groups", "runs", "workers", "alerts", "shells")


class Command(StoreCommand):
    """One object per line, ``{"record": "leak", …}``, in the shapes of the JSON API."""

    help = "Write leaks, failures, groups, runs, workers, alerts and shells as JSON Lines."

    def add_arguments(self, parser: CommandParser) -> None:
        """``--what``, ``--since``, ``--details``, ``--output``."""
        parser.add_argument("--what", action="append", choices=NOUNS, help="repeatable; by default all")
        parser.add_argument("--since", type=duration_s, metavar="TIME", help="only newer than this, such as 7d")
        parser.add_argument("--details", action="store_true", help="include frames and locals, and shell lines")
        parser.add_argument("--output", metavar="FILE", help="a file, created with mode 0600; default: standard output")

    def handle(
        self,
        *_: object,
        what: list[str] | None,
        since: float | None,
        details: bool,
        output: str | None,
        **_options: object,
    ) -> None:
        """Read page by page and write line by line."""
        since_s = time.time() - since if since is not None else None
        with self.store() as (_store, queries):
            lines = _lines(queries, what or list(NOUNS), since_s, details)
            if output is None:
                for line in lines:
                    self.stdout.write(line)
                return
            count = 0
            try:
                # It contains locals of failures, so others must not read it.
                handle = private_files.open_output(Path(output))
            except OSError as error:
                raise CommandError(f"Can't write {output}: {error.strerror}.") from None
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                for line in lines:
                    file.write(line + "\n")
                    count += 1
        self.stdout.write(f"Wrote {count} records to {output}.")


def _lines(queries: Queries, nouns: list[str], since_s: float | None, details: bool) -> Iterator[str]:
    from celery_trace.queries.export import json_lines

    for noun in nouns:
        yield from json_lines(queries, noun, since_s, details=details)
