"""Saved views: ``/api/trace/views``."""

from __future__ import annotations

import msgspec

from celery_trace.model import plain_text, stable_id
from celery_trace.model.searches import SavedView
from celery_trace.queries import BadSearch, Queries, searches
from celery_trace.queries.language import LONGEST
from celery_trace.queries.searches import MOST_VIEWS
from celery_trace.stores import triage
from flower_plugin.api.changes import ChangeHandler
from flower_plugin.auth.roles import UserRole
from flower_plugin.problems import Problem

MOST_TITLE = 80


class ViewsHandler(ChangeHandler):
    """``GET``: the user's own views. ``POST``: saves ``{"list", "title", "query"}``; the same title replaces it."""

    role = UserRole.LOOK

    async def get(self) -> None:
        """``{"views": [...]}``."""
        self.answer({"views": await self.query(Queries.saved_views, self.user.name)})

    async def change(self, *_: str) -> dict[str, object]:
        """Save it."""
        body, user = self.body(), self.user.name
        noun, title, query = (body.get(name) for name in ("list", "title", "query"))
        if not isinstance(noun, str) or noun not in searches.LISTS:
            raise Problem(400, "Invalid list.", f"It must be one of {', '.join(searches.LISTS)}.")
        if not isinstance(title, str) or not title.strip() or len(title) > MOST_TITLE:
            raise Problem(400, "Invalid title.", f"It must be a text of at most {MOST_TITLE} characters.")
        if not isinstance(query, str) or len(query) > LONGEST:
            raise Problem(400, "Invalid query.", f"It must be a search of at most {LONGEST} characters.")
        now_s, title = self.context.clock.now_s(), plain_text(title.strip())
        try:
            searches.understood(noun, query, now_s)
        except BadSearch as error:
            raise Problem(400, "Invalid query.", str(error)) from error
        view = SavedView(
            id=stable_id("view", user, noun, title),
            user=user,
            noun=noun,
            title=title,
            query=plain_text(query),
            at=now_s,
        )
        known = await self.query(Queries.saved_views, user)
        if len(known) >= MOST_VIEWS and view.id not in {one.id for one in known}:
            raise Problem(409, "You have too many views.", f"At most {MOST_VIEWS} are kept.", "Remove one first.")
        store = self.context.store
        await self.off_loop(store.in_transaction, lambda connection: triage.save_view(connection, view))
        return {"view": msgspec.to_builtins(view)}


class ViewRemovalHandler(ChangeHandler):
    """``POST views/ID/remove``: removes one of the user's own views."""

    async def change(self, *groups: str) -> dict[str, object]:
        """Remove it."""
        known = await self.query(Queries.saved_views, self.user.name)
        if groups[0] not in {view.id for view in known}:
            raise Problem(404, "View not found.", "It may have been removed.")
        store = self.context.store
        await self.off_loop(store.in_transaction, lambda connection: triage.remove_view(connection, groups[0]))
        return {"removed": groups[0]}
