"""
Where alerts go: the log, a webhook, and the services of Apprise (mail, Slack, Teams, PagerDuty and many others).

A channel delivers one :class:`Message` or raises :class:`DeliveryFailed`; retries are the
:class:`~celery_trace.alerting.engine.AlertEngine`'s decision. A channel's address is a secret (it contains tokens and
passwords), so only its ``label`` is shown, logged and stored, and every part of the address is removed from errors.
"""

from __future__ import annotations

import base64
import http.client
import importlib.util
import logging
import ssl
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec
from msgspec import Struct

from celery_trace.errors import TraceError
from celery_trace.model import AlertView
from celery_trace.settings import SettingError

SETTING = "trace_alert_channels"

#: Timeout of one delivery, seconds.
TIMEOUT_S = 10.0

logger = logging.getLogger("celery_trace.alerts")

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}


class DeliveryFailed(TraceError):
    """A channel did not accept the message; the text is the reason, without secrets."""


class Message(Struct, frozen=True, kw_only=True):
    """
    What is delivered: one or several alerts of one rule that changed at the same time.

    ``state`` is ``firing``, ``resolved`` or ``test``; ``severity`` is ``info``, ``warning`` or ``critical``.
    """

    state: str
    rule: str
    severity: str
    title: str
    body: str
    at: float  # seconds since the epoch
    alerts: list[AlertView] = []


class Channel(Protocol):
    """One place where alerts go."""

    label: str

    def send(self, message: Message) -> None:
        """
        Deliver, within :data:`TIMEOUT_S`.

        Raises:
            DeliveryFailed: It was not accepted.
        """


class LogChannel:
    """``log:`` writes to the logger ``celery_trace.alerts``, at the level that fits the severity."""

    label = "log:"

    def send(self, message: Message) -> None:
        """Write one log record."""
        level = (
            logging.INFO if message.state in {"resolved", "test"} else _LEVELS.get(message.severity, logging.WARNING)
        )
        logger.log(level, "%s\n%s", message.title, message.body)


class WebhookChannel:
    """
    ``webhook+https://…`` posts the message as JSON; the alerts in it have the shape of ``GET /api/trace/alerts``.

    User and password in the address become Basic authentication. Any 2xx response counts as delivered; a redirect
    does not, since it would send the alert to an address that was not configured.
    """

    def __init__(self, address: str) -> None:
        self._parts = urlsplit(address.removeprefix("webhook+"))
        try:
            port = self._parts.port
        except ValueError:
            port = -1
        if self._parts.scheme not in {"http", "https"} or not self._parts.hostname or port == -1:
            raise SettingError(
                f"{SETTING} has a webhook without a usable address (hidden), but it must look like "
                "webhook+https://host[:port]/path or webhook+http://host[:port]/path."
            )
        self.label = f"webhook+{self._parts.scheme}://{_host(self._parts)}/…"

    def send(self, message: Message) -> None:
        """Post it and check the status of the response."""
        parts = self._parts
        headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "celery-trace"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=TIMEOUT_S, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", target, msgspec.json.encode({"version": 1, "message": message}), headers)
            answer = connection.getresponse()
            answer.read(4096)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DeliveryFailed(f"no answer: {_scrub(_error_text(error), parts.geturl())}") from None
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            hint = " (redirects are not followed; use the final address)" if 300 <= answer.status < 400 else ""
            raise DeliveryFailed(f"answered {answer.status} {_scrub(answer.reason, parts.geturl())}{hint}")


