"""``GET /api/trace/running``: what runs now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

from msgspec.structs import replace

from celery_trace.model import RunningView
from celery_trace.running.client import StackReader, StackUnavailable, with_stack
from flower_plugin.auth.roles import UserRole
from flower_plugin.problems import Problem
from flower_plugin.web.handlers import JsonHandler

#: Runs of one answer with locals: each is read from its process.
MOST_WITH_LOCALS: Final = 50
#: Processes that are asked at once.
_AT_ONCE: Final = 10
_PARAMETERS: Final = ("name", "worker", "task_id")


class RunningHandler(JsonHandler):
    """
    ``GET /api/trace/running``.

    ``name``, ``worker`` and ``task_id`` select runs; with ``locals=1`` each stack is read now, with its locals.
    """

    role = UserRole.LOOK

    async def get(self) -> None:
        """``{"running": [...], "next": null}``, those that began first first."""
        given = {name: self.get_query_argument(name)[:500] for name in self.request.query_arguments}
        locals_wanted = given.pop("locals", "0")
        if locals_wanted not in {"0", "1"}:
            raise Problem(400, f"Invalid locals {locals_wanted[:50]!r}.", "It must be 1 or 0.")
        unknown = [name for name in given if name not in _PARAMETERS]
        if unknown:
            allowed = ", ".join((*_PARAMETERS, "locals"))
            raise Problem(400, f"Unknown parameter {unknown[0][:50]!r}.", f"Parameters of this list: {allowed}.")
        user, context = self.user, self.context
        if locals_wanted == "1" and not user.may(UserRole.LOCALS):
            raise Problem(403, "Locals need the role locals.", f"{user.name} has the role {user.role.word}.")
        page = await self.off_loop(lambda: context.queries.running())  # noqa: PLW0108 - opens the store off the loop
        rows = [row for row in page.rows if all(getattr(row, name) == value for name, value in given.items())]
        if locals_wanted == "1":
            reader = context.stacks
            rows = await self.off_loop(lambda: _with_locals(rows, reader, user.name))
        self.answer({"running": rows, "next": None})


def _with_locals(rows: list[RunningView], reader: StackReader, user: str) -> list[RunningView]:
    """The runs with their stacks as they are now. Blocks."""

    def read(row: RunningView) -> RunningView:
        try:
            return with_stack(row, reader.read(row, user=user))
        except StackUnavailable as error:
            return replace(row, stack_why=error.why)

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="trace-stacks") as threads:
        return [*threads.map(read, rows[:MOST_WITH_LOCALS]), *rows[MOST_WITH_LOCALS:]]
