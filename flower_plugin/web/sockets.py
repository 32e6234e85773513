"""WebSockets behind the gate."""

from __future__ import annotations

import msgspec
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from flower_plugin.auth.roles import User
from flower_plugin.web.handlers import TraceHandler


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

    def tell(self, message: object) -> None:
        """Send JSON; a socket that has just closed is no error."""
        try:
            self.write_message(msgspec.json.encode(message).decode())
        except WebSocketClosedError:
            return
