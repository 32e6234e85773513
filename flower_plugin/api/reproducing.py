"""A failure as a pytest file, to download."""

from __future__ import annotations

from celery_trace.failures.celery_request import parameters
from celery_trace.redaction import Redactor
from celery_trace.reproduction.inputs import CannotReproduce
from celery_trace.reproduction.project import path_of
from celery_trace.reproduction.written import MadeTest, written
from flower_plugin.auth.roles import UserRole
from flower_plugin.problems import Problem
from flower_plugin.web.handlers import JsonHandler


class MadeTestHandler(JsonHandler):
    """``GET /api/trace/failures/ID/test``: the failure as a pytest file; ``frame`` is the one with the locals."""

    role = UserRole.LOCALS

    async def get(self, identifier: str) -> None:
        """The file, 404, or 409 if the failure can't be repeated by its arguments."""
        number = self.get_query_argument("frame", "")
        if number and not (number.isascii() and number.isdigit() and len(number) < 6):
            raise Problem(400, f"Invalid frame {number[:20]!r}.", "It must be a number; 0 is the innermost frame.")
        made = await self.off_loop(self._made, identifier, int(number) if number else None)
        self.set_header("Content-Type", "text/x-python; charset=UTF-8")
        self.set_header("Content-Disposition", f'attachment; filename="{made.name}"')
        self.finish(made.text.encode())

    def _made(self, identifier: str, frame: int | None) -> MadeTest:
        context = self.context
        failure = context.queries.failure_record(identifier)
        if failure is None:
            raise Problem(404, f"Failure {identifier[:50]!r} not found.", "It may have been pruned.")
        # The monitor does not import the project's tasks; it knows them if the app's module did.
        task = context.capp.tasks.get(failure.name)
        names = parameters(task.run) if task is not None else ()
        redactor = Redactor(context.settings.redact)
        try:
            return written(failure, app=path_of(context.capp), redactor=redactor, names=names, frame=frame)
        except CannotReproduce as error:
            raise Problem(409, f"{error.what}.", f"{error.why[:1].upper()}{error.why[1:]}.") from error
