"""All shell rooms of a monitor."""

from __future__ import annotations

from flower_plugin.context import MonitorContext
from flower_plugin.shell.opener import Opener
from flower_plugin.shell.room import ShellRoom
from flower_plugin.shell.threads import ShellThreads

MOST_ROOMS = 100
#: Maximum number of open rooms per user: each may have a sandbox with its own memory.
MOST_ROOMS_OF_ONE = 12


class ShellRooms:
    """Shell rooms by failure and mode."""

    def __init__(self, context: MonitorContext, opener: Opener) -> None:
        self._context = context
        self._opener = opener
        # One thread per room for commands, and as many for interrupts and completions.
        self.threads = ShellThreads(2 * MOST_ROOMS)
        self._rooms: dict[tuple[str, bool], ShellRoom] = {}

    def room(self, failure: str, live: bool, user: str) -> ShellRoom | None:
        """
        The room of a failure, created if needed; None if there are too many.

        An empty room is closed if its place is needed.
        """
        key = (failure, live)
        room = self._rooms.get(key)
        if room is not None:
            return room
        own = [one for one in self._rooms.values() if one.opened_by == user]
        for several, most in ((own, MOST_ROOMS_OF_ONE), (list(self._rooms.values()), MOST_ROOMS)):
            if len(several) < most:
                continue
            left = next((one for one in several if one.empty), None)
            if left is None:
                return None
            left.end()
        room = self._rooms[key] = ShellRoom(
            self._context, self._opener, self.threads, failure, live, user, lambda: self._rooms.pop(key, None)
        )
        return room

    def close(self) -> None:
        """End every session."""
        for room in tuple(self._rooms.values()):
            room.end()
        self.threads.close()
