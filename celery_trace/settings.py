"""
Every setting, in one table; values are checked once, at start, and frozen.

A setting ``store`` is spelled ``trace_store`` in Celery's configuration, ``CELERY_TRACE_STORE``
in Django's and in the environment. Command line goes over environment over configuration
over default. What is unknown or ill-typed is refused with its name, its value and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.errors import TraceError

#: The environment variable that switches the plugin on; not a setting.
SWITCH = "CELERY_TRACE"

#: Names that only the monitor reads, from the environment alone: a secret has no place in a configuration file.
MONITOR_ONLY = frozenset({"monitor_password", "monitor_token"})


#: Settings that hold passwords, tokens and keys: no error, page or answer of a worker shows their values.
SECRETS = frozenset({"store", "alert_channels", "shell_key"})


class SettingError(TraceError, ValueError):
    """A setting is unknown or its value is not allowed; the text says which, what and what is."""


class Limits(Struct, frozen=True, kw_only=True):
    """How much of the user's values one capture may keep."""

    bytes: int = 256 * 1024
    nodes: int = 4000
    depth: int = 6
    breadth: int = 50
    string: int = 1024


class Settings(Struct, frozen=True, kw_only=True):
    """The checked values. Field names are the setting's name without its prefix."""

    enabled: bool = True
    dir: str = ".celery-trace"
    store: str = ""
    transport: str = "direct"
    memory: str = "auto"
    memory_budget: float = 0.01
    memory_recheck_runs: int = 120
    failures: bool = True
    rejected: bool = False
    black_box: bool = True
    in_app: tuple[str, ...] = ()
    capture_budget: float = 0.01
    capture_bytes: int = 256 * 1024
    capture_nodes: int = 4000
    capture_depth: int = 6
    capture_breadth: int = 50
    capture_string: int = 1024
    redact: tuple[str, ...] = ()
    shell: str = "recreated"
    shell_key: str = ""
    keep_failures: int = 8
    keep_seconds: float = 900.0
    keep_bytes: int = 64 * 1024 * 1024
    spool_bytes: int = 256 * 1024 * 1024
    collector: bool = True
    retention_days: float = 14.0
    retention_runs: int = 1_000_000
    retention_failures: int = 1_000_000
    retention_bytes: int = 2 * 1024 * 1024 * 1024
    alert_channels: tuple[str, ...] = ()
    alert_rules: tuple[Mapping[str, Any], ...] | None = None
    release: str = ""

    @property
    def folder(self) -> Path:
        """``trace_dir`` as an absolute path. It is made, 0700, by who first writes into it."""
        return Path(self.dir).expanduser().absolute()

    @property
    def spool_folder(self) -> Path:
        """Where traced processes append their records."""
        return self.folder / "spool"

    @property
    def store_url(self) -> str:
        """The store as an SQLAlchemy URL, or ``django[:alias]``."""
        return self.store or f"sqlite:///{self.folder / 'trace.db'}"

    @property
    def limits(self) -> Limits:
        """The limits of one capture."""
        return Limits(
            bytes=self.capture_bytes,
            nodes=self.capture_nodes,
            depth=self.capture_depth,
            breadth=self.capture_breadth,
            string=self.capture_string,
        )

    def over(self, **values: Any) -> Settings:
        """The same settings with some values laid over, checked like all others."""
        checked = {name: _BY_NAME[name].parse(value, f"trace_{name}") for name, value in values.items()}
        return replace(self, **checked)


Parser = Callable[[Any, str], Any]


def _refuse(name: str, value: Any, allowed: str) -> SettingError:
    shown = "(hidden)" if name.lower().endswith(tuple(SECRETS)) else repr(value)
    return SettingError(f"{name} is {shown}, but it must be {allowed}.")


