"""Login page, one-time link, logout."""

from __future__ import annotations

from urllib.parse import urlsplit

from flower_plugin.auth.login import OWNER
from flower_plugin.auth.roles import UserRole
from flower_plugin.problems import Problem
from flower_plugin.web.handlers import HtmlHandler


def safe_target(target: str, base: str) -> str:
    """The page after the login: a path of this monitor, otherwise the overview."""
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
    """``/login``: the form, and the target of one-time links."""

    role = UserRole.PUBLIC
    reading_methods = HtmlHandler.reading_methods | {"POST"}

    def head(self) -> None:
        """Do nothing: a link preview must not redeem the link."""

    def get(self) -> None:
        """Show the form, or redeem ``token``."""
        token = self.get_query_argument("token", "")
        target = safe_target(self.get_query_argument("next", ""), self.context.base_url)
        if token:
            if self._redeem(token):
                self.redirect(target)
                return
            self.set_status(403)
            self._form(target, "This link was already used or has expired. Use the password that was printed with it.")
            return
        self._form(target, "")

    def post(self) -> None:
        """Check name and password."""
        target = safe_target(self.get_body_argument("next", ""), self.context.base_url)
        address = self.request.remote_ip or ""
        keeper = self.gatekeeper
        given = self.get_body_argument("name", "")
        accounts = keeper.credentials.tried(given)
        wait_s = keeper.throttle.wait_s(address, accounts)
        if wait_s > 0:
            keeper.audit.refused(who=given[:100], what="login", why="too many wrong passwords", address=address)
            self.set_status(429)
            self.set_header("Retry-After", str(int(wait_s) + 1))
            self._form(target, f"Too many wrong passwords. Try again in {int(wait_s) + 1} s.")
            return
        name = keeper.credentials.check(given, self.get_body_argument("password", "", strip=False))
        if name is None:
            keeper.throttle.wrong(address, accounts)
            keeper.audit.refused(who=given[:100], what="login", why="wrong password", address=address)
            self.set_status(403)
            self._form(target, "Wrong name or password." if keeper.credentials.named else "Wrong password.")
            return
        keeper.throttle.right(address, name)
        keeper.audit.done(who=name, what="login", address=address)
        self.begin_session(name)
        self.redirect(target)

    def _redeem(self, token: str) -> bool:
        keeper = self.gatekeeper
        address = self.request.remote_ip or ""
        if keeper.throttle.wait_s(address) > 0:
            raise Problem(429, "Too many attempts.", "Too many wrong links or passwords from your address.")
        if keeper.links.redeem(token):
            keeper.throttle.right(address, OWNER)
            keeper.audit.done(who=OWNER, what="login by one-time link", address=address)
            self.begin_session(OWNER)
            return True
        keeper.throttle.wrong(address)
        keeper.audit.refused(who="", what="login by one-time link", why="unknown or used", address=address)
        return False

    def _form(self, target: str, error: str) -> None:
        self.current_user = None
        self.show_page(
            "trace/login.html",
            title="Log in",
            target=target,
            error=error,
            named=self.gatekeeper.credentials.named,
        )


class LogoutHandler(HtmlHandler):
    """``/logout``: ends the session. Requires a POST, so that an image on another site can't log users out."""

    role = UserRole.LOOK
    reading_methods = HtmlHandler.reading_methods | {"POST"}

    def get(self) -> None:
        """Flower's link is a GET: ask for confirmation."""
        self.show_page("trace/logout.html", title="Log out")

    def post(self) -> None:
        """End the session."""
        cookie = self.get_cookie(self.gatekeeper.session_cookie)
        if cookie:
            self.gatekeeper.sessions.end(cookie)
        self.gatekeeper.audit.done(who=self.user.name, what="logout")
        self.clear_cookie(self.gatekeeper.session_cookie)
        self.clear_cookie("user")
        self.redirect(self.get_login_url())
