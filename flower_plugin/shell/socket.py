"""``WS /trace/shell/ID``: a user's connection to the shell of a failure."""

from __future__ import annotations

from flower_plugin.auth.roles import UserRole
from flower_plugin.shell.messages import InvalidMessage, Ping, ShellRefusal, read
from flower_plugin.shell.room import LOGIN_ENDED, ShellRoom
from flower_plugin.shell.rooms import ShellRooms
from flower_plugin.web.sockets import SocketHandler

#: Maximum message, bytes: the longest code with escapes. Tornado closes connections with much longer ones.
MOST_MESSAGE_BYTES = 400 * 1024
#: Maximum number of messages of one user without a reply yet; manual input never reaches it.
MOST_PENDING = 50


class ShellSocket(SocketHandler):
    """One user at one failure."""

    role = UserRole.RECREATED
    room: ShellRoom | None = None
    refused = False
    pending = 0

    def initialize(self, rooms: ShellRooms) -> None:
        """Called by Tornado with the arguments of the route."""
        self.rooms = rooms

    async def open(self, *arguments: str, **_: str) -> None:
        """Join the failure's room."""
        mode = self.context.settings.shell
        if mode == "off":
            self.refuse("The shell is disabled (trace_shell is 'off').")
            return
        live = mode == "live" and self.user.may(UserRole.LIVE) and not self.gatekeeper.read_only
        room = self.rooms.room(arguments[0], live, self.user.name)
        if room is None:
            self.refuse("Too many shells are open. Close one and try again.")
            return
        self.room = room
        await room.join(self)

    def _refuse_message(self, why: str) -> None:
        self.gatekeeper.audit.refused(who=self.user.name, what=f"shell {self.request.path}", why=why)
        self.send(ShellRefusal(why))

    def refuse(self, why: str) -> None:
        """Send the reason and close."""
        self.refused = True
        self._refuse_message(why)
        self.close(4000, "refused")

    def on_message(self, message: str | bytes) -> None:
        """Handle a message of the user."""
        if self.room is None or self.refused:  # a refused client may send more before the connection is closed
            return
        if not self.still_logged_in():
            self.refuse(LOGIN_ENDED)
            return
        if len(message) > MOST_MESSAGE_BYTES:
            self.refuse(f"The message has {len(message):,} characters; the limit is {MOST_MESSAGE_BYTES:,}.")
            return
        try:
            asked = read(message)
        except InvalidMessage as error:
            self._refuse_message(f"Invalid message: {error}")
            return
        if self.pending >= MOST_PENDING and not isinstance(asked, Ping):
            self.refuse(f"Too many pending messages (the limit is {MOST_PENDING}). Reload the page.")
            return
        self.room.receive(self, asked)

    def on_close(self) -> None:
        """Leave the room, perhaps only for a moment."""
        if self.room is not None:
            self.room.leave(self)
