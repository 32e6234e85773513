"""
How somebody proves who they are: password, one-time link, session, and how often they may guess.

Nothing here knows Tornado: handlers hand in strings and get answers, so every rule is tested
with a fake clock.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Sequence

from msgspec import Struct

from celery_trace.clock import Clock

#: The name of the only user where the monitor made its own password.
OWNER = "admin"
#: The name under which a script with the token of CELERY_TRACE_MONITOR_TOKEN appears.
SCRIPT = "token"

MOST_SESSIONS = 1000
MOST_SESSIONS_OF_ONE = 100
LINK_LIFE_S = 3600.0


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _same(one: str, other: str) -> bool:
    # Digests have one length, so the comparison tells nothing about the length of the secret.
    return hmac.compare_digest(_digest(one), _digest(other))


class Credentials:
    """
    The names and passwords that open the monitor.

    Args:
        pairs: Flower's ``--basic_auth`` entries, ``user:password``.
        password: The password that was generated, or set by ``CELERY_TRACE_MONITOR_PASSWORD``; with
            it the user's name does not matter.
        token: ``CELERY_TRACE_MONITOR_TOKEN``, for scripts.
    """

    def __init__(self, pairs: Sequence[str] = (), password: str = "", token: str = "") -> None:
        self._pairs = tuple(pairs)
        self._password = password
        self._token = token

    @property
    def named(self) -> bool:
        """Whether users have names of their own."""
        return bool(self._pairs)

    @property
    def any(self) -> bool:
        """Whether anything is configured that could be typed in."""
        return bool(self._pairs or self._password)

    def check(self, name: str, password: str) -> str | None:
        """The user's name where name and password fit, else None. Takes the same time for each."""
        given = f"{name}:{password}"
        found = None
        for pair in self._pairs:
            if _same(pair, given):
                found = name
        if self._password and _same(self._password, password):
            found = found or OWNER
        return found

    def check_token(self, token: str) -> str | None:
        """The name behind a bearer token: the script's, or the owner's where it is the password."""
        found = None
        if self._token and _same(self._token, token):
            found = SCRIPT
        if self._password and _same(self._password, token):
            found = OWNER
        return found


class Session(Struct, frozen=True):
    """A login. ``ends_s`` is on the monotonic clock."""

    user: str
    ends_s: float


class Sessions:
    """
    Logins that are alive, by the digest of their cookie, so that a dump of memory shows no cookie.

    A session ends ``life_s`` after it began, however busy it is. When one user has too many, the oldest of that
    user goes, so that nobody can log the others out; when there are too many of all, the oldest of all.
    """

    def __init__(self, clock: Clock, life_s: float, most: int = MOST_SESSIONS) -> None:
        self._clock = clock
        self._life_s = life_s
        self._most = most
        self._by_digest: OrderedDict[bytes, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_digest)

    def begin(self, user: str) -> str:
        """A new session; returns the cookie's value."""
        cookie = secrets.token_urlsafe(32)
        own = [digest for digest, session in self._by_digest.items() if session.user == user]
        for digest in own[: max(0, len(own) + 1 - MOST_SESSIONS_OF_ONE)]:
            del self._by_digest[digest]
        self._by_digest[_digest(cookie)] = Session(user, self._clock.monotonic_s() + self._life_s)
        while len(self._by_digest) > self._most:
            self._by_digest.popitem(last=False)
        return cookie

    def find(self, cookie: str) -> Session | None:
        """The living session of a cookie, or None."""
        digest = _digest(cookie)
        session = self._by_digest.get(digest)
        if session is not None and session.ends_s <= self._clock.monotonic_s():
            del self._by_digest[digest]
            return None
        return session

    def end(self, cookie: str) -> None:
        """Log out."""
        self._by_digest.pop(_digest(cookie), None)


class OneTimeLinks:
    """Tokens that open one session each, within :data:`LINK_LIFE_S`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends_s: dict[bytes, float] = {}

    def make(self) -> str:
        """A new token."""
        token = secrets.token_urlsafe(32)
        self._ends_s[_digest(token)] = self._clock.monotonic_s() + LINK_LIFE_S
        return token

    def redeem(self, token: str) -> bool:
        """Whether the token was alive. It is dead afterwards."""
        ends_s = self._ends_s.pop(_digest(token), None)
        return ends_s is not None and ends_s > self._clock.monotonic_s()


class SpentCookies:
    """
    Signed cookies of the OAuth login that were exchanged for a session.

    Such a cookie proves who somebody is to whoever has it, for as long as its signature counts. So each opens one
    session, which a logout ends; a copy opens none.
    """

    def __init__(self, clock: Clock, life_s: float) -> None:
        self._clock = clock
        self._life_s = life_s
        self._ends_s: dict[bytes, float] = {}

    def spend(self, cookie: str) -> None:
        """It has opened its session."""
        now_s = self._clock.monotonic_s()
        self._ends_s = {digest: ends_s for digest, ends_s in self._ends_s.items() if ends_s > now_s}
        self._ends_s[_digest(cookie)] = now_s + self._life_s

    def __contains__(self, cookie: str) -> bool:
        return _digest(cookie) in self._ends_s


def network_of(address: str) -> str:
    """What one visitor has at hand: an IPv4 address itself, of an IPv6 address its /64."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


class Guesses:
    """
    How often an address may guess a password wrong: ``most`` times within ``window_s``.

    Counted by address (IPv6 by /64, as a visitor has all of it), so that a stranger who guesses cannot lock the
    owner out. Behind a proxy all visitors have the proxy's address unless the monitor runs with ``--xheaders``.
    """

    def __init__(self, clock: Clock, most: int = 8, window_s: float = 60.0, most_addresses: int = 4096) -> None:
        self._clock = clock
        self._most = most
        self._window_s = window_s
        self._most_addresses = most_addresses
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until this address may try again; 0 when it may now."""
        if not self._wrong:
            return 0.0
        times = self._recent(network_of(address))
        if len(times) < self._most:
            return 0.0
        return max(0.0, times[0] + self._window_s - self._clock.monotonic_s())

    def wrong(self, address: str) -> None:
        """A guess was wrong."""
        address = network_of(address)
        times = [*self._recent(address), self._clock.monotonic_s()][-self._most :]
        self._wrong[address] = times
        self._wrong.move_to_end(address)
        while len(self._wrong) > self._most_addresses:
            self._wrong.popitem(last=False)

    def _recent(self, address: str) -> list[float]:
        since = self._clock.monotonic_s() - self._window_s
        times = [at for at in self._wrong.get(address, ()) if at > since]
        if not times:
            self._wrong.pop(address, None)
        return times
