"""
The gate in front of every route, Flower's own included.

:class:`Gate` is mixed in front of each handler class, ours and Flower's. It denies unless the
class declares a role and the visitor has it, checks Host, Origin and XSRF token, and sets the
security headers. :class:`Gatekeeper` is what it asks; it belongs to the application.
"""

from __future__ import annotations

import binascii
import logging
import socket
from base64 import b64decode
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlencode, urlsplit

import psutil
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from flower_plugin.auth.audit import MonitorAuditLog
from flower_plugin.auth.login import Credentials, Guesses, LoginSessions, OneTimeLinks, SpentCookies
from flower_plugin.auth.roles import Role, RoleMap, User

logger = logging.getLogger("celery_trace.monitor")

#: What is said of everything that a read-only monitor refuses.
READ_ONLY = (
    "This monitor is read-only, so nothing can be changed here: it was started with --trace_read_only or --read_only."
)

#: Of every page, Flower's too: scripts and styles only from our own files, and no site may frame us.
STRICT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Hosts:
    """
    The names under which the monitor lets itself be called, against DNS rebinding.

    Args:
        address: The address that it is bound to.
        further: Names from ``--trace_hosts``.
    """

    def __init__(self, address: str, further: Iterable[str] = ()) -> None:
        names = {"localhost", "127.0.0.1", "::1"}
        if address in {"0.0.0.0", "::", "*"}:  # noqa: S104 - compared, not bound
            names |= {socket.gethostname(), socket.getfqdn()}
            for addresses in psutil.net_if_addrs().values():
                names |= {entry.address.partition("%")[0] for entry in addresses}
        elif address:
            names.add(address)
        names |= {_hostname(name) for name in further if name.strip()}
        self._names = frozenset(name.lower() for name in names)

    def allow(self, host: str) -> bool:
        """Whether a request with this Host header is meant for us."""
        return _hostname(host).lower() in self._names


def _hostname(host: str) -> str:
    """A Host header without its port; brackets of IPv6 removed."""
    host = host.strip()
    if host.startswith("["):
        inside, _, rest = host[1:].partition("]")
        return inside if not rest or rest.startswith(":") else ""
    if host.count(":") > 1:
        return host
    return host.partition(":")[0].rstrip(".")


