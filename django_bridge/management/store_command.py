# mypy: disallow-subclassing-any=False
"""The base of our management commands: the store, its queries, durations such as ``12h``, and errors."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from django.core.management.base import BaseCommand, CommandError

from celery_trace.cli.renderers.style import Style
from celery_trace.settings import SettingError
from celery_trace.text.parse import read_seconds, wrong_duration
from django_bridge import configuration

if TYPE_CHECKING:
    from celery_trace.queries import Queries
    from celery_trace.stores import Store


def duration_s(text: str) -> float:
    """The argument type for ``90s``, ``30m``, ``12h``, ``7d`` or ``2w``, in seconds."""
    seconds = read_seconds(text)
    if seconds is None:
        raise argparse.ArgumentTypeError(wrong_duration(text))
    return seconds


class StoreCommand(BaseCommand):
    """A command that uses the store in ``CELERY_TRACE_STORE``."""

    requires_system_checks: list[str] = []  # noqa: RUF012  Django's own form

    @contextmanager
    def store(self) -> Iterator[tuple[Store, Queries]]:
        """A context with the store and its queries; our errors become a :class:`CommandError`."""
        # Imported here, as a process that only lists its commands must not import SQLAlchemy.
        from celery_trace.queries import Queries
        from celery_trace.stores import StoreUnavailable, open_store

        try:
            store = open_store(configuration.read(), create=False)
        except (SettingError, StoreUnavailable) as error:
            raise CommandError(str(error)) from None
        try:
            yield store, Queries(store)
        except StoreUnavailable as error:
            raise CommandError(str(error)) from None
        finally:
            store.close()

    def style_of(self, options: dict[str, object]) -> Style:
        """The style of tables: cut to the width and coloured on a terminal, uncut elsewhere."""
        terminal = sys.stdout.isatty() and self.stdout.isatty()
        colour = terminal and not options.get("no_color")
        return Style(
            now_s=time.time(),
            colour=bool(colour or options.get("force_color")),
            width=shutil.get_terminal_size((160, 40)).columns if terminal else 0,
        )
