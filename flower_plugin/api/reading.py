"""``GET`` handlers under ``/api/trace/``: lists, objects, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery_trace.model import AlertView, FailureDetail, Leak, ShellView
from celery_trace.model.triage import GroupDetail
from celery_trace.queries import Queries, searches
from flower_plugin.api.listings import LISTS, list_arguments
from flower_plugin.auth.roles import UserRole
from flower_plugin.auth.values import (
    may_read,
    without_comments,
    without_data,
    without_message,
    without_text,
    without_values,
)
from flower_plugin.problems import Problem
from flower_plugin.web.handlers import JsonHandler

#: By list: removes values from a row, for users without the role ``locals``.
HIDES: Mapping[str, Callable[[Any], Any]] = {
    "failures": without_message,
    "groups": without_message,
    "alerts": without_text,
    "leaks": without_data,
}


#: The queries for single objects.
ONE: Mapping[str, Callable[[Queries, str], object]] = {
    "leaks": Queries.leak,
    "failures": Queries.failure,
    "groups": Queries.group,
    "alerts": Queries.alert,
    "shells": Queries.shell,
}


class ListHandler(JsonHandler):
    """``GET /api/trace/<noun>``."""

    role = UserRole.LOOK

    async def get(self, noun: str) -> None:
        """``{"<noun>": [...], "next": cursor|null}``."""
        user = self.user
        arguments = list_arguments(noun, {name: self.get_query_argument(name) for name in self.request.query_arguments})
        if noun == "shells" and not user.may(UserRole.LOCALS):
            raise Problem(403, "Transcripts need the role locals.", f"{user.name} has the role {user.role.word}.")
        try:
            if noun in {"failures", "groups"} and not user.may(UserRole.LOCALS):
                self._check_search(noun, arguments)
            page = await self.query(LISTS[noun].query, **arguments)
        except ValueError as error:
            raise Problem(400, "Invalid parameters.", str(error)) from error
        answer = page.as_json()
        if noun in HIDES and not user.may(UserRole.LOCALS):
            answer[noun] = [HIDES[noun](row) for row in page.rows]
        self.answer(answer)

    def _check_search(self, noun: str, arguments: Mapping[str, str | float | bool]) -> None:
        """
        Refuse a search that reads values.

        Raises:
            Problem: 403.
            BadSearch: It can't be understood.
        """
        search = searches.understood(noun, str(arguments.get("query", "")), self.context.clock.now_s())
        if arguments.get("search") or search.reads_values:
            raise Problem(
                403,
                "Searching for text needs the role locals.",
                f"{self.user.name} has the role {self.user.role.word}.",
            )


class SuggestionsHandler(JsonHandler):
    """``GET /api/trace/suggestions?list=<noun>&q=<search up to the cursor>``."""

    role = UserRole.LOOK

    async def get(self) -> None:
        """``{"suggestions": [{start, text, meaning}]}``: completions of the last word."""
        noun = self.get_query_argument("list", "failures")
        if noun not in searches.LISTS:
            raise Problem(400, f"Unknown list {noun[:50]!r}.", f"Lists with searches: {', '.join(searches.LISTS)}.")
        found = await self.query(Queries.suggestions, noun, self.get_query_argument("q", "", strip=False)[:500])
        self.answer({"suggestions": found})


class OneHandler(JsonHandler):
    """``GET /api/trace/<noun>/ID``."""

    role = UserRole.LOOK

    async def get(self, noun: str, identifier: str) -> None:
        """The object, or 404."""
        if noun == "shells" and not self.user.may(UserRole.LOCALS):
            raise Problem(
                403, "Transcripts need the role locals.", f"{self.user.name} has the role {self.user.role.word}."
            )
        found = await self.query(ONE[noun], identifier)
        if found is None:
            raise Problem(404, f"{noun[:-1].capitalize()} {identifier[:50]!r} not found.", "It may have been pruned.")
        if isinstance(found, ShellView) and not may_read(self.user, found):
            raise Problem(
                403,
                "Transcripts of live shells are not redacted and need the role live.",
                f"{self.user.name} has the role {self.user.role.word}.",
            )
        if isinstance(found, FailureDetail) and not self.user.may(UserRole.LOCALS):
            found = without_values(found)
        elif isinstance(found, GroupDetail) and not self.user.may(UserRole.LOCALS):
            found = without_comments(found)
        elif isinstance(found, AlertView) and not self.user.may(UserRole.LOCALS):
            found = without_text(found)
        elif isinstance(found, Leak) and not self.user.may(UserRole.LOCALS):
            found = without_data(found)
        self.answer(found)


class StatsHandler(JsonHandler):
    """``GET /api/trace/stats``."""

    role = UserRole.LOOK

    async def get(self) -> None:
        """Records stored, dropped and cut; overhead."""
        self.answer(await self.query(Queries.stats))


class ForecastsHandler(JsonHandler):
    """``GET /api/trace/forecasts``."""

    role = UserRole.LOOK

    async def get(self) -> None:
        """Processes that will reach their limit, the soonest first."""
        self.answer({"forecasts": await self.query(Queries.forecasts)})
