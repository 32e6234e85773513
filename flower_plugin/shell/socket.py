"""``WS /trace/shell/ID``: one person's line to the shell of a failure."""

from __future__ import annotations

from flower_plugin.auth.roles import Role
from flower_plugin.shell.messages import NotUnderstood, Ping, ShellRefusal, read
from flower_plugin.shell.room import LOGIN_ENDED, ShellRoom
from flower_plugin.shell.rooms import ShellRooms
from flower_plugin.web.sockets import SocketHandler

#: Greatest message, bytes: the greatest code, with room for its escapes. Tornado ends what is several times as long.
MOST_MESSAGE_BYTES = 400 * 1024
#: Messages of one person that may wait for their answer; a person's hands never have so many.
MOST_PENDING = 50


class ShellSocket(SocketHandler):
    """One person at one failure."""

    role = Role.RECREATED
    room: ShellRoom | None = None
    refused = False
    pending = 0

    def initialize(self, rooms: ShellRooms) -> None:
        """Tornado hands in what the route says."""
        self.rooms = rooms

    async def open(self, *arguments: str, **_: str) -> None:
        """Join the failure's room."""
        mode = self.context.settings.shell
        if mode == "off":
            self.refuse("The shell is off (trace_shell is 'off').")
            return
        live = mode == "live" and self.user.may(Role.LIVE) and not self.gatekeeper.read_only
        room = self.rooms.room(arguments[0], live, self.user.name)
        if room is None:
            self.refuse("Too many shells are open. Close one, or wait until one ends.")
            return
        self.room = room
        await room.join(self)

    def _refuse_message(self, why: str) -> None:
        self.gatekeeper.audit.refused(who=self.user.name, what=f"shell {self.request.path}", why=why)
        self.tell(ShellRefusal(why))

    def refuse(self, why: str) -> None:
        """Say why not, and close."""
        self.refused = True
        self._refuse_message(why)
        self.close(4000, "refused")

    def on_message(self, message: str | bytes) -> None:
        """What this person asks for."""
        if self.room is None or self.refused:  # who was refused may go on sending until the line is closed
            return
        if not self.still_logged_in():
            self.refuse(LOGIN_ENDED)
            return
        if len(message) > MOST_MESSAGE_BYTES:
            self.refuse(f"A message of {len(message):,} characters; at most {MOST_MESSAGE_BYTES:,} are read.")
            return
        try:
            asked = read(message)
        except NotUnderstood as error:
            self._refuse_message(f"That message is none of the shell's: {error}")
            return
        if self.pending >= MOST_PENDING and not isinstance(asked, Ping):
            self.refuse(f"{MOST_PENDING} messages of yours wait for their answer; no more are taken. Reload the page.")
            return
        self.room.hear(self, asked)

    def on_close(self) -> None:
        """Gone, perhaps only for a moment."""
        if self.room is not None:
            self.room.leave(self)
