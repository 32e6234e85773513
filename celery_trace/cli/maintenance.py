"""The maintenance subcommands: prune, export, collect, doctor."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from celery_trace import private_files
from celery_trace.cli.context import Bytes, CommandContext, Duration, Refusal, Since, command
from celery_trace.cli.renderers import checkup
from celery_trace.cli.renderers.alerts import alerts
from celery_trace.cli.renderers.failures import failures
from celery_trace.cli.renderers.leaks import leaks
from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import TableColumn, table
from celery_trace.cli.renderers.workers import workers
from celery_trace.clock import SystemClock
from celery_trace.spool import unrecorded
from celery_trace.text.format import size

if TYPE_CHECKING:
    from celery_trace.transports import Transport

#: Time limit for freeing disk space in small steps after pruning, seconds; the collector continues with it.
GIVE_BACK_S = 10.0


@command
@click.option("--older-than", "age_s", type=Duration(), default=None, help="Instead of trace_retention_days.")
@click.option("--keep-runs", type=click.IntRange(0), default=None, help="Instead of trace_retention_runs.")
@click.option("--keep-failures", type=click.IntRange(0), default=None, help="Instead of trace_retention_failures.")
@click.option("--keep-bytes", type=Bytes(), default=None, help="Instead of trace_retention_bytes, such as 500M.")
@click.option(
    "--vacuum",
    is_flag=True,
    help="Then shrink an SQLite file by its free space. Writers wait meanwhile, and it needs twice the file's size "
    "on the disk.",
)
def prune(
    context: CommandContext,
    age_s: float | None,
    keep_runs: int | None,
    keep_failures: int | None,
    keep_bytes: int | None,
    vacuum: bool,
) -> None:
    """Remove records beyond the retention settings now."""
    from celery_trace.stores import sizes

    given = {
        "retention_days": age_s / 86400 if age_s is not None else None,
        "retention_runs": keep_runs,
        "retention_failures": keep_failures,
        "retention_bytes": keep_bytes,
    }
    chosen = context.settings.over(**{name: value for name, value in given.items() if value is not None})
    with context.store() as (store, queries):
        pruned = store.prune(chosen, context.style.now_s)
        given_back = store.vacuum() if vacuum else store.give_back(most_s=GIVE_BACK_S)
        found = queries.stats().size
    rows = sorted(pruned.rows.items())
    text = table(
        [TableColumn("TABLE"), TableColumn("ROWS REMOVED", right=True)], rows, context.style,
        "Nothing to remove.",
    )  # fmt: skip
    lines = [f"{size(given_back)} of disk space were freed."] if given_back else []
    lines += sizes.sentences(found, context.style.now_s) if found is not None else []
    answer = {"pruned": pruned.rows, "total": pruned.total, "given_back_bytes": given_back, "size": found}
    context.show(text + "".join(f"{line}\n" for line in lines), answer)


EXPORTS = ("leaks", "failures", "groups", "runs", "workers", "alerts", "shells")
#: Tables without an object in the JSON API.
TABLES = (
    "processes", "totals", "samples", "windows", "heap_profiles", "time_profiles", "flows", "queue_samples", "starts",
    "schedules", "deliveries", "audit",
)  # fmt: skip


@functools.partial(command, shapes=("table", "json", "parquet"))
@click.option("--what", type=click.Choice(EXPORTS + TABLES), multiple=True, help="Repeatable; by default all.")
@click.option("--since", "since_s", type=Since(), default=None, help="Only newer than this, such as 12h or 7d.")
@click.option("--details", is_flag=True, help="Include frames and locals of failures and lines of shells.")
@click.option(
    "--output", type=click.Path(), default="-", help="A file (default: standard output); for parquet a folder."
)
def export(context: CommandContext, what: tuple[str, ...], since_s: float | None, details: bool, output: str) -> None:
    """
    Export the store's records.

    JSON has one object per line, such as {"record": "leak", …}, in the shapes of the JSON API. Parquet has the store's
    tables, one file each in the folder --output, for DuckDB, pandas and similar tools; it needs celery-trace[parquet].
    """
    if context.shape == "parquet":
        _export_parquet(context, what, since_s, output)
        return
    from celery_trace.queries.export import every, json_lines

    with context.store() as (_, queries), _file(output) as file:
        for noun in what or EXPORTS:
            if noun in TABLES:
                raise Refusal(f"{noun} can be exported as a table only. Add --format parquet --output FOLDER.")
            if context.json:
                for line in json_lines(queries, noun, since_s, details=details):
                    file.write(line + "\n")
            elif noun in _TEXTS:
                file.write(f"{noun.upper()}\n\n{_TEXTS[noun](list(every(queries, noun, since_s)), context.style)}\n")
            elif what:
                raise Refusal(f"{noun} have no table format. Add --format json.")


_TEXTS: dict[str, Callable[[list[Any], Style], str]] = {
    "leaks": leaks, "failures": failures, "workers": workers, "alerts": alerts,
}  # fmt: skip


def _export_parquet(context: CommandContext, what: tuple[str, ...], since_s: float | None, output: str) -> None:
    from celery_trace.export import TABLES, write_parquet

    if output == "-":
        raise Refusal("Parquet is written to files. Add --output FOLDER.")
    names = ["processes" if noun == "workers" else noun for noun in what] or list(TABLES)
    with context.store() as (store, _):
        try:
            exported = write_parquet(store, Path(output), dict.fromkeys(names), since_s=since_s)
        except OSError as error:
            raise Refusal(f"Can't write to {output}: {error.strerror}. Name another folder.") from None
    for name, rows in exported.rows.items():
        click.echo(f"{exported.files[name]}  {rows} rows")


@contextmanager
def _file(output: str) -> Iterator[TextIO]:
    """Standard output for ``-``, otherwise a new file that only its owner can read, as it contains locals."""
    if output == "-":
        yield sys.stdout
        return
    try:
        fd = private_files.open_output(Path(output))
    except OSError as error:
        raise Refusal(f"Can't write {output}: {error.strerror}. Name another file.") from None
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        yield file


@command
@click.option("--once", is_flag=True, help="Deliver what is in the spool now, then end.")
def collect(context: CommandContext, once: bool) -> None:
    """Run the collector in the foreground: spool to store (or broker)."""
    import logging
    import signal
    import threading

    from celery_trace import collector as collecting

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    chosen = context.settings
    if chosen.store_url.startswith("django"):
        collecting.prepare_django(os.environ.get("DJANGO_SETTINGS_MODULE", ""))
    if chosen.transport == "broker":
        from celery_trace.transports.broker import BrokerTransport

        transport: Transport = BrokerTransport(context.app.connection_for_write)
    else:
        transport = collecting.make_transport(chosen)
    try:
        clock = SystemClock()
        collector = collecting.Collector(
            chosen.spool_folder,
            transport,
            clock,
            redact=chosen.redact,
            stalls=collecting.stalls_of(chosen),
            listen=collecting.listening(chosen, context.app.connection_for_write, clock),
        )
    except collecting.AnotherCollector as other:
        raise Refusal(str(other)) from None
    except OSError as error:
        raise Refusal(f"Can't collect {chosen.spool_folder}: {error}. {unrecorded.advice(error)}") from None
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        if once:
            collector.round()
        else:
            click.echo(f"Collecting {chosen.spool_folder}. Ctrl-C ends it after a last round.", err=True)
            collector.run(ended.is_set, ended.wait)
    finally:
        collector.close()
    status = collector.status
    context.show(f"{status.delivered} records were delivered, {status.corrupt} set aside.\n", status)


@command
def doctor(context: CommandContext) -> None:
    """Check the installation: what works, what does not, and what to do."""
    from celery_trace.cli.doctor import examine

    findings = examine(context.app, context.settings)
    unwell = [finding for finding in findings if finding.level == "fail"]
    context.show(checkup.examination(findings, context.style), {"findings": findings, "ok": not unwell})
    if unwell:
        raise click.exceptions.Exit(1)
