"""The JSON of kept memory by call stack, in our shape and as files for other tools."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from celery_trace.heap import flames
from celery_trace.model import Kind
from flower_plugin.auth.roles import Role
from flower_plugin.trouble import Trouble
from flower_plugin.web.handlers import JsonHandler

FORMATS = ("json", "collapsed", "speedscope", "pprof")


class HeapProfileHandler(JsonHandler):
    """
    ``GET /api/trace/profiles/NAME?kind=memory``: what the runs of a name have left alive, by call stack.

    ``of`` is task (by default), request, block or process; ``compare`` as the command takes it; ``format`` one of
    :data:`FORMATS`.
    """

    role = Role.LOOK

    async def get(self, name: str) -> None:
        """Folded stacks, or a file."""
        kind = self._one_of("kind", ("memory",), "memory")
        of = self._one_of("of", [str(one) for one in Kind], "task")
        shape = self._one_of("format", FORMATS, "json")
        compare = self.get_query_argument("compare", "")[:300]
        context = self.context
        try:
            view = await self.off_loop(lambda: context.queries.heap_view(of, name, compare=compare))
            need = await self.off_loop(lambda: context.queries.need(of, name))
        except ValueError as error:
            raise Trouble(400, "compare can't be used.", f"{str(error)[:1].upper()}{str(error)[1:]}.") from error
        stacks = view.stacks
        if shape == "collapsed":
            self._send(flames.collapsed(stacks).encode(), "text/plain; charset=UTF-8", "collapsed.txt")
        elif shape == "speedscope":
            file = msgspec.json.encode(flames.speedscope(stacks, f"{name}: kept memory"))
            self._send(file, "application/json; charset=UTF-8", "speedscope.json")
        elif shape == "pprof":
            at_s = view.after.at or self.context.clock.now_s()
            self._send(flames.pprof(stacks, at_s), "application/octet-stream", "pb.gz")
        else:
            self.answer({"name": name, "kind": kind, "of": of, **flames.as_json(view), "need": need})

    def _one_of(self, argument: str, allowed: Sequence[str], default: str) -> str:
        value: str = self.get_query_argument(argument, default)
        if value not in allowed:
            raise Trouble(400, f"{argument} is {value[:50]!r}.", f"It must be one of {', '.join(allowed)}.")
        return value

    def _send(self, body: bytes, type: str, ending: str) -> None:
        self.set_header("Content-Type", type)
        self.set_header("Content-Disposition", f'attachment; filename="kept-memory.{ending}"')
        self.finish(body)
