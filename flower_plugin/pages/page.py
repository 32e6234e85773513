"""What a page is, and the request that its context function gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.model import AlertView
from celery_trace.settings import Settings
from flower_plugin.auth.roles import User, UserRole
from flower_plugin.auth.values import without_text
from flower_plugin.context import MonitorStatus
from flower_plugin.rendering.markup import Paths
from flower_plugin.rendering.source import source_link

Context = dict[str, object]

#: Values of ``range=`` with label and length in seconds, None for all time.
RANGES: Mapping[str, tuple[str, float | None]] = {
    "hour": ("last hour", 3600.0),
    "day": ("last 24 hours", 86_400.0),
    "week": ("last 7 days", 604_800.0),
    "all": ("all time", None),
}


class Visit(Struct, frozen=True, kw_only=True):
    """
    A request for a page.

    Attributes:
        arguments: The query string, the last value of each name.
        now_s: The monitor's clock, seconds since the epoch.
        monitor: The monitor's own state.
        refreshes: Whether an open page fetches itself again.
    """

    arguments: Mapping[str, str]
    now_s: float
    user: User
    paths: Paths
    settings: Settings
    read_only: bool = False
    monitor: MonitorStatus
    refreshes: bool = False

    def word(self, name: str, allowed: Sequence[str] = (), default: str = "") -> str:
        """An argument, or the default if it is missing or not allowed. Cut at 500 characters."""
        value = self.arguments.get(name, "").strip()[:500]
        if not value or (allowed and value not in allowed):
            return default
        return value

    def since_s(self, default: str = "all") -> float | None:
        """Start of the chosen time range, seconds since the epoch, or None."""
        _, length_s = RANGES[self.word("range", tuple(RANGES), default)]
        return None if length_s is None else self.now_s - length_s

    def source_link(self, file: str, line: int, *, module: str = "", release: str = "") -> str:
        """
        The address of a line by the setting ``trace_source_url``; empty if there is none.

        Args:
            module: Of the code, to find the file below the project of another host.
            release: That the process ran.
        """
        template = self.settings.source_url
        if not template:
            return ""
        path = self.paths.short(file) if self.paths.is_users(file, module) else ""
        if path.startswith("/"):
            below = module.replace(".", "/")
            path = next((end for end in (f"{below}.py", f"{below}/__init__.py") if file.endswith(f"/{end}")), "")
        return source_link(template, file, path, line, release)

    def may(self, role: UserRole) -> bool:
        """Whether the user has the role."""
        return self.user.may(role)

    def alert(self, alert: AlertView) -> AlertView:
        """An alert as the user may see it, with short file names."""
        seen = alert if self.may(UserRole.LOCALS) else without_text(alert)
        return replace(seen, text=self.paths.in_text(seen.text), subject=self.paths.in_text(seen.subject))


class NavPlace(StrEnum):
    """The part of the navigation that has the page's entry."""

    NOWHERE = ""
    BAR = "bar"
    MORE = "more"  # the menu "More"


class MonitorPage(Struct, frozen=True, kw_only=True):
    """
    A page's registration.

    Attributes:
        path: URL pattern below the prefix; groups become arguments of ``context``.
        name: For ``reverse_url``.
        tab: The active navigation entry.
        context: ``(queries, visit, *groups)`` to the template's context. Blocks; runs in a thread.
        framing: Whether the page contains an iframe.
        place: The part of the navigation that has its entry.
    """

    path: str
    name: str
    title: str
    template: str
    tab: str
    context: Callable[..., Context]
    role: UserRole = UserRole.LOOK
    framing: bool = False
    place: NavPlace = NavPlace.NOWHERE

    @property
    def address(self) -> str:
        """Its path below the prefix, for pages without groups."""
        return self.path.removesuffix("/?")