class TooManyGuesses(HTTPError):  # type: ignore[misc]
    """429: no password is tried before ``wait_s`` seconds have passed, rounded up."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = int(wait_s) + 1
        super().__init__(429, "Too many wrong passwords; try again in %d s", self.wait_s)


class Gatekeeper:
    """Everything that tells who somebody is and what they may do."""

    def __init__(
        self,
        *,
        credentials: Credentials,
        roles: RoleMap,
        hosts: Hosts,
        sessions: LoginSessions,
        links: OneTimeLinks,
        guesses: Guesses,
        audit: MonitorAuditLog,
        spent: SpentCookies,
        oauth: Callable[[str], bool] | None = None,
        session_cookie: str = "celery_trace_session",
        session_days: float = 0.5,
        read_only: bool = False,
    ) -> None:
        self.credentials = credentials
        self.roles = roles
        self.hosts = hosts
        self.sessions = sessions
        self.links = links
        self.guesses = guesses
        self.audit = audit
        self.spent = spent
        self.oauth = oauth
        self.session_cookie = session_cookie
        self.session_days = session_days
        self.read_only = read_only

    def user(self, name: str, how: str) -> User:
        """Somebody who has proved to be ``name``, with their role."""
        return User(name, self.roles.role(name), how)

    def identify(self, handler: RequestHandler) -> User | None:
        """
        Who sent a request.

        Raises:
            TooManyGuesses: No password is tried from this address, or for this account from it, for a while.
        """
        kind, _, value = handler.request.headers.get("Authorization", "").partition(" ")
        if kind.lower() in {"basic", "bearer"}:
            return self._from_header(handler.request, kind.lower(), value.strip())
        cookie = handler.get_cookie(self.session_cookie)
        session = self.sessions.find(cookie) if cookie else None
        if session is not None:
            return self.user(session.user, "session")
        if self.oauth is not None and not self.credentials.named:
            return self._from_oauth(handler)
        return None

    def _from_header(self, request: HTTPServerRequest, kind: str, value: str) -> User | None:
        given = colon = password = ""
        if kind == "basic":
            try:
                given, colon, password = b64decode(value, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                given, colon, password = "", "", ""
            accounts = self.credentials.tried(given)
        else:
            accounts = self.credentials.tried_by_token()
        address = request.remote_ip or ""
        wait_s = self.guesses.wait_s(address, accounts)
        if wait_s > 0:
            self.audit.refused(who="", what=f"{kind} login", why="too many wrong passwords", address=address)
            raise TooManyGuesses(wait_s)
        if kind == "bearer":
            name = self.credentials.check_token(value)
        else:
            name = self.credentials.check(given, password) if colon else None
        if name is None:
            self.guesses.wrong(address, accounts)
            self.audit.refused(who="", what=f"{kind} login", why="wrong password or token", address=address)
            return None
        self.guesses.right(address, name)
        return self.user(name, kind)

    def _from_oauth(self, handler: RequestHandler) -> User | None:
        cookie = handler.get_signed_cookie("user", max_age_days=self.session_days)
        name = cookie.decode("utf-8", "replace") if cookie else ""
        if name and self.oauth is not None and self.oauth(name) and handler.get_cookie("user") not in self.spent:
            return self.user(name, "oauth")
        return None


class Gate(RequestHandler):  # type: ignore[misc]
    """
    Denies, unless.

    Set on a handler class: ``role`` for the methods that only read, ``change_role`` for all others, and
    ``reading_methods`` where these are not the usual ones. A read-only monitor refuses all others to everybody. The
    roles' default is nobody, so a forgotten declaration shuts a door and opens none.
    """

    role: Role = Role.NOBODY
    change_role: Role = Role.NOBODY
    #: Methods that change nothing beyond the visitor's own login.
    reading_methods = frozenset({"GET", "HEAD", "OPTIONS"})
    policy = STRICT_POLICY
    cacheable = False
    #: Whether a stranger is led to the login page; scripts get 401.
    for_people = True
    #: Seconds until another password may be tried; 0 where it may now. An answer's headers are made anew for an error.
    retry_after_s = 0

    if TYPE_CHECKING:

        @property
        def gatekeeper(self) -> Gatekeeper: ...

    else:

        @property
        def gatekeeper(self):
            """The application's."""
            return self.application.context.gatekeeper

    # --- who -----------------------------------------------------------------------------------------

    def get_current_user(self) -> User | None:
        """Tornado asks this once a request."""
        try:
            return self.gatekeeper.identify(self)
        except TooManyGuesses as error:
            self.retry_after_s = error.wait_s
            raise

    @property
    def only_reads(self) -> bool:
        """Whether this request changes nothing."""
        return self.request.method in self.reading_methods

    @property
    def needed_role(self) -> Role:
        """What this request needs."""
        return self.role if self.only_reads else self.change_role

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """A part of the address as text."""
        text = str(super().decode_argument(value, name))
        if "\0" in text:  # no name has one, and neither PostgreSQL nor the file system takes one
            raise HTTPError(400, "The address has a zero byte.")
        return text

    # --- checks --------------------------------------------------------------------------------------

    def check_xsrf_cookie(self) -> None:
        """
        Tornado calls this before ``prepare`` for each request that may change something.

        A script that shows its password in a header and is no browser needs no token: nobody else's
        page can make a browser send such a request.
        """
        self._check_host()
        user = self.current_user
        if user is None and self.needed_role is not Role.PUBLIC:
            return  # prepare() denies
        self._check_site()
        if user is not None and self.is_a_script(user):
            return
        try:
            RequestHandler.check_xsrf_cookie(self)
        except HTTPError as error:
            self._refuse(f"XSRF token: {error.log_message}", f"The XSRF token is missing or wrong: {error.log_message}")

    def prepare(self) -> Any:
        """The gate itself; behind it, what the handler answers here: a redirect, a refusal, something to wait for."""
        self.admit()
        return None if self._finished else super().prepare()

    def admit(self) -> None:
        """
        Let the visitor in, or refuse.

        Raises:
            HTTPError: They may not. Who is not logged in may get the finished answer instead.
        """
        self._check_host()
        needed = self.needed_role
        user = None if needed is Role.PUBLIC else self.current_user
        if needed is not Role.PUBLIC:
            if user is None:
                self.deny_unknown()
                return
            if needed is Role.NOBODY:
                raise HTTPError(405)
            if not user.may(needed):
                self._refuse(
                    f"needs the role {needed.word}",
                    f"{user.name} has the role {user.role.word}, but this needs {needed.word}. "
                    "Roles are given with --trace_roles.",
                )
        if self.gatekeeper.read_only and not self.only_reads:
            self._refuse("the monitor is read-only", READ_ONLY)
        if user is not None:
            self._renew(user)

    def _renew(self, user: User) -> None:
        """A session of ours instead of what a browser can't send everywhere, or what a logout would not end."""
        if user.how == "basic" and self.request.headers.get("Sec-Fetch-Mode") == "navigate":
            # Some browsers send no password on a WebSocket; a session cookie they all send.
            self.begin_session(user.name)
        elif user.how == "oauth" and not self.is_a_socket:
            # From here on by a session of ours, which a logout ends for whoever holds a copy as well.
            self.gatekeeper.spent.spend(self.get_cookie("user") or "")
            self.clear_cookie("user")
            self.gatekeeper.audit.done(who=user.name, what="login by OAuth", address=self.request.remote_ip)
            self.begin_session(user.name)

    def _refuse(self, why: str, message: str) -> NoReturn:
        user = self.current_user
        self.gatekeeper.audit.refused(
            who=user.name if user else "",
            what=f"{self.request.method} {self.request.path}",
            why=why,
            address=self.request.remote_ip,
        )
        raise HTTPError(403, message)

    @property
    def is_a_socket(self) -> bool:
        """Whether this asks for a WebSocket, whose answer carries no cookie."""
        return bool(self.request.headers.get("Upgrade", "").lower() == "websocket")

    def deny_unknown(self) -> None:
        """Nobody we know: to the login page, or 401."""
        headers = self.request.headers
        shown = self.get_cookie(self.gatekeeper.session_cookie) or self.get_cookie("user")
        self.gatekeeper.audit.refused(
            who="",
            what=f"{self.request.method} {self.request.path}",
            why="a session that has ended or never was" if shown else "no login",
            address=self.request.remote_ip,
        )
        navigates = (
            self.for_people
            and self.request.method in {"GET", "HEAD"}
            and "text/html" in headers.get("Accept", "")
            and "Authorization" not in headers
        )
        if self.is_a_socket:
            raise HTTPError(401, "Log in first")
        if navigates and not self.gatekeeper.credentials.named:
            self.redirect(f"{self.get_login_url()}?{urlencode({'next': self.request.uri or '/'})}")
            return
        self.set_status(401)
        fetched = self.request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate"
        if self.gatekeeper.credentials.any and not fetched:
            # A page's own fetch gets no challenge: the browser would open a password box over the page.
            self.set_header("WWW-Authenticate", 'Basic realm="celery-trace", charset="UTF-8"')
        self.finish(
            {
                "error": {
                    "what": "You are not logged in.",
                    "why": "The monitor shows what your tasks hold, so every route is closed.",
                    "next": f"Open {self.get_login_url()}, or send the password as HTTP basic auth or bearer token.",
                }
            }
        )

    def begin_session(self, name: str) -> None:
        """Log somebody in by cookie."""
        gatekeeper = self.gatekeeper
        self.set_cookie(
            gatekeeper.session_cookie,
            gatekeeper.sessions.begin(name),
            expires_days=None,
            httponly=True,
            samesite="Lax",
            secure=self.request.protocol == "https",
        )

    def _check_host(self) -> None:
        host = self.request.headers.get("Host", "")
        if not self.gatekeeper.hosts.allow(host):
            self.gatekeeper.audit.refused(who="", what=f"Host {host[:200]}", why="foreign host")
            raise HTTPError(
                421,
                f"This monitor is not called {host[:200]!r}. If it should be, start it with --trace_hosts={host[:200]}",
            )

    def _check_site(self) -> None:
        site = self.request.headers.get("Sec-Fetch-Site")
        if site and site not in {"same-origin", "none"}:
            self._refuse_origin(f"Sec-Fetch-Site {site}")
        origin = self.request.headers.get("Origin")
        if origin is not None and not self.own_origin(origin):
            self._refuse_origin(origin)

    def own_origin(self, origin: str) -> bool:
        """Whether a page of ours sent this."""
        try:
            parts = urlsplit(origin)
        except ValueError:  # such as a bracket that is not closed
            return False
        return parts.scheme in {"http", "https"} and parts.netloc.lower() == self.request.host.lower()

    def _refuse_origin(self, origin: str) -> NoReturn:
        self._refuse(f"origin {origin}", "Another site asked for this; only the monitor's own pages may.")

    def is_a_script(self, user: User) -> bool:
        """Whether no browser sent this: a page elsewhere can't make a script send its password."""
        headers = self.request.headers
        browser = any(name in headers for name in ("Origin", "Sec-Fetch-Site", "Referer", "Cookie"))
        return user.how == "bearer" or (user.how == "basic" and not browser)

    # --- headers -------------------------------------------------------------------------------------

    def set_default_headers(self) -> None:
        """Security headers on every answer."""
        super().set_default_headers()
        for name in ("Access-Control-Allow-Origin", "Access-Control-Allow-Headers", "Access-Control-Allow-Methods"):
            self.clear_header(name)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("X-Frame-Options", "DENY")
        # "no-referrer" would turn the Origin of our own forms into "null".
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Content-Security-Policy", self.policy)
        self.clear_header("Server")
        if self.retry_after_s:
            self.set_header("Retry-After", str(self.retry_after_s))
        if not self.cacheable:
            self.set_header("Cache-Control", "no-store")
