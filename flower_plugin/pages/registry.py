"""All pages, in the order of the navigation."""

from __future__ import annotations

from flower_plugin.auth.roles import User
from flower_plugin.pages import (
    alerts,
    failures,
    flames,
    groups,
    leaks,
    overview,
    profiles,
    queues,
    running,
    runs,
    shells,
    statistics,
    timelines,
    workers,
)
from flower_plugin.pages.page import MonitorPage, NavPlace

#: To add a page, write its module and template and add one line here. Routes and navigation are made from it.
PAGES: tuple[MonitorPage, ...] = (
    overview.PAGE,
    running.LIST,
    running.ONE,
    leaks.LIST,
    leaks.ONE,
    failures.GROUPS,
    failures.LIST,
    groups.ONE,
    failures.ONE,
    workers.PAGE,
    queues.PAGE,
    alerts.PAGE,
    runs.NAMES,
    runs.ONE,
    timelines.PAGE,
    flames.PAGE,
    profiles.LIST,
    profiles.ONE,
    shells.LIST,
    shells.ONE,
    statistics.PAGE,
)


def navigation(place: NavPlace, user: User | None) -> list[MonitorPage]:
    """The pages with an entry in one place that the user may open; all of them without a user."""
    return [page for page in PAGES if page.place == place and (user is None or user.may(page.role))]
