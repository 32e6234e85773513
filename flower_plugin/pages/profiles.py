"""Profiles: what memray recorded of single runs on this host, and one flamegraph."""

from __future__ import annotations

from celery_trace.heap.flamegraph import MOST_KEPT, VIEWS, Profiles, available
from celery_trace.queries import Queries
from flower_plugin.auth.roles import Role
from flower_plugin.pages.page import Context, MonitorPage, NavPlace, Visit
from flower_plugin.trouble import NotFound


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
    One profile. Its flamegraph is fetched by the frame on the page, as making it may take some seconds.

    Raises:
        NotFound: There is none with this id.
    """
    found = Profiles(visit.settings.folder).find(identifier)
    if found is None:
        raise NotFound(
            "There is no profile with this id.",
            f"It lies on another host, or it was one of more than {MOST_KEPT} and gave way.",
            ("trace_profiles", "All profiles"),
        )
    return {
        "title": f"{found.name} · profile",
        "profile": found,
        "view": visit.word("view", VIEWS, "peak"),
    }


# A flamegraph names the process's command line, where secrets may stand: not for everybody who may look.
LIST = MonitorPage(
    path=r"/trace/profiles",
    name="trace_profiles",
    title="Profiles",
    template="trace/profiles.html",
    tab="profiles",
    context=profiles,
    place=NavPlace.MORE,
    role=Role.LOCALS,
)
ONE = MonitorPage(
    path=r"/trace/profiles/([^/]+)",
    name="trace_profile",
    title="Profile",
    template="trace/profile.html",
    tab="profiles",
    context=profile,
    role=Role.LOCALS,
    framing=True,
)
