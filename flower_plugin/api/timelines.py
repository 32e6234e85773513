"""The timeline of a workflow as JSON."""

from __future__ import annotations

from flower_plugin.auth.roles import UserRole
from flower_plugin.pages import timelines
from flower_plugin.web.handlers import JsonHandler


class TimelineHandler(JsonHandler):
    """``GET /api/trace/workflows/ID``."""

    role = UserRole.LOOK

    async def get(self, root_id: str) -> None:
        """The timeline, or 404."""
        remembered, now_s = self.context.status().workflow, self.context.clock.now_s()
        self.answer(await self.query(timelines.read, remembered, root_id, now_s))
