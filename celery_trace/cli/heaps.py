"""The subcommand that shows retained memory by call stack, and writes flame graphs for other tools."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import click
import msgspec

from celery_trace import private_files
from celery_trace.cli.context import SINCE, CommandContext, Refusal, command
from celery_trace.cli.renderers import heaps
from celery_trace.heap import flames
from celery_trace.model import Kind
from celery_trace.text.escape import escaped

#: File formats for other tools.
_FILES = ("collapsed", "speedscope", "pprof")


@functools.partial(command, shapes=("table", "json", *_FILES))
@click.argument("name")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), default="task", show_default=True)
@click.option("--compare", default="", metavar="AGE|release:NAME",
              help="Compare with an age ago (1h, 7d), or runs with an earlier release.")  # fmt: skip
@SINCE
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write a file (0600).")
def kept(
    context: CommandContext, name: str, kind: str, compare: str, since_s: float | None, output: Path | None
) -> None:
    """Show the memory that runs of NAME retain, by call stack: a flame graph."""
    if context.shape == "pprof" and output is None:
        raise Refusal("A pprof file is binary: add --output FILE.")
    with context.store() as (_, queries):
        try:
            view = queries.heap_view(kind, name, compare=compare, since_s=since_s)
            need = queries.need(kind, name, since_s=since_s)
        except ValueError as error:
            raise Refusal(f"Invalid --compare: {escaped(str(error))}.") from None
    if context.shape == "collapsed":
        text = flames.collapsed(view.stacks).encode()
    elif context.shape == "speedscope":
        text = msgspec.json.encode(flames.speedscope(view.stacks, f"{name}: kept memory"))
    elif context.shape == "pprof":
        text = flames.pprof(view.stacks, view.after.at or context.style.now_s)
    elif context.shape == "json":
        answer = {"name": name, "kind": "memory", "of": kind, **flames.as_json(view), "need": need}
        text = msgspec.json.format(msgspec.json.encode(answer), indent=2)
    else:
        text = heaps.kept(name, view, need, context.style).encode()
    if output is None:
        click.echo(text.decode("utf-8", "replace"), nl=context.shape not in ("table", "collapsed"))
        return
    with os.fdopen(private_files.create(output), "wb") as file:
        file.write(text)
    click.echo(f"Wrote {output}", err=True)
