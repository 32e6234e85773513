"""
Signed messages between the monitor and traced processes.

A broker is shared: anyone who may publish there can reach every queue. So a message is accepted only after its
HMAC-SHA256 (RFC 2104, FIPS 198-1) has been checked against a key that only the monitor and the workers have, and only
once.

A message has claims (target process, failure, session, sequence, nonce, issue and expiry time, SHA-256 of the body), a
body, and the MAC of the claims' exact bytes. Commands, replies and control orders are signed with separately derived
keys, so that none can be passed off as another. Bodies are JSON; nothing is ever unpickled. Messages are authentic,
not secret: the broker can read them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
from pathlib import Path

import msgspec
from msgspec import Struct

from celery_trace import private_files
from celery_trace.clock import Clock
from celery_trace.errors import TraceError
from celery_trace.settings import SettingError, Settings
from celery_trace.text.format import duration

#: How long a message is valid after signing, seconds.
VALID_S = 30.0
#: By how much the clocks of two hosts may differ, seconds.
TOLERANCE_S = 10.0
#: Size limit of a message, bytes, as unauthenticated messages are parsed too.
MESSAGE_LIMIT_BYTES = 1024 * 1024
#: Shortest accepted key, characters.
KEY_MINIMUM = 16


class MessageRefused(TraceError):
    """
    A message was refused. ``code`` is one word for counters: ``unsigned``, ``forged``, ``altered``, ``late``,
    ``early``, ``replayed``, ``out_of_order``, ``wrong_target``, ``wrong_kind``, ``malformed``, ``too_big``,
    ``compressed``, ``unknown_failure``, ``unknown_session``, ``unknown_action``, ``too_many``, ``busy``.
    """

    def __init__(self, code: str, text: str = "", claims: Claims | None = None) -> None:
        super().__init__(text or code)
        self.code = code
        self.claims = claims  # set only if the signature was valid


class Claims(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The signed claims."""

    kind: str  # "command", "reply", "order"
    target: str  # uid of the process that may act on it, or the session of a reply
    action: str
    nonce: str
    issued_at_s: float
    expires_at_s: float
    body_sha256: str
    failure: str = ""
    session: str = ""
    sequence: int = 0
    answers: str = ""  # the nonce of the command that a reply answers
    user: str = ""


class SignedMessage(Struct, frozen=True):
    """A message with a checked signature."""

    claims: Claims
    body: str


class _Envelope(Struct, frozen=True):
    claims: str
    body: str
    mac: str = ""


_envelopes = msgspec.json.Decoder(_Envelope)
_claims = msgspec.json.Decoder(Claims)


def _derived(key: bytes, kind: str) -> bytes:
    return hmac.digest(key, b"celery-trace/1/" + kind.encode("utf-8"), "sha256")


def _mac(key: bytes, kind: str, claims: str) -> str:
    return hmac.new(_derived(key, kind), claims.encode("utf-8"), hashlib.sha256).hexdigest()


def sign(
    key: bytes,
    *,
    kind: str,
    target: str,
    action: str,
    now_s: float,
    body: str = "",
    failure: str = "",
    session: str = "",
    sequence: int = 0,
    answers: str = "",
    user: str = "",
    valid_s: float = VALID_S,
) -> tuple[bytes, str]:
    """
    A signed message.

    Returns:
        The bytes to send, and the nonce, which a reply names in ``answers``.
    """
    nonce = secrets.token_hex(16)
    claims = Claims(
        kind=kind,
        target=target,
        action=action,
        nonce=nonce,
        issued_at_s=now_s,
        expires_at_s=now_s + valid_s,
        body_sha256=hashlib.sha256(body.encode("utf-8")).hexdigest(),
        failure=failure,
        session=session,
        sequence=sequence,
        answers=answers,
        user=user,
    )
    text = msgspec.json.encode(claims).decode("utf-8")
    return msgspec.json.encode(_Envelope(claims=text, body=body, mac=_mac(key, kind, text))), nonce


class ReplayCache:
    """
    The nonces of accepted messages that have not expired.

    When full it refuses instead of evicting: a flood of valid messages may block itself, but can't evict an old nonce.
    """

    def __init__(self, limit: int = 20_000) -> None:
        self._limit = limit
        self._expiries: dict[str, float] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._expiries)

    def admit(self, nonce: str, expires_at_s: float, now_s: float) -> bool:
        """Add a nonce; False if it was seen already or the cache is full."""
        with self._lock:
            if nonce in self._expiries:
                return False
            if len(self._expiries) >= self._limit:
                self._expiries = {known: until for known, until in self._expiries.items() if until >= now_s}
                if len(self._expiries) >= self._limit:
                    return False
            self._expiries[nonce] = expires_at_s
            return True


