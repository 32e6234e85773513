"""``WS /trace/live``: notifies open pages of changes and of the state of broker and store."""

from __future__ import annotations

from msgspec import Struct

from flower_plugin.auth.roles import UserRole
from flower_plugin.context import MonitorContext
from flower_plugin.web.sockets import SocketHandler

MOST_SOCKETS = 500


class Reachable(Struct, frozen=True):
    """Whether the broker or the store is reachable; ``up`` is None until the first attempt has ended."""

    up: bool | None
    why: str


class LiveState(Struct, frozen=True, kw_only=True, tag="state"):
    """The current state, as sent to pages. ``token`` changes with every write to the store."""

    token: str
    at: float
    broker: Reachable
    store: Reachable


class LiveSocket(SocketHandler):
    """One open page."""

    role = UserRole.LOOK

    def initialize(self, feed: LiveFeed) -> None:
        """Called by Tornado with the arguments of the route."""
        self.feed = feed

    def open(self, *_: str, **__: str) -> None:
        """Send the current state, so that a page can catch up after a lost connection."""
        if not self.feed.join(self):
            self.close(1013, "too many open pages")
            return
        self.send(self.feed.state())

    def on_message(self, message: str | bytes) -> None:
        """Answer a ``ping``, so that a page can detect a dead connection."""
        if message == "ping":
            self.send({"type": "pong"})

    def on_close(self) -> None:
        """Remove the page."""
        self.feed.leave(self)


class LiveFeed:
    """All open pages, and a cheap check for changes of the store."""

    def __init__(self, context: MonitorContext) -> None:
        self._context = context
        self._sockets: set[LiveSocket] = set()
        self._token = ""
        self._sent: tuple[str, bool | None, str] = ("", None, "")
        self._store_why = ""

    def join(self, socket: LiveSocket) -> bool:
        """Add a page; False if there are too many."""
        if len(self._sockets) >= MOST_SOCKETS:
            return False
        self._sockets.add(socket)
        return True

    def leave(self, socket: LiveSocket) -> None:
        """Remove a page."""
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

    def check(self) -> None:
        """Check the store for changes and notify the pages on the loop. Blocks; runs in a thread."""
        if not self._sockets:
            return
        try:
            self._token = self._context.queries.change_token()
            self._store_why = ""
        except Exception as error:
            self._store_why = str(error)[:500]
        state = (self._token, self._context.link.state.up, self._store_why)
        if state != self._sent:
            self._sent = state
            self._context.loop.add_callback(self._broadcast)

    def _broadcast(self) -> None:
        state = self.state()
        for socket in tuple(self._sockets):
            if socket.still_logged_in():
                socket.send(state)
            else:
                socket.close(4001, "login expired")

    def close(self) -> None:
        """Close all connections, so that pages show at once that the monitor stopped."""
        for socket in tuple(self._sockets):
            socket.close(1001, "monitor stopped")
