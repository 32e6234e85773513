"""
The gate in front of all routes, including Flower's.

:class:`Gate` is mixed into each handler class, ours and Flower's. It denies access unless the
class declares a role and the user has it, checks Host, Origin and XSRF token, and sets the
security headers. :class:`Gatekeeper` belongs to the application and has the state.
"""

from __future__ import annotations

import binascii
import logging
import socket
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlencode, urlsplit

import psutil
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from flower_plugin.auth.audit import MonitorAuditLog
from flower_plugin.auth.login import Credentials, LoginSessions, LoginThrottle, OneTimeLinks, SpentCookies
from flower_plugin.auth.roles import RoleMap, User, UserRole

logger = logging.getLogger("celery_trace.monitor")

#: The error of a read-only monitor.
READ_ONLY = "This monitor is read-only. It was started with --trace_read_only or --read_only."

#: For all pages, including Flower's: scripts and styles only from our own files, no framing by other sites.
STRICT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class Hosts:
    """
    The allowed Host names, against DNS rebinding.

    Args:
        address: The address that the monitor is bound to.
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
        """Whether this Host header is allowed."""
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
    """429: no password is checked for ``wait_s`` seconds, rounded up."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = int(wait_s) + 1
        super().__init__(429, "Too many wrong passwords. Try again in %d s.", self.wait_s)


