"""Where memory and time go, by call stack, as JSON and as files for other tools."""

from __future__ import annotations

from collections.abc import Sequence

from celery_trace.model import Kind, Measure
from celery_trace.profiles import files
from celery_trace.queries import Queries
from flower_plugin.auth.roles import UserRole
from flower_plugin.problems import Problem
from flower_plugin.web.handlers import JsonHandler

FORMATS = ("json", *files.ENDINGS)
_TYPES = {"collapsed": "text/plain; charset=UTF-8", "pprof": "application/octet-stream"}
#: The beginning of a file's name.
_FILES = {Measure.MEMORY: "kept-memory", Measure.WALL: "wall-time", Measure.CPU: "cpu-time", Measure.LOCK: "lock-time"}


class ProfileHandler(JsonHandler):
    """
    ``GET /api/trace/profiles/NAME?kind=memory|wall|cpu|lock``: the retained memory or the time of a name by call stack.

    ``of`` is task (default), request, block or process; ``compare`` as in the command; ``format`` one of
    :data:`FORMATS`.
    """

    role = UserRole.LOOK

    async def get(self, name: str) -> None:
        """Folded stacks, or a file."""
        measure = Measure(self._one_of("kind", [str(one) for one in Measure], "memory"))
        of = self._one_of("of", [str(one) for one in Kind], "task")
        shape = self._one_of("format", FORMATS, "json")
        compare = self.get_query_argument("compare", "")[:300]
        try:
            view = await self.query(Queries.profile_view, of, name, measure, compare=compare)
        except ValueError as error:
            raise Problem(400, "Invalid compare.", f"{str(error)[:1].upper()}{str(error)[1:]}.") from error
        if shape in files.ENDINGS:
            body = await self.off_loop(files.write, shape, view, f"{name}: {measure}", self.context.clock.now_s())
            self.set_header("Content-Type", _TYPES.get(shape, "application/json; charset=UTF-8"))
            ending = f"{_FILES[measure]}.{files.ENDINGS[shape]}"
            self.set_header("Content-Disposition", f'attachment; filename="{ending}"')
            self.finish(body)
            return
        need = await self.query(Queries.need, of, name) if measure is Measure.MEMORY else None
        self.answer({"name": name, "kind": measure, "of": of, **files.as_json(view), "need": need})

    def _one_of(self, argument: str, allowed: Sequence[str], default: str) -> str:
        value: str = self.get_query_argument(argument, default)
        if value not in allowed:
            raise Problem(400, f"Invalid {argument} {value[:50]!r}.", f"It must be one of {', '.join(allowed)}.")
        return value
