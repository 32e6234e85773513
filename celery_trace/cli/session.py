"""
What every subcommand of ``celery trace`` shares: settings, store, terminal, options and plain refusals.

A refusal is one line on standard error that says what, why and what to do, and status 1.
"""

from __future__ import annotations

import functools
import getpass
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from celery_trace import settings
from celery_trace.cli.renderers.style import Style
from celery_trace.clock import SystemClock
from celery_trace.errors import TraceError
from celery_trace.model import Kind, Page
from celery_trace.settings import Settings
from celery_trace.text.escape import escaped
from celery_trace.text.parse import read_bytes, read_seconds, wrong_duration, wrong_size

if TYPE_CHECKING:
    from celery_trace.queries import Queries
    from celery_trace.stores import Store

F = TypeVar("F", bound=Callable[..., Any])


class Refusal(click.ClickException):
    """A command can't do what was asked; the text says what, why and what to do."""


class Since(click.ParamType[float]):
    """An age such as ``30m`` or ``7d``; becomes seconds since the epoch."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = read_seconds(value)
        if seconds is None:
            self.fail(f"{wrong_duration(value)}.", param, ctx)
        return SystemClock.now_s() - seconds


class Duration(click.ParamType[float]):
    """A time such as ``90s`` or ``2h``; becomes seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = read_seconds(value)
        if seconds is None:
            self.fail(f"{wrong_duration(value)}.", param, ctx)
        return seconds


class Bytes(click.ParamType[int]):
    """A size such as ``500M`` or ``2GiB``; becomes bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = read_bytes(value)
        if number is None:
            self.fail(f"{wrong_size(value)}.", param, ctx)
        return int(number)


class Session:
    """What a command works with: the app's settings, the store when it is asked for, and the terminal."""

    def __init__(self, app: Any, shape: str, colour: bool) -> None:
        self.app = app
        self.shape = shape
        self.json = shape == "json"
        self.settings: Settings = settings.from_app(app)
        tty = sys.stdout.isatty()
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that has no such characters gets escapes, no error
            sys.stdout.reconfigure(errors="backslashreplace")
        self.style = Style(
            now_s=time.time(),
            colour=colour and tty and "NO_COLOR" not in os.environ,
            width=shutil.get_terminal_size((160, 40)).columns if tty else 0,
            root=os.getcwd(),
        )

    @contextmanager
    def store(self, *, create: bool = False) -> Iterator[tuple[Store, Queries]]:
        """The store and its queries, for the time of a ``with``."""
        from celery_trace.queries import Queries
        from celery_trace.stores import open_store

        store = open_store(self.settings, create=create)
        try:
            yield store, Queries(store)
        finally:
            store.close()

    def show(self, text: str, data: Any) -> None:
        """Print the text, or the data as JSON where that was asked for."""
        if self.json:
            text = msgspec.json.format(msgspec.json.encode(data), indent=2).decode() + "\n"
        click.echo(text, nl=False, color=True if self.style.colour else None)

    def page(self, page: Page, text: str, **more: Any) -> None:
        """Print one page of a list, and ``more`` in JSON; in a table the way to the next page stands below."""
        if page.next and not self.json:
            text += f"\nMore: add --cursor {page.next}\n"
        self.show(text, page.as_json() | more)


def command(function: F, *, shapes: Sequence[str] = ("table", "json")) -> click.Command:
    """A subcommand: it gets a :class:`Session`, takes ``--format``, and speaks plainly when something is refused."""

    @functools.wraps(function)
    def run(ctx: click.Context, /, shape: str, debug: bool, **values: Any) -> Any:
        try:
            found = ctx.find_root().obj
            return function(Session(found.app, shape, not getattr(found, "no_color", False)), **values)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # the reader has seen enough, as in `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None
        except Exception as error:
            if debug:
                raise
            raise Refusal(_error_message(error)) from None

    run = click.option("--debug", is_flag=True, hidden=True, help="Let errors through with their traceback.")(run)
    run = click.option(
        "--format", "shape", type=click.Choice(shapes), default="table", show_default=True,
        help="json gives the objects of the JSON API.",
    )(run)  # fmt: skip
    return click.command(function.__name__.rstrip("_"))(click.pass_context(run))


def _error_message(error: Exception) -> str:
    """What, why, next: our own refusals say it themselves."""
    if isinstance(error, TraceError):
        return str(error)
    return (
        f"That did not work: {type(error).__name__}: {error}. Add --debug to see where; celery trace doctor may help."
    )


def listing(*options: Callable[[F], F]) -> Callable[[F], F]:
    """The options that every list takes, after its own."""

    def add(function: F) -> F:
        common: tuple[Callable[[F], F], ...] = (
            click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Rows at most."),
            click.option("--cursor", default=None, help="Where the page before ended."),
        )
        for option in reversed((*options, *common)):
            function = option(function)
        return function

    return add


KIND = click.option("--kind", type=click.Choice([kind.value for kind in Kind]), default=None)
NAME = click.option("--name", default=None, help="Of this task, view or block only.")
WORKER = click.option("--worker", default=None, help="Of this worker only.")
SEARCH = click.option("--search", default=None, metavar="TEXT", help="Only what contains this text.")
SINCE = click.option("--since", "since_s", type=Since(), default=None, help="Not older than, such as 12h or 7d.")


def unknown(id: str, what: str) -> Refusal:
    """There is no such thing in the store."""
    return Refusal(
        f"There is no {what} with the id {escaped(id)} in the store; it may have been pruned. "
        "See celery trace failures, celery trace leaks or celery trace alerts for the ids."
    )


def user() -> str:
    """Who gives the command, for the records."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user, as in a container
        return f"uid {os.getuid()}"