def _boolean(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in {"1", "true", "yes", "on"}:
            return True
        if word in {"0", "false", "no", "off", ""}:
            return False
    raise _refuse(name, value, "a boolean: True or False (in the environment 1 or 0)")


def _integer(least: int) -> Parser:
    def parse(value: Any, name: str) -> int:
        allowed = f"a whole number, at least {least}"
        if isinstance(value, bool):
            raise _refuse(name, value, allowed)
        if isinstance(value, str):
            try:
                value = int(value.replace("_", ""))
            except ValueError:
                raise _refuse(name, value, allowed) from None
        if not isinstance(value, int) or value < least:
            raise _refuse(name, value, allowed)
        return value

    return parse


def _number(least: float, most: float) -> Parser:
    def parse(value: Any, name: str) -> float:
        allowed = f"a number from {least:g} to {most:g}"
        try:
            number = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError):
            number = None
        if number is None or not least <= number <= most:
            raise _refuse(name, value, allowed)
        return number

    return parse


def _choice(*words: str) -> Parser:
    def parse(value: Any, name: str) -> str:
        if value not in words:
            raise _refuse(name, value, "one of " + ", ".join(words))
        return str(value)

    return parse


def _text(value: Any, name: str) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise _refuse(name, value, "text")
    return value


def _store(value: Any, name: str) -> str:
    text = _text(value, name)
    if not text or text == "django" or text.startswith("django:") or re.match(r"[a-z0-9_+]+://", text):
        return text
    raise _refuse(name, value, "an SQLAlchemy URL such as sqlite:////var/lib/trace.db, or django, or django:<alias>")


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes):
        parts = tuple(value)
        if all(isinstance(part, str) for part in parts):
            return parts
    raise _refuse(name, value, "a list of texts (in the environment separated by commas)")


