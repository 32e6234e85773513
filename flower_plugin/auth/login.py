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
from collections.abc import Iterable, Sequence

from msgspec import Struct

from celery_trace.clock import Clock
from celery_trace.settings import SettingError

#: The name of the only user where the monitor made its own password.
OWNER = "admin"
#: The name under which a script with the token of CELERY_TRACE_MONITOR_TOKEN appears.
SCRIPT = "token"

MOST_SESSIONS = 1000
MOST_SESSIONS_OF_ONE = 100
LINK_LIFE_S = 3600.0

#: Wrong guesses that are taken within :data:`WINDOW_S` from one address, and at one account.
MOST_BY_ADDRESS = 8
MOST_BY_ACCOUNT = 16
WINDOW_S = 60.0
#: Addresses and made-up names whose guesses are remembered, and addresses that are known of one account.
MOST_ADDRESSES = 4096
MOST_NAMES = 4096
MOST_KNOWN = 64
#: Characters of a made-up name that are remembered.
MOST_NAME = 200


def _digest(secret: str) -> bytes:
    # Digests have one length, so comparing them tells nothing about the length of the secret.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class Credentials:
    """
    The names and passwords that open the monitor. Only digests of the passwords are kept.

    Args:
        pairs: Flower's ``--basic_auth`` entries, ``name:password``. The name ends at the first colon, as in HTTP
            basic authentication, so a password may contain colons and a name may not.
        password: The password that was generated, or set by ``CELERY_TRACE_MONITOR_PASSWORD``; with
            it the user's name does not matter.
        token: ``CELERY_TRACE_MONITOR_TOKEN``, for scripts.

    Raises:
        SettingError: An entry has no name or no password, or two entries have the same name.
    """

    def __init__(self, pairs: Sequence[str] = (), password: str = "", token: str = "") -> None:
        self._pairs = _named_passwords(pairs)
        self._password = _digest(password) if password else None
        self._token = _digest(token) if token else None

    @property
    def named(self) -> bool:
        """Whether users have names of their own."""
        return bool(self._pairs)

    @property
    def any(self) -> bool:
        """Whether anything is configured that could be typed in."""
        return bool(self._pairs) or self._password is not None

    @property
    def accounts(self) -> frozenset[str]:
        """The names under which somebody can log in with a password or token."""
        found = set(self._pairs)
        if self._password is not None:
            found.add(OWNER)
        if self._token is not None:
            found.add(SCRIPT)
        return frozenset(found)

    def check(self, name: str, password: str) -> str | None:
        """
        The user's name where name and password fit, else None.

        Name and password are compared apart, and each with every entry, so the time tells nothing about either.
        """
        given_name, given = _digest(name), _digest(password)
        found = None
        for known, digest in self._pairs.items():
            same_name = hmac.compare_digest(_digest(known), given_name)
            same_password = hmac.compare_digest(digest, given)
            if same_name & same_password:
                found = known
        if self._password is not None and hmac.compare_digest(self._password, given):
            found = found or OWNER
        return found

    def check_token(self, token: str) -> str | None:
        """The name behind a bearer token: the script's, or the owner's where it is the password."""
        given = _digest(token)
        found = None
        if self._token is not None and hmac.compare_digest(self._token, given):
            found = SCRIPT
        if self._password is not None and hmac.compare_digest(self._password, given):
            found = OWNER
        return found

    def tried(self, name: str) -> tuple[str, ...]:
        """The accounts that a guess under this name is a guess at, whether or not they exist."""
        names = [name] if self._pairs else []
        if self._password is not None:
            names.append(OWNER)
        return tuple(names)

    def tried_by_token(self) -> tuple[str, ...]:
        """The accounts that a guessed bearer token is a guess at."""
        names = [SCRIPT] if self._token is not None else []
        if self._password is not None:
            names.append(OWNER)
        return tuple(names)


def _named_passwords(pairs: Sequence[str]) -> dict[str, bytes]:
    """Name to digest of the password. A refusal names the entry by its number: its text may be a password."""
    hint = (
        "Each entry is name:password; a name has no colon, and a comma ends an entry. "
        "A password with a comma can be set in flowerconfig.py, as basic_auth = ['name:password']."
    )
    found: dict[str, bytes] = {}
    for number, pair in enumerate(pairs, 1):
        name, colon, password = pair.partition(":")
        name = name.strip()
        if not colon:
            raise SettingError(f"Entry {number} of --basic_auth has no colon between name and password. {hint}")
        if not name:
            raise SettingError(f"Entry {number} of --basic_auth has no name before its colon. {hint}")
        if not password:
            raise SettingError(
                f"Entry {number} of --basic_auth gives {name!r} an empty password, which anybody could send. {hint}"
            )
        if name in found:
            raise SettingError(
                f"--basic_auth names {name!r} twice, so two passwords would open one account. Remove one of them."
            )
        found[name] = _digest(password)
    return found


class LoginSession(Struct, frozen=True):
    """A login. ``ends_s`` is on the monotonic clock."""

    user: str
    ends_s: float


