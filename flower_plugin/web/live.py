"""``WS /trace/live``: tells open pages that something changed, and how the broker is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from flower_plugin.auth.roles import Role, User
from flower_plugin.web.handlers import TraceHandler

if TYPE_CHECKING:
    from flower_plugin.app import MonitorApplication

logger = logging.getLogger("celery_trace.monitor")

MOST_SOCKETS = 500


class SocketHandler(TraceHandler, WebSocketHandler):  # type: ignore[misc]
    """
    A WebSocket behind the gate.

    Tornado checks no XSRF token on a handshake, so who comes by cookie or by a browser's
    remembered password must show an Origin, and it must be ours.
    """

    def admit(self) -> None:
        """The gate, then the Origin."""
        super().admit()
        user = self.current_user
        origin = self.request.headers.get("Origin")
        if isinstance(user, User) and not self.is_a_script(user) and (origin is None or not self.own_origin(origin)):
            self._refuse_origin(str(origin))

    def still_logged_in(self) -> bool:
        """Whether the login that opened this socket stands and still gives the role, however long ago that was."""
        try:
            user = self.gatekeeper.identify(self)
        except HTTPError:
            return True  # somebody else guesses from this address; this one's password was right
        return isinstance(user, User) and user.may(self.role)

    def check_origin(self, origin: str) -> bool:
        """Tornado's hook; the same rule."""
        return self.own_origin(origin)

    def tell(self, message: Any) -> None:
        """Send JSON; a socket that has just closed is no error."""
        try:
            self.write_message(msgspec.json.encode(message).decode())
        except WebSocketClosedError:
            return


class LiveSocket(SocketHandler):
    """One open page."""

    role = Role.LOOK

    def open(self, *_: str, **__: str) -> None:
        """Greet, with the current state, so that a page that was cut off knows what it missed."""
        if not self.application.live.join(self):
            self.close(1013, "too many open pages")
            return
        self.tell(self.application.live.message())

    def on_message(self, message: str | bytes) -> None:
        """Pages only listen; a ``ping`` is answered so that a page can tell a dead line from a quiet one."""
        if message == "ping":
            self.tell({"type": "pong"})

    def on_close(self) -> None:
        """Gone."""
        self.application.live.leave(self)


class LiveFeed:
    """All open pages, and the cheap question whether anything was written since."""

    def __init__(self, app: MonitorApplication) -> None:
        self._app = app
        self._sockets: set[LiveSocket] = set()
        self._token = ""
        self._told: tuple[Any, ...] = ()
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

    def message(self) -> dict[str, Any]:
        """The current state, as sockets get it."""
        broker = self._app.link.state
        return {
            "type": "state",
            "token": self._token,
            "at": self._app.clock.now_s(),
            "broker": {"up": broker.up, "why": broker.why},
            "store": {"up": not self._store_why, "why": self._store_why},
        }

    def look(self) -> None:
        """Blocking, in a thread: ask the store whether anything changed, and tell the pages on the loop."""
        if not self._sockets:
            return
        try:
            self._token = str(self._app.facts.queries.change_token())
            self._store_why = ""
        except Exception as error:
            self._store_why = str(error)[:500]
        state = (self._token, self._app.link.state.up, self._store_why)
        if state != self._told:
            self._told = state
            self._app.io_loop.add_callback(self._tell_all)

    def _tell_all(self) -> None:
        message = self.message()
        for socket in tuple(self._sockets):
            if socket.still_logged_in():
                socket.tell(message)
            else:
                socket.close(4001, "the login has ended")

    def close(self) -> None:
        """Say goodbye, so that pages show at once that the monitor stopped."""
        for socket in tuple(self._sockets):
            socket.close(1001, "the monitor stops")
