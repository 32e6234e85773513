"""The subcommand that shows where memory and time go, by call stack, and writes flame graphs for other tools."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import click
import msgspec

from celery_trace import private_files
from celery_trace.cli.context import SINCE, CommandContext, Refusal, command
from celery_trace.cli.renderers import flames
from celery_trace.model import Kind, Measure
from celery_trace.profiles import files
from celery_trace.text.escape import escaped


@functools.partial(command, shapes=("table", "json", *files.ENDINGS))
@click.argument("name")
@click.option("--measure", type=click.Choice([measure.value for measure in Measure]), default="wall",
              show_default=True, help="Wall time, processor time, waiting for locks, or retained memory.")  # fmt: skip
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), default="task", show_default=True)
@click.option("--compare", default="", metavar="AGE|release:NAME",
              help="Compare with an age ago (1h, 7d), or runs with an earlier release.")  # fmt: skip
@SINCE
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write a file (0600).")
def flame(
    context: CommandContext,
    name: str,
    measure: str,
    kind: str,
    compare: str,
    since_s: float | None,
    output: Path | None,
) -> None:
    """Show where the time of runs of NAME goes, or the memory that they retain, by call stack: a flame graph."""
    if context.shape == "pprof" and output is None:
        raise Refusal("A pprof file is binary: add --output FILE.")
    measured = Measure(measure)
    with context.store() as (_, queries):
        try:
            view = queries.profile_view(kind, name, measured, compare=compare, since_s=since_s)
            need = queries.need(kind, name, since_s=since_s) if measured is Measure.MEMORY else None
        except ValueError as error:
            raise Refusal(f"Invalid --compare: {escaped(str(error))}.") from None
    if context.shape in files.ENDINGS:
        text = files.write(context.shape, view, f"{name}: {flames.NOUNS[measured]}", context.style.now_s)
    elif context.shape == "json":
        answer = {"name": name, "kind": measure, "of": kind, **files.as_json(view), "need": need}
        text = msgspec.json.format(msgspec.json.encode(answer), indent=2)
    else:
        text = flames.flame(name, view, need, context.style).encode()
    if output is None:
        click.echo(text.decode("utf-8", "replace"), nl=context.shape not in ("table", "collapsed"))
        return
    with os.fdopen(private_files.create(output), "wb") as file:
        file.write(text)
    click.echo(f"Wrote {output}", err=True)
