"""Shells: transcripts of what people typed into failures."""

from __future__ import annotations

from msgspec.structs import replace

from celery_trace.queries import Queries
from flower_plugin.auth.roles import Role
from flower_plugin.auth.values import may_read
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit
from flower_plugin.trouble import NotFound


def shells(queries: Queries, visit: Visit) -> Context:
    """All sessions, newest first."""
    page = queries.shells(limit=100, cursor=visit.word("cursor") or None)
    return {"rows": page.rows, "next": page.next}


def shell(queries: Queries, visit: Visit, identifier: str) -> Context:
    """
    One session with its lines; those of a live one for who may type there.

    Raises:
        NotFound: There is none with this id.
    """
    found = queries.shell(identifier)
    if found is None:
        raise NotFound(
            "There is no shell session with this id.", "It may have been pruned.", ("trace_shells", "All shells")
        )
    shut = not may_read(visit.user, found)
    return {
        "title": "Transcript",
        "shell": replace(found, lines=[]) if shut else found,
        "shut": shut,
        "failure": queries.failure(found.failure),
    }


LIST = MonitorPage(
    path=r"/trace/shells",
    name="trace_shells",
    title="Shells",
    template="trace/shells.html",
    tab="shells",
    context=shells,
    place=NavPlace.MORE,
    role=Role.LOCALS,
)
ONE = MonitorPage(
    path=r"/trace/shells/([^/]+)",
    name="trace_transcript",
    title="Transcript",
    template="trace/transcript.html",
    tab="shells",
    context=shell,
    role=Role.LOCALS,
)