def verify(
    key: bytes,
    data: bytes,
    *,
    kind: str,
    target: str,
    now_s: float,
    replays: ReplayCache | None = None,
    tolerance_s: float = TOLERANCE_S,
    longest_s: float = 10 * VALID_S,
) -> SignedMessage:
    """
    The message in ``data``, if it is authentic, fresh, new and addressed to us.

    Args:
        key: The shared secret of :func:`load_key`.
        kind: The only accepted kind.
        target: Our own address.
        replays: The cache of nonces; None only where the same message may be read again.
        longest_s: Messages that claim a longer validity are refused.

    Raises:
        MessageRefused: With the reason; its ``claims`` are set only if the signature was valid.
    """
    if len(data) > MESSAGE_LIMIT_BYTES:
        raise MessageRefused("too_big", f"a message of {len(data)} bytes; at most {MESSAGE_LIMIT_BYTES} are read")
    try:
        envelope = _envelopes.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MessageRefused("malformed", "not a signed message in JSON") from None
    if not envelope.mac:
        raise MessageRefused("unsigned", "the message carries no signature")
    try:
        good = hmac.compare_digest(_mac(key, kind, envelope.claims), envelope.mac)
    except (TypeError, UnicodeEncodeError):
        good = False
    if not good:
        raise MessageRefused("forged", "the signature was not made with our key for this kind of message")
    try:
        claims = _claims.decode(envelope.claims)
    except msgspec.DecodeError:
        raise MessageRefused("malformed", "the signed claims are not those of this version") from None
    if claims.kind != kind:
        raise MessageRefused("wrong_kind", f"a {claims.kind} where a {kind} was expected", claims)
    digest = hashlib.sha256(envelope.body.encode("utf-8")).hexdigest()
    if not hmac.compare_digest(digest, claims.body_sha256):
        raise MessageRefused("altered", "the body is not the one that was signed", claims)
    if claims.target != target:
        raise MessageRefused("wrong_target", f"meant for {claims.target[:40]}, not for {target}", claims)
    if claims.expires_at_s - claims.issued_at_s > longest_s or not claims.expires_at_s < float("inf"):
        raise MessageRefused("malformed", "valid for longer than our messages ever are", claims)
    if now_s > claims.expires_at_s + tolerance_s:
        late = duration(round(now_s - claims.expires_at_s))
        raise MessageRefused("late", f"expired {late} ago; if that is wrong, the clocks of the hosts differ", claims)
    if claims.issued_at_s > now_s + tolerance_s:
        early = duration(round(claims.issued_at_s - now_s))
        raise MessageRefused("early", f"signed {early} in the future: the clocks of the hosts differ", claims)
    if replays is not None and not replays.admit(claims.nonce, claims.expires_at_s + tolerance_s, now_s):
        raise MessageRefused("replayed", "this message was executed before, or too many are pending", claims)
    return SignedMessage(claims, envelope.body)


class RefusalLimit:
    """Limits logged and audited refusals per minute, so that a flood can't fill a disk."""

    def __init__(self, clock: Clock, per_minute: int = 20) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._minute = -1
        self._seen = 0
        self._lock = threading.Lock()

    def admit(self) -> bool:
        minute = int(self._clock.monotonic_s() // 60)
        with self._lock:
            if minute != self._minute:
                self._minute, self._seen = minute, 0
            self._seen += 1
            return self._seen <= self._per_minute


def load_key(settings: Settings) -> bytes:
    """
    The secret that signs live commands: ``trace_shell_key`` itself, its ``file:PATH``, or a file created here.

    The file ``shell.key`` in ``trace_dir`` is created with mode 0600 by the first process that needs it; if two race,
    both read what one wrote.

    Raises:
        SettingError: The key is too short, or its file can't be read, is accessible to others, belongs to another user,
            or is behind a link.
    """
    spelled = settings.shell_key
    if spelled and not spelled.startswith("file:"):
        return _checked(spelled, "trace_shell_key")
    path = Path(spelled[5:]).expanduser() if spelled else settings.folder / "shell.key"
    if not spelled:
        _make_key(path)
    return _checked(_read_private(path), str(path))


def _checked(text: str, where: str) -> bytes:
    text = text.strip()
    if len(text) < KEY_MINIMUM:
        raise SettingError(
            f"The shell key in {where} has {len(text)} characters; it needs at least {KEY_MINIMUM}. "
            "Make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return text.encode("utf-8")


def _read_private(path: Path) -> str:
    try:
        return private_files.read(path, 4096, secret=True).decode("utf-8")
    except private_files.NotOurs as error:
        raise SettingError(
            f"The shell key {path} is refused: {error.why}. The key gives the right to run code in the workers. "
            f"{error.next}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"Can't read the shell key {path}: {error}. Set trace_shell_key to the key or to file:PATH."
        ) from error


def _make_key(path: Path) -> None:
    """Create the key of this ``trace_dir``; of several processes at once, one does."""
    folder = path.parent
    try:
        private_files.make_trace_dir(folder)
        private_files.check_guarded(folder)
        if os.path.lexists(path):
            return
        with private_files.locked(folder):
            if not os.path.lexists(path):
                private_files.replace(path, secrets.token_hex(32).encode() + b"\n", durable=True)
    except private_files.NotOurs as error:
        raise SettingError(
            f"The shell key {path} is refused: in {folder}, {error.why}. Replacing the key gives the right to run code "
            f"in the workers. {error.next}"
        ) from None
    except OSError as error:
        raise SettingError(
            f"Can't make the shell key {path}: {error}. Set trace_shell_key, or trace_dir to a writable place."
        ) from error
