"""``WS /trace/live``: tells open pages that something changed, and how the broker is."""

from __future__ import annotations

from msgspec import Struct

from flower_plugin.auth.roles import Role
from flower_plugin.context import MonitorContext
from flower_plugin.web.sockets import SocketHandler

MOST_SOCKETS = 500


class Reachable(Struct, frozen=True):
    """Whether the broker or the store answers; ``up`` is None until the first try ended."""

    up: bool | None
    why: str


class LiveState(Struct, frozen=True, kw_only=True, tag="state"):
    """The current state, as sockets get it. ``token`` differs after anything was written."""

    token: str
    at: float
    broker: Reachable
    store: Reachable


class LiveSocket(SocketHandler):
    """One open page."""

    role = Role.LOOK

    def initialize(self, feed: LiveFeed) -> None:
        """Tornado hands in what the route says."""
        self.feed = feed

    def open(self, *_: str, **__: str) -> None:
        """Greet, with the current state, so that a page that was cut off knows what it missed."""
        if not self.feed.join(self):
            self.close(1013, "too many open pages")
            return
        self.tell(self.feed.state())

    def on_message(self, message: str | bytes) -> None:
        """Pages only listen; a ``ping`` is answered so that a page can tell a dead line from a quiet one."""
        if message == "ping":
            self.tell({"type": "pong"})

    def on_close(self) -> None:
        """Gone."""
        self.feed.leave(self)


class LiveFeed:
    """All open pages, and the cheap question whether anything was written since."""

    def __init__(self, context: MonitorContext) -> None:
        self._context = context
        self._sockets: set[LiveSocket] = set()
        self._token = ""
        self._told: tuple[str, bool | None, str] = ("", None, "")
        self._store_why = ""

    def join(self, socket: LiveSocket) -> bool:
        """Whether there was room."""
        if len(self._sockets) >= MOST_SOCKETS:
            return False
        self._sockets.add(socket)
        return True

    def leave(self, socket: LiveSocket) -> None:
        """A page was closed."""
        self._sockets.discard(socket)

    def state(self) -> LiveState:
        """The current state."""
        broker = self._context.link.state
        return LiveState(
            token=self._token,
            at=self._context.clock.now_s(),
            broker=Reachable(broker.up, broker.why),
            store=Reachable(not self._store_why, self._store_why),
        )

    def look(self) -> None:
        """Blocking, in a thread: ask the store whether anything changed, and tell the pages on the loop."""
        if not self._sockets:
            return
        try:
            self._token = self._context.queries.change_token()
            self._store_why = ""
        except Exception as error:
            self._store_why = str(error)[:500]
        state = (self._token, self._context.link.state.up, self._store_why)
        if state != self._told:
            self._told = state
            self._context.loop.add_callback(self._tell_all)

    def _tell_all(self) -> None:
        state = self.state()
        for socket in tuple(self._sockets):
            if socket.still_logged_in():
                socket.tell(state)
            else:
                socket.close(4001, "the login has ended")

    def close(self) -> None:
        """Say goodbye, so that pages show at once that the monitor stopped."""
        for socket in tuple(self._sockets):
            socket.close(1001, "the monitor stops")
