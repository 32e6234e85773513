"""Shells: transcripts of what people typed into failures."""

from __future__ import annotations

from typing import Any

from flower_plugin.pages.page import Context, Missing, Page, Visit
from flower_plugin.roles import Role


def shells(queries: Any, visit: Visit) -> Context:
    """All sessions, newest first."""
    page = queries.shells(limit=100, cursor=visit.word("cursor") or None)
    return {"rows": page.rows, "next": page.next}


def shell(queries: Any, _visit: Visit, identifier: str) -> Context:
    """
    One session with its lines.

    Raises:
        Missing: There is none with this id.
    """
    found = queries.shell(identifier)
    if found is None:
        raise Missing(
            "There is no shell session with this id.", "It may have been pruned.", ("trace_shells", "All shells")
        )
    return {"title": "Transcript", "shell": found, "failure": queries.failure(found.failure)}


LIST: Page = Page(
    path=r"/trace/shells",
    name="trace_shells",
    title="Shells",
    template="trace/shells.html",
    tab="shells",
    context=shells,
    role=Role.LOCALS,
)
ONE: Page = Page(
    path=r"/trace/shells/([^/]+)",
    name="trace_transcript",
    title="Transcript",
    template="trace/transcript.html",
    tab="shells",
    context=shell,
    role=Role.LOCALS,
)
