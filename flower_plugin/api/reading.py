"""What ``GET`` answers under ``/api/trace/``: lists, objects, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery_trace.model import AlertView, FailureDetail, Leak, ShellView
from celery_trace.queries import Queries
from flower_plugin.api.listings import LISTS, list_arguments
from flower_plugin.auth.roles import Role
from flower_plugin.auth.values import may_read, without_data, without_message, without_values, without_words
from flower_plugin.trouble import Trouble
from flower_plugin.web.handlers import JsonHandler

#: What a row of a list loses for who may not see values.
HIDES: Mapping[str, Callable[[Any], Any]] = {
    "failures": without_message,
    "groups": without_message,
    "alerts": without_words,
    "leaks": without_data,
}


#: What answers for one object.
ONE: Mapping[str, Callable[[Queries, str], object]] = {
    "leaks": Queries.leak,
    "failures": Queries.failure,
    "alerts": Queries.alert,
    "shells": Queries.shell,
}


class ListHandler(JsonHandler):
    """``GET /api/trace/<noun>``."""

    role = Role.LOOK

    async def get(self, noun: str) -> None:
        """``{"<noun>": [...], "next": cursor|null}``."""
        user = self.user
        arguments = list_arguments(noun, {name: self.get_query_argument(name) for name in self.request.query_arguments})
        if noun == "shells" and not user.may(Role.LOCALS):
            raise Trouble(403, "Transcripts show values.", f"{user.name} has the role {user.role.word}.")
        if arguments.get("search") and noun in {"failures", "groups"} and not user.may(Role.LOCALS):
            raise Trouble(403, "A search reads local values.", f"{user.name} has the role {user.role.word}.")
        try:
            page = await self.off_loop(lambda: LISTS[noun].query(self.context.queries, **arguments))
        except ValueError as error:
            raise Trouble(400, "The store does not take these parameters.", str(error)) from error
        answer = page.as_json()
        if noun in HIDES and not user.may(Role.LOCALS):
            answer[noun] = [HIDES[noun](row) for row in answer[noun]]
        self.answer(answer)


class OneHandler(JsonHandler):
    """``GET /api/trace/<noun>/ID``."""

    role = Role.LOOK

    async def get(self, noun: str, identifier: str) -> None:
        """The object, or 404."""
        if noun == "shells" and not self.user.may(Role.LOCALS):
            raise Trouble(403, "Transcripts show values.", f"{self.user.name} has the role {self.user.role.word}.")
        found = await self.off_loop(lambda: ONE[noun](self.context.queries, identifier))
        if found is None:
            raise Trouble(404, f"There is no {noun[:-1]} {identifier[:50]!r}.", "It may have been pruned.")
        if isinstance(found, ShellView) and not may_read(self.user, found):
            raise Trouble(
                403,
                "Transcripts of live shells are not redacted: they need the role live.",
                f"{self.user.name} has the role {self.user.role.word}.",
            )
        if isinstance(found, FailureDetail) and not self.user.may(Role.LOCALS):
            found = without_values(found)
        elif isinstance(found, AlertView) and not self.user.may(Role.LOCALS):
            found = without_words(found)
        elif isinstance(found, Leak) and not self.user.may(Role.LOCALS):
            found = without_data(found)
        self.answer(found)


class StatsHandler(JsonHandler):
    """``GET /api/trace/stats``."""

    role = Role.LOOK

    async def get(self) -> None:
        """Records kept, dropped, cut; own overhead."""
        context = self.context
        # The lambda also keeps the opening of the store off the loop.
        self.answer(await self.off_loop(lambda: context.queries.stats()))  # noqa: PLW0108


class ForecastsHandler(JsonHandler):
    """``GET /api/trace/forecasts``."""

    role = Role.LOOK

    async def get(self) -> None:
        """What grows and reaches its limit, the soonest first."""
        context = self.context
        # The lambda also keeps the opening of the store off the loop.
        self.answer({"forecasts": await self.off_loop(lambda: context.queries.forecasts())})  # noqa: PLW0108
