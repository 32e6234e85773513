"""The subcommands that repeat a failure in the developer's checkout: as a test, and under the debugger."""

from __future__ import annotations

import ast
import functools
import os
import pdb
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from celery_trace.cli.context import CommandContext, Refusal, command, unknown
from celery_trace.failures.celery_request import parameters
from celery_trace.model import Failure, Kind
from celery_trace.redaction import Redactor
from celery_trace.reproduction import recipes
from celery_trace.reproduction.captured import ExpectedError, depth_of
from celery_trace.reproduction.inputs import inputs_of
from celery_trace.reproduction.project import LoadedProject, path_of
from celery_trace.reproduction.recipes import Hole, Recipe
from celery_trace.reproduction.running import RequestFacts, RunEnd, run_task, run_view
from celery_trace.reproduction.written import repeatable, written
from celery_trace.text.escape import escaped, escaped_lines

#: Characters of a returned value that are shown.
_SHOWN = 300


def _record(context: CommandContext, id: str) -> Failure:
    with context.store() as (_, queries):
        failure = queries.failure_record(id)
    if failure is None:
        raise unknown(id, "failure")
    return failure


def _parameters(project: LoadedProject, failure: Failure) -> tuple[str, ...]:
    """The names of the task's parameters; none if the project has no such task."""
    task = project.load().tasks.get(failure.name)
    return parameters(task.run) if task is not None else ()


@functools.partial(command, shapes=("table", "json"))
@click.argument("id")
@click.option("--frame", type=click.IntRange(0), default=None,
              help="Its locals become fixtures; 0 is the innermost. Default: the innermost of your code.")  # fmt: skip
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write a new file.")
def make_test(context: CommandContext, id: str, frame: int | None, output: Path | None) -> None:
    """
    Write a pytest file from the failure ID: red while the bug is there.

    Values that the capture does not have are marked as holes. Run it in a checkout of the project.
    """
    failure = _record(context, id)
    names = _parameters(LoadedProject(context.app), failure)
    redactor = Redactor(context.settings.redact)
    made = written(failure, app=path_of(context.app), redactor=redactor, names=names, frame=frame)
    if output is None:
        context.show(made.text, made)
        return
    try:
        with open(output, "x", encoding="utf-8", opener=_private) as file:
            file.write(made.text)
    except FileExistsError:
        raise Refusal(f"Can't write {output}: it exists. Choose another name, or remove it.") from None
    except OSError as error:
        raise Refusal(f"Can't write {output}: {error.strerror}. Choose another place.") from None
    click.echo(f"Wrote {output}. Run: python -m pytest {output}", err=True)
    for hole in made.holes:
        click.echo(f"hole: {escaped(hole.where)} ({escaped(hole.why)})", err=True)


def _private(path: str, flags: int) -> int:
    """It has the values of a run: only its owner may read it."""
    return os.open(path, flags, 0o600)


# --- replay -------------------------------------------------------------------------------------------------


@functools.partial(command, shapes=("table",))
@click.argument("id")
@click.option("--hole", "given", multiple=True, metavar="NAME=VALUE",
              help="The value of a hole: a Python literal, else a text. Repeatable.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask before the code runs.")
def replay(context: CommandContext, id: str, given: tuple[str, ...], yes: bool) -> None:
    """
    Run the failure ID again in this checkout, and open pdb at the line of its error.

    The code has all its effects: it writes to the databases and services of this checkout's settings.
    """
    failure = _record(context, id)
    _, error = repeatable(failure)
    project = LoadedProject(context.app)
    inputs = inputs_of(failure, Redactor(context.settings.redact), _parameters(project, failure))
    _announce(failure, error, inputs)
    fillings = _fillings(inputs, given)
    if not yes:
        click.confirm("Run it?", abort=True)

    def fill(hole: Hole) -> object:
        return fillings[hole.where]

    values = {name: recipes.value(recipe, project, fill) for name, recipe in inputs.items()}
    _report(error, _run(project, failure, values))


def _announce(failure: Failure, error: ExpectedError, inputs: Mapping[str, Recipe]) -> None:
    click.echo(f"This runs the {failure.kind} {escaped(failure.name)}, try {failure.retries}, in {os.getcwd()} with")
    for name, recipe in inputs.items():
        click.echo(f"  {name} = {escaped_lines(recipes.source(recipe, 2))}")
    click.echo(f"to see {escaped(error.error)} at: {escaped(error.at.code)} (in {escaped(error.at.function)})")
    click.echo("It has all effects of the code: databases, files, mails, further tasks.")


def _fillings(inputs: Mapping[str, Recipe], given: tuple[str, ...]) -> dict[str, object]:
    """
    A value for each hole, by its name: from the options, else asked for on a terminal.

    Raises:
        Refusal: A hole has no value, or a value no hole.
    """
    holes = {hole.where: hole for recipe in inputs.values() for hole in recipes.holes(recipe)}
    fillings: dict[str, object] = {}
    for text in given:
        name, separator, _ = text.partition("=")
        name = max((known for known in holes if text.startswith(f"{known}=")), key=len, default=name)
        if not separator or name not in holes:
            known = ", ".join(map(escaped, holes)) or "none"
            raise Refusal(f"There is no hole {escaped(name)}. The holes are: {known}. Use --hole NAME=VALUE.")
        fillings[name] = _literal(text[len(name) + 1 :])
    missing = [hole for name, hole in holes.items() if name not in fillings]
    if missing and not sys.stdin.isatty():
        what = "; ".join(f"{escaped(hole.where)} ({escaped(hole.why)})" for hole in missing)
        raise Refusal(f"Can't run it: the capture lacks {what}. Add --hole NAME=VALUE for each.")
    return fillings | {hole.where: _ask(hole) for hole in missing}


def _ask(hole: Hole) -> object:
    secret = hole.why.startswith("redacted")
    return _literal(click.prompt(f"{escaped(hole.where)} ({escaped(hole.why)})", hide_input=secret))


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _run(project: LoadedProject, failure: Failure, values: Mapping[str, Any]) -> RunEnd:
    if failure.kind is Kind.REQUEST:
        return run_view(project, RequestFacts(**values["facts"]))
    return run_task(project.task(failure.name), values["args"], values["kwargs"], failure.retries)


def _report(captured: ExpectedError, ended: RunEnd) -> None:
    """Say what came of it; after an error, in pdb at the line of the captured one."""
    if ended.error is None:
        shown = repr(ended.returned)[:_SHOWN]
        click.echo(f"Not reproduced: no error. It returned {escaped(shown)}.")
        return
    difference = captured.difference(ended.error)
    what = f"Not reproduced, another error: {difference}" if difference else f"Reproduced: {captured.error}"
    click.echo(f"{escaped(what)}: {escaped_lines(str(ended.error))}")
    debugger = pdb.Pdb()
    debugger.reset()
    depth = depth_of(ended.error, captured)
    if depth:
        debugger.cmdqueue.append(f"up {depth}")
    debugger.interaction(None, ended.error.__traceback__)