class Gatekeeper:
    """Authentication and authorization: credentials, sessions, roles, hosts and the audit log."""

    def __init__(
        self,
        *,
        credentials: Credentials,
        roles: RoleMap,
        hosts: Hosts,
        sessions: LoginSessions,
        links: OneTimeLinks,
        throttle: LoginThrottle,
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
        self.throttle = throttle
        self.audit = audit
        self.spent = spent
        self.oauth = oauth
        self.session_cookie = session_cookie
        self.session_days = session_days
        self.read_only = read_only

    def user(self, name: str, how: str) -> User:
        """The authenticated user ``name``, with their role."""
        return User(name, self.roles.role(name), how)

    def identify(self, handler: RequestHandler) -> User | None:
        """
        The user who sent a request, or None.

        Raises:
            TooManyGuesses: Logins from this address, or for this account from it, are throttled.
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
        wait_s = self.throttle.wait_s(address, accounts)
        if wait_s > 0:
            self.audit.refused(who="", what=f"{kind} login", why="too many wrong passwords", address=address)
            raise TooManyGuesses(wait_s)
        if kind == "bearer":
            name = self.credentials.check_token(value)
        else:
            name = self.credentials.check(given, password) if colon else None
        if name is None:
            self.throttle.wrong(address, accounts)
            self.audit.refused(who="", what=f"{kind} login", why="wrong password or token", address=address)
            return None
        self.throttle.right(address, name)
        return self.user(name, kind)

    def _from_oauth(self, handler: RequestHandler) -> User | None:
        cookie = handler.get_signed_cookie("user", max_age_days=self.session_days)
        name = cookie.decode("utf-8", "replace") if cookie else ""
        if name and self.oauth is not None and self.oauth(name) and handler.get_cookie("user") not in self.spent:
            return self.user(name, "oauth")
        return None


class Gate(RequestHandler):  # type: ignore[misc]
    """
    Denies access by default.

    Handler classes set ``role`` for methods that only read, ``change_role`` for all others, and ``reading_methods``
    if these are not the usual ones. A read-only monitor refuses all others to all users. The default of both roles is
    ``NOBODY``, so a missing declaration denies access.
    """

    role: UserRole = UserRole.NOBODY
    change_role: UserRole = UserRole.NOBODY
    #: Methods that change nothing except the user's own login.
    reading_methods = frozenset({"GET", "HEAD", "OPTIONS"})
    policy = STRICT_POLICY
    cacheable = False
    #: Whether browsers without a login are redirected to the login page; scripts get 401.
    for_people = True
    #: Seconds until the next login attempt is allowed; 0 if now. Tornado resets the headers for an error.
    retry_after_s = 0

    if TYPE_CHECKING:

        @property
        def gatekeeper(self) -> Gatekeeper: ...

    else:

        @property
        def gatekeeper(self):
            """The application's gatekeeper."""
            return self.application.context.gatekeeper

    # --- user ----------------------------------------------------------------------------------------

    def get_current_user(self) -> User | None:
        """Called by Tornado once per request."""
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
    def needed_role(self) -> UserRole:
        """The role that this request needs."""
        return self.role if self.only_reads else self.change_role

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """A part of the URL as text."""
        text = str(super().decode_argument(value, name))
        if "\0" in text:  # never part of a name, and neither PostgreSQL nor the file system accepts one
            raise HTTPError(400, "The URL contains a zero byte.")
        return text

    # --- checks --------------------------------------------------------------------------------------

    def check_xsrf_cookie(self) -> None:
        """
        Called by Tornado before ``prepare`` for each request that may change something.

        A script that authenticates with a header needs no token, as another site's page can't make a
        browser send such a request.
        """
        self._check_host()
        user = self.current_user
        if user is None and self.needed_role is not UserRole.PUBLIC:
            return  # prepare() denies
        self._check_site()
        if user is not None and self.is_a_script(user):
            return
        try:
            RequestHandler.check_xsrf_cookie(self)
        except HTTPError as error:
            self._refuse(f"XSRF token: {error.log_message}", f"Missing or invalid XSRF token: {error.log_message}")

    def prepare(self) -> Awaitable[None] | None:
        """Check access, then call the handler's own ``prepare``."""
        self.admit()
        return None if self._finished else super().prepare()

    def admit(self) -> None:
        """
        Check access.

        Raises:
            HTTPError: Access is denied. Without a login the response may be finished here instead.
        """
        self._check_host()
        needed = self.needed_role
        user = None if needed is UserRole.PUBLIC else self.current_user
        if needed is not UserRole.PUBLIC:
            if user is None:
                self.deny_unknown()
                return
            if needed is UserRole.NOBODY:
                raise HTTPError(405)
            if not user.may(needed):
                self._refuse(
                    f"needs the role {needed.word}",
                    f"{user.name} has the role {user.role.word}, but this needs {needed.word}. "
                    "Set roles with --trace_roles.",
                )
        if self.gatekeeper.read_only and not self.only_reads:
            self._refuse("the monitor is read-only", READ_ONLY)
        if user is not None:
            self._renew(user)

    def _renew(self, user: User) -> None:
        """Begin a session if basic auth or the OAuth cookie is not sufficient."""
        if user.how == "basic" and self.request.headers.get("Sec-Fetch-Mode") == "navigate":
            # Some browsers send no password for a WebSocket, but all send a session cookie.
            self.begin_session(user.name)
        elif user.how == "oauth" and not self.is_a_socket:
            # Exchange it for a session, which a logout ends for all copies of the cookie.
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
        """Whether this is a WebSocket request; its response can't set a cookie."""
        return bool(self.request.headers.get("Upgrade", "").lower() == "websocket")

    def deny_unknown(self) -> None:
        """Redirect an unauthenticated client to the login page, or answer 401."""
        headers = self.request.headers
        shown = self.get_cookie(self.gatekeeper.session_cookie) or self.get_cookie("user")
        self.gatekeeper.audit.refused(
            who="",
            what=f"{self.request.method} {self.request.path}",
            why="expired or invalid session" if shown else "no login",
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
            # No challenge for a page's fetch: the browser would open a password dialog over the page.
            self.set_header("WWW-Authenticate", 'Basic realm="celery-trace", charset="UTF-8"')
        self.finish(
            {
                "error": {
                    "what": "Not logged in.",
                    "why": "All routes require a login.",
                    "next": f"Open {self.get_login_url()}, or send the password as HTTP basic auth or bearer token.",
                }
            }
        )

    def begin_session(self, name: str) -> None:
        """Begin a session and set its cookie."""
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
            self.gatekeeper.audit.refused(who="", what=f"Host {host[:200]}", why="unknown host")
            raise HTTPError(
                421,
                f"The host name {host[:200]!r} is not allowed. To allow it, use --trace_hosts={host[:200]}",
            )

    def _check_site(self) -> None:
        site = self.request.headers.get("Sec-Fetch-Site")
        if site and site not in {"same-origin", "none"}:
            self._refuse_origin(f"Sec-Fetch-Site {site}")
        origin = self.request.headers.get("Origin")
        if origin is not None and not self.own_origin(origin):
            self._refuse_origin(origin)

    def own_origin(self, origin: str) -> bool:
        """Whether one of our pages sent this."""
        try:
            parts = urlsplit(origin)
        except ValueError:  # such as an unclosed bracket
            return False
        return parts.scheme in {"http", "https"} and parts.netloc.lower() == self.request.host.lower()

    def _refuse_origin(self, origin: str) -> NoReturn:
        self._refuse(f"origin {origin}", "Requests from other sites are not allowed.")

    def is_a_script(self, user: User) -> bool:
        """Whether a script sent this, not a browser that another site's page may control."""
        headers = self.request.headers
        browser = any(name in headers for name in ("Origin", "Sec-Fetch-Site", "Referer", "Cookie"))
        return user.how == "bearer" or (user.how == "basic" and not browser)

    # --- headers -------------------------------------------------------------------------------------

    def set_default_headers(self) -> None:
        """Set the security headers of all responses."""
        super().set_default_headers()
        for name in ("Access-Control-Allow-Origin", "Access-Control-Allow-Headers", "Access-Control-Allow-Methods"):
            self.clear_header(name)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("X-Frame-Options", "DENY")
        # "no-referrer" would make the Origin of our own forms "null".
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Content-Security-Policy", self.policy)
        self.clear_header("Server")
        if self.retry_after_s:
            self.set_header("Retry-After", str(self.retry_after_s))
        if not self.cacheable:
            self.set_header("Cache-Control", "no-store")
