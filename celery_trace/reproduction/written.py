"""Writes a failure as a pytest file."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from celery_trace.model import CapturedException, Failure, Frame, Kind, Outcome
from celery_trace.redaction import Redactor
from celery_trace.reproduction import recipes
from celery_trace.reproduction.captured import ExpectedError, captured_error
from celery_trace.reproduction.inputs import CannotReproduce, inputs_of, refuse
from celery_trace.reproduction.recipes import Hole, Reader, Recipe
from celery_trace.text.escape import escaped

#: Why a run that ended like this can't be repeated by its arguments.
_UNREPEATABLE: Final[Mapping[Outcome, str]] = {
    Outcome.TIME_LIMIT: "a time limit ended it, which depends on time and not on the arguments",
    Outcome.LOST: "its process was killed, and a test that repeats it may kill pytest too",
    Outcome.REVOKED: "it was revoked, so there is no error of its own",
    Outcome.INTERNAL_ERROR: "code around the task failed, which only a worker runs",
}
#: What a test imports from us.
TESTING: Final = "celery_trace.reproduction.testing"
#: Holes in the text at the head of a file; all of them are marked in its values.
MOST_LISTED: Final = 30
_FINISHED: Final = "The task had finished"


class MadeTest(Struct, frozen=True, kw_only=True):
    """A test. ``name`` is a file name for it; ``holes`` say what must be filled in before it can run."""

    name: str
    text: str
    holes: list[Hole]


def may_repeat(kind: str, outcome: Outcome) -> bool:
    """Whether a test can be made of such a failure, as far as these say."""
    return kind in (Kind.TASK, Kind.REQUEST) and outcome not in _UNREPEATABLE


def repeatable(failure: Failure) -> tuple[CapturedException, ExpectedError]:
    """
    What was raised, if the same arguments may raise it again.

    Raises:
        CannotReproduce: They can't, and why.
    """
    if failure.kind not in (Kind.TASK, Kind.REQUEST):
        refuse(failure, f"a {failure.kind} has no arguments", "Make a test of the task or request that ran it")
    if failure.outcome in _UNREPEATABLE:
        refuse(failure, _UNREPEATABLE[failure.outcome])
    if failure.note.startswith(_FINISHED):
        refuse(failure, "the task itself had finished without an error")
    raised = failure.capture.exceptions[0] if failure.capture is not None and failure.capture.exceptions else None
    error = captured_error(raised) if raised is not None else None
    if raised is None or error is None:
        refuse(failure, "the capture has no frames")
    return raised, error


def written(
    failure: Failure, *, app: str, redactor: Redactor, names: Sequence[str] = (), frame: int | None = None
) -> MadeTest:
    """
    The test of a failure.

    Args:
        failure: The whole record.
        app: Where the app can be imported from, as ``proj.celery:app``.
        redactor: A second look at all texts.
        names: Those of the task's positional parameters, for the names of holes.
        frame: The frame whose locals become fixtures, 0 for the innermost; by default the innermost of the user's code.

    Raises:
        CannotReproduce: The failure can't be repeated by arguments, or there is no such frame.
    """
    raised, error = repeatable(failure)
    return _Writing(failure, raised, error, app, redactor).file(names, frame)


def _quoted(text: str) -> str:
    """A text for a docstring: on one line, without quotes or backslashes that mean something."""
    return escaped(text).replace("\\", "\\\\").replace('"', "'")


def _slug(text: str) -> str:
    return re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower()[:60] or "task"


class _Writing:
    """One file under construction."""

    def __init__(
        self, failure: Failure, raised: CapturedException, error: ExpectedError, app: str, redactor: Redactor
    ) -> None:
        self._failure = failure
        self._raised = raised
        self._error = error
        self._app = app
        self._redactor = redactor
        self._heap = failure.capture.heap if failure.capture is not None else []

    def file(self, names: Sequence[str], frame: int | None) -> MadeTest:
        inputs = inputs_of(self._failure, self._redactor, names)
        chosen = self._frame(frame)
        locals_ = dict(self._locals(chosen))
        missing = [hole for recipe in inputs.values() for hole in recipes.holes(recipe)]
        fixtures = {**inputs, **locals_}
        modules = sorted(set().union(*(recipes.modules(recipe) for recipe in fixtures.values())))
        imports = "".join(f"import {module}\n" for module in modules) + ("\n" if modules else "")
        head = (
            f"{self._docstring(missing, chosen if locals_ else None)}\n{imports}import pytest\n\n"
            f"from {TESTING} import {', '.join(self._imports(fixtures.values()))}\n\n{self._facts()}"
        )
        blocks = [head, *map(_fixture, inputs, inputs.values()), self._trial(), self._test()]
        text = "\n\n".join([*blocks, *map(_fixture, locals_, locals_.values())])
        ast.parse(text)
        name = f"test_{_slug(self._failure.name)}_{_slug(self._failure.id)[:8]}.py"
        return MadeTest(name=name, text=text, holes=missing)

    def _imports(self, fixtures: Iterable[Recipe]) -> list[str]:
        own = ["ExpectedError", "Code", "Place", "Project", "RequestFacts", "Trial", "hole"]
        needless = {
            "Code": not self._error.code,
            "RequestFacts": self._failure.kind is not Kind.REQUEST,
            "hole": not any(map(recipes.holes, fixtures)),
        }
        return [name for name in own if not needless.get(name, False)]

    # --- the head

    def _docstring(self, missing: list[Hole], chosen: Frame | None) -> str:
        failure, at = self._failure, self._error.at
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(failure.at_s))
        lines = [
            f"A failure of the {failure.kind} {failure.name}, from its capture: {self._error.error}",
            "",
            f"Raised in {at.module}.{at.function} at: {at.code or '(no source)'}",
            f"Failure {failure.id} of {when}, try {failure.retries}.",
            "",
            "The test fails while this error is raised at this line, and passes once it is fixed. It is skipped if",
            "a value is missing, or if there is no error although the code is the same. Another error is an error of",
            "the fixture `trial`.",
        ]
        if missing:
            lines += ["", "Write values in place of these holes, or the test is skipped:"]
            lines += [f"- {hole.where}: {hole.why}" for hole in missing[:MOST_LISTED]]
        if failure.capture is not None and failure.capture.brief:
            lines += ["", "Its capture is in brief, without locals. Others of its group may have them:"]
            lines += [f"celery -A PROJECT trace failures --fingerprint {failure.fingerprint}"]
        if chosen is not None:
            function = chosen.qualname or chosen.function
            lines += ["", f"The fixtures local_* are the locals of {function}, each made alone."]
        return '"""\n' + "".join(f"{_quoted(line)}\n" for line in lines) + '"""\n'

    def _facts(self) -> str:
        at = self._error.at
        names = ("module", "function", "code", "before", "after", "in_app")
        place = "".join(f"        {name}={getattr(at, name)!r},\n" for name in names)
        code = "".join(f"        Code({one.module!r}, {one.lines}, {one.digest!r}),\n" for one in self._error.code)
        code = f"    code=(\n{code}    ),\n" if code else ""
        hint = "" if self._app else '  # write your app, as "proj.celery:app"'
        return (
            f"PROJECT = Project({self._app!r}){hint}\n"
            f"FAILURE = ExpectedError(\n    error={self._error.error!r},\n    at=Place(\n{place}    ),\n{code})\n"
            "#: Set this to True when you have seen this test fail with 'reproduced'.\n"
            "REPRODUCED = False\n"
        )

    # --- the run

    def _trial(self) -> str:
        failure = self._failure
        if failure.kind is Kind.REQUEST:
            run = "PROJECT.run_view(FAILURE, RequestFacts(**facts))"
            parameters = "facts"
        else:
            run = f"PROJECT.run_task(FAILURE, {failure.name!r}, args, kwargs, retries={failure.retries})"
            parameters = "args, kwargs"
        return f"@pytest.fixture\ndef trial({parameters}) -> Trial:\n    return {run}\n"

    def _test(self) -> str:
        return (
            f"def test_{_slug(self._failure.name)}(trial: Trial, request: pytest.FixtureRequest) -> None:\n"
            "    trial.check(request, reproduced=REPRODUCED)\n"
        )

    # --- locals

    def _frame(self, number: int | None) -> Frame | None:
        frames = self._raised.frames
        if number is None:
            return next((frame for frame in frames if frame.in_app), None)
        if not 0 <= number < len(frames):
            raise CannotReproduce(
                f"There is no frame {number}", f"the failure has {len(frames)}, 0 is the innermost", "Choose another"
            )
        return frames[number]

    def _locals(self, frame: Frame | None) -> Iterator[tuple[str, Recipe]]:
        for variable in frame.locals if frame is not None else ():
            if variable.name.isidentifier():
                # Each by itself, as a test takes the ones it needs.
                reader = Reader(self._heap, self._redactor)
                yield f"local_{variable.name}", reader.named(variable.name, variable.ref, variable.name)


def _fixture(name: str, recipe: Recipe) -> str:
    return f"@pytest.fixture\ndef {name}():\n    return {recipes.source(recipe, 4)}\n"
