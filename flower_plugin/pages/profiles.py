"""Profiles: runs of this host under memray, and one flamegraph."""

from __future__ import annotations

from celery_trace.heap.flamegraph import MOST_KEPT, VIEWS, Profiles, available
from celery_trace.queries import Queries
from flower_plugin.auth.roles import UserRole
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit
from flower_plugin.problems import NotFound


def profiles(_queries: Queries, visit: Visit) -> Context:
    """All profiles, newest first."""
    found = Profiles(visit.settings.folder)
    return {
        "rows": found.all(),
        "folder": visit.paths.short(str(found.folder)),
        "most": MOST_KEPT,
        "memray": available(),
    }


def profile(_queries: Queries, visit: Visit, identifier: str) -> Context:
    """
    One profile. An iframe loads its flamegraph, as rendering may take seconds.

    Raises:
        NotFound: No profile has this id.
    """
    found = Profiles(visit.settings.folder).find(identifier)
    if found is None:
        raise NotFound(
            "Profile not found.",
            f"It may be on another host, or it was deleted: only the newest {MOST_KEPT} are kept.",
            ("trace_profiles", "All profiles"),
        )
    return {
        "title": f"{found.name} · profile",
        "profile": found,
        "view": visit.word("view", VIEWS, "peak"),
    }


# A flamegraph shows the command line, which may contain secrets, so the role look is not enough.
LIST = MonitorPage(
    path=r"/trace/profiles",
    name="trace_profiles",
    title="Profiles",
    template="trace/profiles.html",
    tab="profiles",
    context=profiles,
    place=NavPlace.MORE,
    role=UserRole.LOCALS,
)
ONE = MonitorPage(
    path=r"/trace/profiles/([^/]+)",
    name="trace_profile",
    title="Profile",
    template="trace/profile.html",
    tab="profiles",
    context=profile,
    role=UserRole.LOCALS,
    framing=True,
)
