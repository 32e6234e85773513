"""The door: login page, one-time link, logout."""

from __future__ import annotations

from urllib.parse import urlsplit

from flower_plugin.auth.login import OWNER
from flower_plugin.auth.roles import Role
from flower_plugin.trouble import Trouble
from flower_plugin.web.handlers import HtmlHandler


def safe_target(target: str, base: str) -> str:
    """Where to go after the login: a path of this monitor, else its overview."""
    start = f"{base}/trace"
    if not target.startswith("/") or target.startswith(("//", "/\\")) or "\\" in target or not target.isprintable():
        return start
    try:
        parts = urlsplit(target)
    except ValueError:
        return start
    if parts.scheme or parts.netloc:
        return start
    if parts.path.rstrip("/") in {base, f"{base}/login", f"{base}/logout"}:
        return start
    return target


class LoginHandler(HtmlHandler):
    """``/login``: a form, and the place where a one-time link is exchanged for a session."""

    role = Role.PUBLIC
    reading_methods = HtmlHandler.reading_methods | {"POST"}

    def head(self) -> None:
        """A preview of a link must not use it up."""

    def get(self) -> None:
        """The form; with ``token`` the exchange."""
        token = self.get_query_argument("token", "")
        target = safe_target(self.get_query_argument("next", ""), self.context.base_url)
        if token:
            if self._redeem(token):
                self.redirect(target)
                return
            self.set_status(403)
            self._form(target, "This link has been used or is too old. Use the password that was printed beside it.")
            return
        self._form(target, "")

    def post(self) -> None:
        """Name and password."""
        target = safe_target(self.get_body_argument("next", ""), self.context.base_url)
        address = self.request.remote_ip or ""
        keeper = self.gatekeeper
        given = self.get_body_argument("name", "")
        accounts = keeper.credentials.tried(given)
        wait_s = keeper.guesses.wait_s(address, accounts)
        if wait_s > 0:
            keeper.audit.refused(who=given[:100], what="login", why="too many wrong passwords", address=address)
            self.set_status(429)
            self.set_header("Retry-After", str(int(wait_s) + 1))
            self._form(target, f"Too many wrong passwords. Try again in {int(wait_s) + 1} s.")
            return
        name = keeper.credentials.check(given, self.get_body_argument("password", "", strip=False))
        if name is None:
            keeper.guesses.wrong(address, accounts)
            keeper.audit.refused(who=given[:100], what="login", why="wrong password", address=address)
            self.set_status(403)
            self._form(target, "That is not the right password.")
            return
        keeper.guesses.right(address, name)
        keeper.audit.done(who=name, what="login", address=address)
        self.begin_session(name)
        self.redirect(target)

    def _redeem(self, token: str) -> bool:
        keeper = self.gatekeeper
        address = self.request.remote_ip or ""
        if keeper.guesses.wait_s(address) > 0:
            raise Trouble(429, "Too many tries.", "Links and passwords were tried too often from your address.")
        if keeper.links.redeem(token):
            keeper.guesses.right(address, OWNER)
            keeper.audit.done(who=OWNER, what="login by one-time link", address=address)
            self.begin_session(OWNER)
            return True
        keeper.guesses.wrong(address)
        keeper.audit.refused(who="", what="login by one-time link", why="unknown or used", address=address)
        return False

    def _form(self, target: str, complaint: str) -> None:
        self.current_user = None
        self.show_page(
            "trace/login.html",
            title="Log in",
            target=target,
            complaint=complaint,
            named=self.gatekeeper.credentials.named,
        )


class LogoutHandler(HtmlHandler):
    """``/logout``: ends the session. A POST, so that no picture on another site can log anybody out."""

    role = Role.LOOK
    reading_methods = HtmlHandler.reading_methods | {"POST"}

    def get(self) -> None:
        """Flower's link is a GET: ask."""
        self.show_page("trace/logout.html", title="Log out")

    def post(self) -> None:
        """End it."""
        cookie = self.get_cookie(self.gatekeeper.session_cookie)
        if cookie:
            self.gatekeeper.sessions.end(cookie)
        self.gatekeeper.audit.done(who=self.user.name, what="logout")
        self.clear_cookie(self.gatekeeper.session_cookie)
        self.clear_cookie("user")
        self.redirect(self.get_login_url())