class LoginSessions:
    """
    Logins that are alive, by the digest of their cookie, so that a dump of memory shows no cookie.

    A session ends ``life_s`` after it began, however busy it is. When one user has too many, the oldest of that
    user goes, so that nobody can log the others out; when there are too many of all, the oldest of all.
    """

    def __init__(self, clock: Clock, life_s: float, most: int = MOST_SESSIONS) -> None:
        self._clock = clock
        self._life_s = life_s
        self._most = most
        self._by_digest: OrderedDict[bytes, LoginSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_digest)

    def begin(self, user: str) -> str:
        """A new session; returns the cookie's value."""
        cookie = secrets.token_urlsafe(32)
        own = [digest for digest, session in self._by_digest.items() if session.user == user]
        for digest in own[: max(0, len(own) + 1 - MOST_SESSIONS_OF_ONE)]:
            del self._by_digest[digest]
        self._by_digest[_digest(cookie)] = LoginSession(user, self._clock.monotonic_s() + self._life_s)
        while len(self._by_digest) > self._most:
            self._by_digest.popitem(last=False)
        return cookie

    def find(self, cookie: str) -> LoginSession | None:
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


class _Tally:
    """
    Wrong guesses by key within a sliding window, at most ``most`` of each and ``most_keys`` keys.

    The key that was longest without a guess gives way to a new one, never one of ``pinned``.
    """

    def __init__(self, clock: Clock, most: int, window_s: float, most_keys: int, pinned: Iterable[str] = ()) -> None:
        self._clock = clock
        self._most = most
        self._window_s = window_s
        self._most_keys = most_keys
        self._pinned: dict[str, list[float]] = {key: [] for key in pinned}
        self._others: OrderedDict[str, list[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pinned) + len(self._others)

    def wait_s(self, key: str) -> float:
        """Seconds until the next guess; 0 when it may come now."""
        times = self._recent(key)
        return max(0.0, times[0] + self._window_s - self._clock.monotonic_s()) if len(times) >= self._most else 0.0

    def add(self, key: str) -> None:
        """A guess was wrong."""
        times = [*self._recent(key), self._clock.monotonic_s()][-self._most :]
        if key in self._pinned:
            self._pinned[key] = times
            return
        self._others[key] = times
        self._others.move_to_end(key)
        while len(self._others) > self._most_keys:
            self._others.popitem(last=False)

    def _recent(self, key: str) -> list[float]:
        since = self._clock.monotonic_s() - self._window_s
        kept = self._pinned.get(key) or self._others.get(key) or ()
        return [at for at in kept if at > since]


class Guesses:
    """
    How often a password may be guessed wrong within :data:`WINDOW_S`.

    An address may do so :data:`MOST_BY_ADDRESS` times (IPv6 by /64, as a visitor has all of it). So that changing
    the address does not help, an account is closed to new addresses after :data:`MOST_BY_ACCOUNT` wrong guesses at
    it, whoever made them. An address from which somebody has logged in as that account is not new, so a stranger
    who guesses does not lock out the people who work with the monitor: their sessions go on, and they can log in
    from where they did before. Names that no account has are counted the same way, so that a refusal does not tell
    which names exist.

    Memory is bounded: see :data:`MOST_ADDRESSES`, :data:`MOST_NAMES` and :data:`MOST_KNOWN`.

    Args:
        clock: Time.
        accounts: The names that exist; their counts are never displaced by made-up ones.
    """

    def __init__(self, clock: Clock, accounts: Iterable[str] = ()) -> None:
        accounts = frozenset(accounts)
        self._addresses = _Tally(clock, MOST_BY_ADDRESS, WINDOW_S, MOST_ADDRESSES)
        self._accounts = _Tally(clock, MOST_BY_ACCOUNT, WINDOW_S, MOST_NAMES, pinned=accounts)
        self._known: dict[str, OrderedDict[str, None]] = {account: OrderedDict() for account in accounts}

    def __len__(self) -> int:
        return len(self._addresses) + len(self._accounts) + sum(map(len, self._known.values()))

    def wait_s(self, address: str, accounts: Iterable[str] = ()) -> float:
        """Seconds until this address may try a password that could open these accounts; 0 when it may now."""
        network = network_of(address)
        waits = [self._addresses.wait_s(network)]
        names = [name[:MOST_NAME] for name in accounts]
        if not any(network in self._known.get(name, ()) for name in names):
            waits += map(self._accounts.wait_s, names)
        return max(waits)

    def wrong(self, address: str, accounts: Iterable[str] = ()) -> None:
        """A guess at these accounts was wrong."""
        self._addresses.add(network_of(address))
        for name in accounts:
            self._accounts.add(name[:MOST_NAME])

    def right(self, address: str, account: str) -> None:
        """Somebody has logged in as ``account`` from here."""
        known = self._known.get(account)
        if known is None:
            return
        network = network_of(address)
        known[network] = None
        known.move_to_end(network)
        while len(known) > MOST_KNOWN:
            known.popitem(last=False)
