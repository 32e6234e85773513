"""What a page is, and what its context function is told of the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.model import AlertView
from celery_trace.settings import Settings
from flower_plugin.auth.roles import Role, User
from flower_plugin.auth.values import without_words
from flower_plugin.context import MonitorStatus
from flower_plugin.rendering.wording import Paths

Context = dict[str, Any]

#: What ``range=`` in an address may say, and how it is called; seconds, None for all there is.
RANGES: Mapping[str, tuple[str, float | None]] = {
    "hour": ("last hour", 3600.0),
    "day": ("last 24 hours", 86_400.0),
    "week": ("last 7 days", 604_800.0),
    "all": ("all time", None),
}


class Visit(Struct, frozen=True, kw_only=True):
    """
    Who asks for what, when.

    Attributes:
        arguments: The address' query, the last value of each name.
        now_s: The reader's clock, seconds since the epoch.
        monitor: What pages show of the monitor itself.
    """

    arguments: Mapping[str, str]
    now_s: float
    user: User
    paths: Paths
    settings: Settings
    read_only: bool = False
    monitor: MonitorStatus

    def word(self, name: str, allowed: Sequence[str] = (), default: str = "") -> str:
        """An argument, or the default where it is missing or not allowed. Cut at 500 characters."""
        value = self.arguments.get(name, "").strip()[:500]
        if not value or (allowed and value not in allowed):
            return default
        return value

    def since_s(self, default: str = "all") -> float | None:
        """The beginning of the chosen range, seconds since the epoch, or None."""
        _, length_s = RANGES[self.word("range", tuple(RANGES), default)]
        return None if length_s is None else self.now_s - length_s

    def may(self, role: Role) -> bool:
        """Whether the visitor may, and read-only does not forbid."""
        return self.user.may(role)

    def alert(self, alert: AlertView) -> AlertView:
        """An alert as the visitor may see it, with files as pages show them."""
        seen = alert if self.may(Role.LOCALS) else without_words(alert)
        return replace(seen, text=self.paths.in_text(seen.text), subject=self.paths.in_text(seen.subject))


class NavPlace(StrEnum):
    """Where the navigation has a page's entry."""

    NOWHERE = ""
    BAR = "bar"
    MORE = "more"  # in the menu "More"


class MonitorPage(Struct, frozen=True, kw_only=True):
    """
    A page's registration.

    Attributes:
        path: Its address below the prefix; groups become arguments of ``context``.
        name: For ``reverse_url``.
        tab: Which navigation entry is lit.
        context: ``(queries, visit, *groups)`` to what the template shows. Blocks; runs in a thread.
        framing: Whether the page holds a frame of ours.
        place: Where the navigation has its entry.
        entry: What the entry says, where it is not the title.
    """

    path: str
    name: str
    title: str
    template: str
    tab: str
    context: Callable[..., Context]
    role: Role = Role.LOOK
    framing: bool = False
    place: NavPlace = NavPlace.NOWHERE
    entry: str = ""

    @property
    def label(self) -> str:
        """What its entry in the navigation says."""
        return self.entry or self.title

    @property
    def address(self) -> str:
        """Its address below the prefix, where that has no groups."""
        return self.path.removesuffix("/?")