def _rules(value: Any, name: str) -> tuple[Mapping[str, Any], ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        import json

        try:
            value = json.loads(value)
        except ValueError:
            raise _refuse(name, value, "a list of rules (in the environment as JSON)") from None
    if isinstance(value, list | tuple) and all(isinstance(rule, Mapping) and "rule" in rule for rule in value):
        return tuple(dict(rule) for rule in value)
    raise _refuse(name, value, "a list of mappings, each with at least the key 'rule'; see docs/alerts.md")


class Setting(NamedTuple):
    """One row of the table: how a value is checked and what it means (in the docs and ``trace doctor``)."""

    name: str
    parse: Parser
    meaning: str


SETTINGS: tuple[Setting, ...] = (
    Setting("enabled", _boolean, "False leaves the worker as if the plugin were not installed"),
    Setting("dir", _text, "Holds spool, SQLite store, shell key and audit log; made with mode 0700"),
    Setting("store", _store, "SQLAlchemy URL, or django[:alias]; by default SQLite in trace_dir"),
    Setting("transport", _choice("direct", "broker"), "How the collector hands records on"),
    Setting("memory", _choice("off", "rss", "auto", "always"), "How memory is measured"),
    Setting("memory_budget", _number(0.0, 1.0), "Share of a process's time that measuring may take in auto"),
    Setting(
        "memory_recheck_runs",
        _integer(1),
        "Runs between a suspicion and its verdict; fewer are faster and less sure",
    ),
    Setting("failures", _boolean, "Capture failures"),
    Setting("rejected", _boolean, "Record runs that raised Ignore or Reject too"),
    Setting(
        "black_box", _boolean, "Sample each process's stack up to ten times a second, so that a killed task has one"
    ),
    Setting("in_app", _texts, "Further folders or module prefixes whose frames count as the user's own"),
    Setting(
        "capture_budget", _number(0.0, 1.0), "Share of a process's time for capturing repeats of a failure in full"
    ),
    Setting("capture_bytes", _integer(1024), "Most bytes of one capture"),
    Setting("capture_nodes", _integer(16), "Most values of one capture"),
    Setting("capture_depth", _integer(1), "How deep a value is followed"),
    Setting("capture_breadth", _integer(1), "How many items of one container are kept"),
    Setting("capture_string", _integer(16), "How many characters of one text are kept"),
    Setting("redact", _texts, "Further names to redact; the built-in ones always apply"),
    Setting("shell", _choice("off", "recreated", "live"), "What the shell may open"),
    Setting("shell_key", _text, "Secret that signs live commands: the key itself, or file:PATH"),
    Setting("keep_failures", _integer(0), "How many failures the live keeper holds in a process"),
    Setting("keep_seconds", _number(0.0, 7 * 86400.0), "For how long it holds one"),
    Setting("keep_bytes", _integer(0), "Memory that the held failures may take, estimated"),
    Setting("spool_bytes", _integer(64 * 1024), "Most bytes that wait in the spool of one host"),
    Setting("collector", _boolean, "Whether the worker and the monitor start the collector"),
    Setting("retention_days", _number(0.0, 36500.0), "Age at which records are pruned"),
    Setting("retention_runs", _integer(0), "Most single runs that the store keeps"),
    Setting("retention_failures", _integer(0), "Most failures that the store keeps"),
    Setting("retention_bytes", _integer(0), "Most bytes that failures take in the store; 0 for no such bound"),
    Setting("alert_channels", _texts, "Where alerts go: log:, webhook+https://…, and Apprise URLs"),
    Setting("alert_rules", _rules, "Alert rules; by default the shipped ones"),
    Setting("release", _text, "What is deployed, such as a version or a commit; plots mark where it changes"),
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}


def _names(prefix: str, source: Iterable[str]) -> dict[str, str]:
    return {key[len(prefix) :].lower(): key for key in source if isinstance(key, str) and key.startswith(prefix)}


def _without_secrets(names: dict[str, str]) -> dict[str, str]:
    return {name: key for name, key in names.items() if name not in MONITOR_ONLY}


def load(
    configuration: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    command_line: Mapping[str, Any] | None = None,
) -> Settings:
    """
    Lay the sources over each other and check every value.

    Args:
        configuration: Celery's or Django's settings; keys ``trace_*`` or ``CELERY_TRACE_*`` count, others are ignored.
        environment: ``CELERY_TRACE_*``; ``os.environ`` if None.
        command_line: Values by their bare names.

    Raises:
        SettingError: A name that does not exist, or a value that is not allowed.
    """
    environment = os.environ if environment is None else environment
    configuration = configuration or {}
    spellings: list[tuple[Mapping[str, Any], dict[str, str]]] = [
        (configuration, _names("trace_", configuration)),
        (configuration, _names("CELERY_TRACE_", configuration)),
        (environment, _without_secrets(_names("CELERY_TRACE_", environment))),
        (command_line or {}, {name: name for name in command_line or {}}),
    ]
    values: dict[str, Any] = {}
    for source, names in spellings:
        for name, key in names.items():
            setting = _BY_NAME.get(name)
            if setting is None:
                near = difflib.get_close_matches(name, _BY_NAME, 1)
                hint = f" Did you mean {key[: -len(name)]}{_cased(near[0], key)}?" if near else ""
                known = ", ".join(f"trace_{known}" for known in _BY_NAME)
                raise SettingError(f"{key} is no setting of celery-trace.{hint} Known are: {known}.")
            values[name] = setting.parse(source[key], key)
    return Settings(**values)


def _cased(name: str, like: str) -> str:
    return name.upper() if like.isupper() else name


def from_app(app: Any, command_line: Mapping[str, Any] | None = None) -> Settings:
    """
    The settings of a Celery app: its configuration, then the environment, then the command line.

    With ``namespace="CELERY"`` Django's ``CELERY_TRACE_STORE`` is ``trace_store`` here.

    Raises:
        SettingError: As :func:`load`.
    """
    configuration: dict[str, Any] = {}
    for mapping in reversed(list(getattr(app.conf, "maps", [app.conf]))):
        for key in list(mapping):
            if isinstance(key, str) and key.startswith(("trace_", "CELERY_TRACE_")):
                configuration[key] = mapping[key]
    return load(configuration, command_line=command_line)
