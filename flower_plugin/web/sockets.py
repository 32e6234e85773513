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

    Tornado does not check XSRF tokens on a handshake, so browsers (with a cookie or a stored
    password) must send our own Origin.
    """

    def admit(self) -> None:
        """Check access, then the Origin."""
        super().admit()
        user = self.current_user
        origin = self.request.headers.get("Origin")
        if isinstance(user, User) and not self.is_a_script(user) and (origin is None or not self.own_origin(origin)):
            self._refuse_origin(str(origin))

    def still_logged_in(self) -> bool:
        """Whether the login of this socket is still valid and has the role."""
        try:
            user = self.gatekeeper.identify(self)
        except HTTPError:
            return True  # logins from this address are throttled; the password of this socket was correct
        return isinstance(user, User) and user.may(self.role)

    def check_origin(self, origin: str) -> bool:
        """Called by Tornado; the same rule."""
        return self.own_origin(origin)

    def send(self, message: object) -> None:
        """Send JSON; ignored if the socket was just closed."""
        try:
            self.write_message(msgspec.json.encode(message).decode())
        except WebSocketClosedError:
            return