class AppriseChannel:
    """Any address that Apprise knows, such as ``mailtos://…``, ``slack://…``, ``jsons://…``."""

    def __init__(self, address: str) -> None:
        if importlib.util.find_spec("apprise") is None:
            raise SettingError(
                f"{SETTING} has a channel {_scheme(address)}://… for which Apprise is needed, and it is not installed. "
                'Run: pip install "celery-trace[alerts]"'
            )
        with warnings.catch_warnings():
            # Its services import modules that Python has deprecated, which does not concern our users.
            warnings.simplefilter("ignore", DeprecationWarning)
            import apprise  # 36 MB once used, so only for a channel that needs it

            self._service = apprise.Apprise.instantiate(address)
        self._address = address
        self._apprise = apprise
        if self._service is None:
            raise SettingError(
                f"{SETTING} has a channel {_scheme(address)}://… (the rest is hidden) that Apprise does not accept. "
                "It must be log:, webhook+https://…, or an address as in Apprise's list of services "
                "(try it with: apprise -t test -b test 'ADDRESS')."
            )
        # Apprise's private form is not enough: a path may be the secret.
        private = urlsplit(str(self._service.url(privacy=True)))
        self.label = f"{private.scheme or _scheme(address)}://{_host(private)}/…"

    def send(self, message: Message) -> None:
        """Send it to the service; Apprise returns True or logs the reason."""
        kinds = {"critical": "failure", "warning": "warning", "info": "info"}
        kind = "success" if message.state == "resolved" else kinds.get(message.severity, "info")
        services = self._apprise.Apprise()
        services.add(self._service)
        with _apprise_turn, _captured_log() as logged:
            try:
                taken = services.notify(body=message.body, title=message.title, notify_type=kind, body_format="text")
            except Exception as error:  # a service's own code: any error means that it was not delivered
                raise DeliveryFailed(_scrub(_error_text(error), self._address)) from None
        if not taken:
            raise DeliveryFailed(_scrub("; ".join(logged[-3:]) or "the service did not accept it", self._address))


# The reason of a failure is only in Apprise's log, written on its own threads. So one delivery at a time: all messages
# belong to this channel, and contain no other channel's secret.
_apprise_turn = threading.Lock()


@contextmanager
def _captured_log() -> Iterator[list[str]]:
    """The warnings that Apprise logs during the block."""
    logged: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(" ".join(record.getMessage().split()))  # type: ignore[method-assign]
    log = logging.getLogger("apprise")
    # An application's logging may have disabled it, as Django's does with every logger that it does not configure.
    level, disabled = log.level, log.disabled
    log.setLevel(logging.WARNING)
    log.disabled = False
    log.addHandler(handler)
    try:
        yield logged
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.disabled = disabled


def channel(address: str) -> Channel:
    """
    The channel of an address.

    Raises:
        SettingError: This installation can't deliver to the address. The text does not contain it.
    """
    text = address.strip()
    if text in {"log:", "log://"}:
        return LogChannel()
    if text.startswith("webhook+"):
        return WebhookChannel(text)
    if "://" not in text:
        shown = text if text.isalpha() and len(text) <= 12 else "(hidden)"
        raise SettingError(f"{SETTING} has {shown}, but each must be log:, webhook+https://…, or an Apprise URL.")
    if text.startswith(("http://", "https://")):
        raise SettingError(
            f"{SETTING} has a plain {_scheme(text)}:// address (hidden). Write webhook+{_scheme(text)}://… to have "
            "alerts posted there as JSON, or the Apprise URL of the service."
        )
    return AppriseChannel(text)


def channels(addresses: Iterable[str]) -> list[Channel]:
    """
    The channels of ``trace_alert_channels``, with unique labels.

    Raises:
        SettingError: As :func:`channel`.
    """
    made = [channel(address) for address in addresses]
    seen: dict[str, int] = {}
    for one in made:
        seen[one.label] = seen.get(one.label, 0) + 1
        if seen[one.label] > 1:
            one.label = f"{one.label} ({seen[one.label]})"
    return made


def _scheme(address: str) -> str:
    return address.partition("://")[0][:24]


def _host(parts: SplitResult) -> str:
    """Host and port if the address has a real host; an Apprise token in its place is shown as dots."""
    host = (parts.netloc.rpartition("@")[2]).lower()
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    plain = "." in name.strip(".") and ".." not in name and "*" not in name
    return host if plain or name in {"localhost"} or name.startswith("[") else "…"


def _error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _scrub(text: str, address: str) -> str:
    """The text without any part of the address that could be a secret, cut to fit a page."""
    parts = urlsplit(address)
    secrets = {parts.password, parts.username, *parts.path.split("/")}
    secrets.update(value for pair in parts.query.split("&") for value in pair.split("=")[1:])
    if "." not in (parts.hostname or "") and parts.hostname != "localhost":
        secrets.add(parts.netloc.rpartition("@")[2].partition(":")[0])
    for secret in sorted((secret for secret in secrets if secret and len(secret) > 2), key=len, reverse=True):
        for form in {secret, unquote(secret)}:
            text = text.replace(form, "…")
    return text if len(text) <= 500 else text[:499] + "…"
