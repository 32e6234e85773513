"""Lists of the JSON API as JSON Lines, for the export commands of Celery and of Django."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from celery_trace.queries import Queries

#: Lists that can't be limited in time.
_WITHOUT_SINCE = frozenset({"alerts", "shells"})
#: Rows per read.
_PAGE = 500


def every(queries: Queries, noun: str, since_s: float | None) -> Iterator[Struct]:
    """
    All rows of a list, page by page.

    Args:
        queries: The store.
        noun: The list's query, such as ``failures``.
        since_s: Only rows since this time, seconds since the epoch; ignored for alerts and shell sessions.
    """
    filters = {} if noun in _WITHOUT_SINCE else {"since_s": since_s}
    cursor: str | None = None
    while True:
        page = getattr(queries, noun)(**filters, limit=_PAGE, cursor=cursor)
        yield from page.rows
        cursor = page.next
        if cursor is None:
            return


def json_lines(queries: Queries, noun: str, since_s: float | None, *, details: bool) -> Iterator[str]:
    """Each row of a list as ``{"record": "failure", ...}``; ``details`` adds captures and transcripts."""
    whole_of = {"failures": queries.failure, "shells": queries.shell}.get(noun) if details else None
    for row in every(queries, noun, since_s):
        fields = msgspec.to_builtins(row)
        whole = whole_of(fields["id"]) if whole_of is not None else None
        if whole is not None:
            fields = msgspec.to_builtins(whole)
        yield msgspec.json.encode({"record": noun.removesuffix("s"), **fields}).decode()
