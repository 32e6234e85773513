"""The search of a list: from the address to the query, with older parameters as qualifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct

from celery_trace.model import Page
from celery_trace.queries import BadSearch, searches
from celery_trace.queries.language import joined, written
from flower_plugin.auth.roles import UserRole
from flower_plugin.pages.page import Visit

#: Parameters of addresses that links and bookmarks have, and the qualifiers that they are.
_PARAMETERS = {
    "name": "task",
    "outcome": "outcome",
    "worker": "worker",
    "kind": "kind",
    "state": "is",
    "fingerprint": "group",
    "task_id": "id",
    "root_id": "root",
}
_RANGES = {"hour": "1h", "day": "1d", "week": "7d"}

Row = TypeVar("Row")


class Asked(Struct, frozen=True, kw_only=True):
    """
    What a list was asked for.

    Attributes:
        noun: The list, see :data:`celery_trace.queries.searches.LISTS`.
        query: The search.
        problem: Why it can't be answered; empty if it can.
        reads_values: Whether it looks for text in users' values, of the newest failures only.
    """

    noun: str
    query: str
    problem: str = ""
    reads_values: bool = False

    def page(self, read: Callable[[str], Page[Row]]) -> Page[Row]:
        """The page of the list; empty if the search can't be answered."""
        return Page(self.noun, [], None) if self.problem else read(self.query)


def asked(visit: Visit, noun: str, *, values: bool = False) -> Asked:
    """
    The search of an address.

    Args:
        noun: The list.
        values: Whether its text is looked for in users' values, which needs the role ``locals``.
    """
    qualifiers = searches.LISTS[noun]
    words = [visit.word("q"), joined([visit.word("search")])]
    for parameter, name in _PARAMETERS.items():
        value = visit.word(parameter)
        allowed = qualifiers[name].words if name in qualifiers else ()
        if value and name in qualifiers and (not allowed or value in allowed):
            words.append(written(name, value))
    if visit.word("live") == "1":
        words.append("is:live")
    if visit.word("range") in _RANGES:
        words.append(f"since:{_RANGES[visit.word('range')]}")
    query = " ".join(filter(None, words))
    try:
        search = searches.understood(noun, query, visit.now_s)
    except BadSearch as error:
        return Asked(noun=noun, query=query, problem=str(error))
    if values and search.reads_values and not visit.may(UserRole.LOCALS):
        why = f"Searching for text needs the role locals; your role is {visit.user.role.word}. Use qualifiers."
        return Asked(noun=noun, query=query, problem=why)
    return Asked(noun=noun, query=query, reads_values=values and bool(search.texts))
