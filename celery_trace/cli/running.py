"""The subcommands that show what runs now."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import click
from msgspec.structs import replace

from celery_trace.cli.context import NAME, WORKER, CommandContext, Refusal, command, user
from celery_trace.cli.renderers import running as running_text
from celery_trace.cli.renderers.style import Style
from celery_trace.model import Page, RunningView
from celery_trace.text.escape import escaped

if TYPE_CHECKING:
    from celery_trace.queries import Queries

#: How often ``trace top`` reads the store, seconds.
EVERY_S: Final = 2.0


def _selected(queries: Queries, name: str | None, worker: str | None) -> Page[RunningView]:
    page = queries.running()
    rows = [row for row in page.rows if name in (None, row.name) and worker in (None, row.worker)]
    return replace(page, rows=rows)


@command
@click.option(
    "--stack", "task_id", default=None, metavar="TASK_ID", help="Read this task's stack with its locals, now."
)
@NAME
@WORKER
def running(context: CommandContext, task_id: str | None, name: str | None, worker: str | None) -> None:
    """List what runs now: since when, where, against what is usual."""
    with context.store() as (_, queries):
        page = _selected(queries, name, worker)
    if task_id is None:
        context.page(page, running_text.running(page.rows, context.style))
        return
    found = next((row for row in page.rows if row.task_id == task_id), None)
    if found is None:
        raise Refusal(
            f"No task with the id {escaped(task_id)} is running. It may have ended; a new one appears in two seconds. "
            "List the ids with: celery -A proj trace running"
        )
    from celery_trace.running.client import StackReader, with_stack

    reader = StackReader(context.settings, context.app.connection_for_write, "terminal")
    row = with_stack(found, reader.read(found, user=user()))
    context.show(running_text.stack(row, context.style), row)


@command
@NAME
@WORKER
def top(context: CommandContext, name: str | None, worker: str | None) -> None:
    """Show what runs now, live in the terminal; q quits."""
    with context.store() as (_, queries):
        if context.json or not (sys.stdout.isatty() and sys.stdin.isatty()):
            page = _selected(queries, name, worker)
            context.page(page, running_text.running(page.rows, context.style))
            return
        _live(lambda style: running_text.top(_selected(queries, name, worker).rows, style), context.style)


def _live(text: Callable[[Style], str], style: Style) -> None:
    """Draw a text again and again until q, or Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with contextlib.suppress(KeyboardInterrupt), _keys() as key, Live(console=Console(), screen=True) as live:
        while True:
            size = shutil.get_terminal_size()
            drawn = text(replace(style, now_s=time.time(), width=size.columns))
            live.update(Text.from_ansi("\n".join(drawn.splitlines()[: size.lines - 1])), refresh=True)
            if key(EVERY_S) in ("q", "Q", "\x1b"):
                return


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits for a key for some seconds; empty if none was pressed."""
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def key(seconds: float) -> str:
        pressed, _, _ = select.select([terminal], [], [], seconds)
        return os.read(terminal, 1).decode("utf-8", "replace") if pressed else ""

    try:
        tty.setcbreak(terminal)
        yield key
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
