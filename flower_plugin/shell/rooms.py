"""All rooms of a monitor."""

from __future__ import annotations

from flower_plugin.context import MonitorContext
from flower_plugin.shell.opener import Opener
from flower_plugin.shell.room import ShellRoom
from flower_plugin.shell.threads import ShellThreads

MOST_ROOMS = 100
#: Rooms that one person may have opened and not left: each may be a sandbox with memory of its own.
MOST_ROOMS_OF_ONE = 12


class ShellRooms:
    """The rooms by failure and mode."""

    def __init__(self, context: MonitorContext, opener: Opener) -> None:
        self._context = context
        self._opener = opener
        # A command in every room leaves as many for interrupts and completion.
        self.threads = ShellThreads(2 * MOST_ROOMS)
        self._rooms: dict[tuple[str, bool], ShellRoom] = {}

    def room(self, failure: str, live: bool, user: str) -> ShellRoom | None:
        """
        The room of a failure, new where there is none; None when there are too many.

        A room that everybody has left waits for them only as long as nobody needs its place.
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
