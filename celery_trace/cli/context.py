"""
Shared by all subcommands of ``celery trace``: settings, store, terminal, options and errors.

An error is one line on standard error that says what, why and what to do, with exit status 1.
"""

from __future__ import annotations

import functools
import getpass
import io
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from celery_trace import settings
from celery_trace.cli.renderers.style import Style
from celery_trace.clock import SystemClock
from celery_trace.errors import TraceError
from celery_trace.model import Kind, Page
from celery_trace.settings import Settings
from celery_trace.text.commands import given_app
from celery_trace.text.escape import escaped
from celery_trace.text.parse import read_bytes, read_seconds, wrong_duration, wrong_size

if TYPE_CHECKING:
    from celery import Celery

    from celery_trace.queries import Queries
    from celery_trace.stores import Store

Row = TypeVar("Row")
F = TypeVar("F", bound=Callable[..., object])


class Refusal(click.ClickException):
    """A command can't be executed; the text says what, why and what to do."""


class Duration(click.ParamType[float]):
    """A duration such as ``90s`` or ``2h``, converted to seconds."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = read_seconds(value)
        if seconds is None:
            self.fail(f"{wrong_duration(value)}.", param, ctx)
        return seconds


class Since(Duration):
    """An age such as ``30m`` or ``7d``, converted to seconds since the epoch."""

    name = "age"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return SystemClock.now_s() - super().convert(value, param, ctx)


class Bytes(click.ParamType[int]):
    """A size such as ``500M`` or ``2GiB``, converted to bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = read_bytes(value)
        if number is None:
            self.fail(f"{wrong_size(value)}.", param, ctx)
        return int(number)


class CommandContext:
    """A command's context: the app's settings, the store if needed, and the terminal."""

    def __init__(self, app: Celery, shape: str, colour: bool) -> None:
        self.app = app
        self.shape = shape
        self.json = shape == "json"
        self.settings: Settings = settings.from_app(app)
        tty = sys.stdout.isatty()
        if isinstance(sys.stdout, io.TextIOWrapper):  # characters that the terminal lacks become escapes, not errors
            sys.stdout.reconfigure(errors="backslashreplace")
        self.style = Style(
            now_s=time.time(),
            colour=colour and tty and "NO_COLOR" not in os.environ,
            width=shutil.get_terminal_size((160, 40)).columns if tty else 0,
            root=os.getcwd(),
            app=given_app(sys.argv, os.environ) or shlex.quote(str(app.main or "")),
        )

    @contextmanager
    def store(self, *, create: bool = False) -> Iterator[tuple[Store, Queries]]:
        """A context with the open store and its queries."""
        from celery_trace.queries import Queries
        from celery_trace.stores import open_store

        store = open_store(self.settings, create=create)
        try:
            yield store, Queries(store)
        finally:
            store.close()

    def show(self, text: str, data: object) -> None:
        """Print the text, or the data as JSON with ``--format json``."""
        if self.json:
            text = msgspec.json.format(msgspec.json.encode(data), indent=2).decode() + "\n"
        click.echo(text, nl=False, color=True if self.style.colour else None)

    def page(self, page: Page[Row], text: str, **more: object) -> None:
        """Print a page of a list, with ``more`` in JSON; below a table, how to get the next page."""
        if page.next and not self.json:
            text += f"\nMore: add --cursor {page.next}\n"
        self.show(text, page.as_json() | more)


def command(function: F, *, shapes: Sequence[str] = ("table", "json")) -> click.Command:
    """Make a subcommand: it gets a :class:`CommandContext`, takes ``--format``, and reports errors in one line."""

    @functools.wraps(function)
    def run(ctx: click.Context, /, shape: str, debug: bool, **values: object) -> object:
        hint: Callable[[str], str] = str
        try:
            found = ctx.find_root().obj
            context = CommandContext(found.app, shape, not getattr(found, "no_color", False))
            hint = context.style.hint
            return function(context, **values)
        except Refusal as refusal:
            raise Refusal(hint(refusal.message)) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # the reader has closed the pipe, as in `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None
        except Exception as error:
            if debug:
                raise
            raise Refusal(hint(_error_message(error))) from None

    run = click.option("--debug", is_flag=True, hidden=True, help="Show the traceback of errors.")(run)
    run = click.option(
        "--format", "shape", type=click.Choice(shapes), default="table", show_default=True,
        help="json gives the objects of the JSON API.",
    )(run)  # fmt: skip
    return click.command(function.__name__.replace("_", "-"))(click.pass_context(run))


def _error_message(error: Exception) -> str:
    """What, why, next: our own errors contain it."""
    if isinstance(error, TraceError):
        return str(error)
    return f"Unexpected error: {type(error).__name__}: {error}. Add --debug for the traceback; try celery trace doctor."


def listing(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Add the options common to all lists after a command's own."""

    def add(function: F) -> F:
        common: tuple[Callable[[F], F], ...] = (
            click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Most rows."),
            click.option("--cursor", default=None, help="The end of the previous page."),
        )
        for option in reversed((*options, *common)):
            function = option(function)
        return function

    return add


KIND = click.option("--kind", type=click.Choice([kind.value for kind in Kind]), default=None)
NAME = click.option("--name", default=None, help="Only this task, view or block.")
WORKER = click.option("--worker", default=None, help="Only this worker.")
SEARCH = click.option("--search", default=None, metavar="TEXT", help="Only rows with this text.")
SINCE = click.option("--since", "since_s", type=Since(), default=None, help="Only newer than this, such as 12h or 7d.")


def unknown(id: str, what: str) -> Refusal:
    """An error for an id that is not in the store."""
    return Refusal(
        f"There is no {what} with the id {escaped(id)} in the store; it may have been pruned. "
        "List the ids with celery trace failures, celery trace leaks or celery trace alerts."
    )


def user() -> str:
    """The user who runs the command, for the records."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an unknown user, as in a container
        return f"uid {os.getuid()}"
