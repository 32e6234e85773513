"""
All settings, in one table; values are checked once, at start, and frozen.

A setting ``store`` is spelled ``trace_store`` in Celery's configuration, ``CELERY_TRACE_STORE``
in Django's and in the environment. The command line overrides the environment, which overrides the configuration,
which overrides the default. Unknown names and invalid values are refused with what is allowed.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from celery_trace.errors import TraceError
from celery_trace.text.parse import read_bytes, read_seconds

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger("celery_trace")

#: The environment variable that switches the plugin on; not a setting.
SWITCH = "CELERY_TRACE"

#: Names that only the monitor reads, from the environment alone: a secret does not belong in a configuration file.
MONITOR_ONLY = frozenset({"monitor_password", "monitor_token"})


#: Settings with passwords, tokens and keys: no error, page or worker's reply shows their values.
SECRETS = frozenset({"store", "alert_channels", "shell_key"})


MIB = 1024 * 1024


class SettingError(TraceError, ValueError):
    """A setting is unknown or its value is invalid; the text has the name, the value and what is allowed."""


class Limits(Struct, frozen=True, kw_only=True):
    """How much of the user's values one capture may keep."""

    bytes: int = 256 * 1024
    nodes: int = 4000
    depth: int = 6
    breadth: int = 50
    string: int = 1024


def means(text: str) -> Meta:
    """What a setting does, for the docs and ``trace doctor``."""
    return Meta(description=text)


def at_least(number: int) -> Meta:
    """A whole number's lower bound."""
    return Meta(ge=number, extra={"allowed": f"a whole number, at least {number}"})


def between(least: float, most: float) -> Meta:
    """A number's bounds."""
    return Meta(ge=least, le=most, extra={"allowed": f"a number from {least:g} to {most:g}"})


STORE = Meta(
    pattern=r"^(\Z|django(\Z|:)|[a-z0-9_+]+://)",
    extra={"allowed": "an SQLAlchemy URL such as sqlite:////var/lib/trace.db, or django, or django:<alias>"},
)


SOURCE_URL = Meta(
    pattern=(
        r"^(\Z|(https?|vscode|vscodium|vscode-insiders|cursor|windsurf|zed|idea|pycharm|jetbrains|subl|txmt|mvim|emacs)"
        r"://([^{}\s<>\"'`\\]|\{(file|path|line|release)\})+\Z)"
    ),
    extra={
        "allowed": "an address with {file} or {path}, {line} and {release}, such as vscode://file/{file}:{line} or "
        "https://github.com/me/shop/blob/{release}/{path}#L{line}"
    },
)


class Settings(Struct, frozen=True, kw_only=True):
    """
    The checked values. Field names are the setting's name without its prefix.

    This is the table of all settings: allowed values, meaning and default.
    """

    enabled: Annotated[bool, means("False leaves the worker as if the plugin were not installed")] = True
    dir: Annotated[str, means("Holds spool, SQLite store, shell key and audit log; made with mode 0700")] = (
        ".celery-trace"
    )
    store: Annotated[str, STORE, means("SQLAlchemy URL, or django[:alias]; by default SQLite in trace_dir")] = ""
    transport: Annotated[Literal["direct", "broker"], means("How the collector hands records on")] = "direct"
    memory: Annotated[Literal["off", "rss", "auto", "always"], means("How memory is measured")] = "auto"
    memory_budget: Annotated[
        float, between(0.0, 1.0), means("Share of a process's time that measuring may take in auto")
    ] = 0.01
    memory_recheck_runs: Annotated[
        int, at_least(1), means("Runs between a suspicion and its verdict; fewer are faster and less sure")
    ] = 120
    failures: Annotated[bool, means("Capture failures")] = True
    log_records: Annotated[
        int,
        Meta(ge=0, le=500, extra={"allowed": "a whole number from 0 to 500"}),
        means("How many log records of a run its failure shows; 0 to keep none"),
    ] = 50
    rejected: Annotated[bool, means("Record runs that raised Ignore or Reject too")] = False
    black_box: Annotated[
        bool, means("Sample each process's stack up to ten times a second, for killed tasks and for profiles of time")
    ] = True
    stuck_seconds: Annotated[
        float,
        between(1.0, 7 * 86400.0),
        means("A run may be stuck once it has lasted so long, and three times its 99th percentile, without progress"),
    ] = 30.0
    stack_signal: Annotated[
        str,
        Meta(
            pattern=r"^(SIGURG|SIGWINCH)?\Z",
            extra={"allowed": "SIGURG, SIGWINCH or empty; they are ignored by default, and Celery has no use for them"},
        ),
        means("The signal that reads the stack of a run while C code blocks the interpreter; empty for none"),
    ] = "SIGURG"
    in_app: Annotated[
        tuple[str, ...], means("Further folders or module prefixes that count as the user's own code")
    ] = ()
    capture_budget: Annotated[
        float, between(0.0, 1.0), means("Share of a process's time for capturing repeats of a failure in full")
    ] = 0.01
    capture_bytes: Annotated[int, at_least(1024), means("Most bytes of one capture")] = 256 * 1024
    capture_nodes: Annotated[int, at_least(16), means("Most values of one capture")] = 4000
    capture_depth: Annotated[int, at_least(1), means("How deep a value is followed")] = 6
    capture_breadth: Annotated[int, at_least(1), means("How many items of one container are kept")] = 50
    capture_string: Annotated[int, at_least(16), means("How many characters of one text are kept")] = 1024
    redact: Annotated[tuple[str, ...], means("Further names to redact; the built-in ones always apply")] = ()
    shell: Annotated[Literal["off", "recreated", "live"], means("What the shell may open")] = "recreated"
    shell_key: Annotated[str, means("Secret that signs live commands: the key itself, or file:PATH")] = ""
    keep_failures: Annotated[int, at_least(0), means("How many failures the live keeper holds in a process")] = 8
    keep_seconds: Annotated[float, between(0.0, 7 * 86400.0), means("For how long it holds one")] = 900.0
    keep_bytes: Annotated[int, at_least(0), means("Memory that the held failures may take, estimated")] = 64 * MIB
    spool_bytes: Annotated[int, at_least(64 * 1024), means("Most bytes that wait in the spool of one host")] = 256 * MIB
    collector: Annotated[bool, means("Whether the worker and the monitor start the collector")] = True
    retention_days: Annotated[float, between(0.0, 36500.0), means("Age at which records are pruned")] = 14.0
    retention_runs: Annotated[int, at_least(0), means("Most single runs that the store keeps")] = 1_000_000
    retention_failures: Annotated[int, at_least(0), means("Most failures that the store keeps")] = 1_000_000
    retention_bytes: Annotated[
        int, at_least(0), means("Most bytes that failures take in the store; 0 for no such bound")
    ] = 2048 * MIB
    alert_channels: Annotated[tuple[str, ...], means("Where alerts go: log:, webhook+https://…, and Apprise URLs")] = ()
    alert_rules: Annotated[
        tuple[Mapping[str, object], ...] | None, means("Alert rules; by default the shipped ones")
    ] = None
    source_url: Annotated[
        str, SOURCE_URL, means("Where pages link a line of source: an editor or a forge; {path} is below the project")
    ] = ""
    release: Annotated[str, means("What is deployed, such as a version or a commit; plots mark where it changes")] = ""

    @property
    def folder(self) -> Path:
        """``trace_dir`` as an absolute path. It is made, 0700, on the first write."""
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

    def over(self, **values: object) -> Settings:
        """The same settings with some values replaced, checked like all others."""
        checked = {name: _BY_NAME[name].parse(value, f"trace_{name}") for name, value in values.items()}
        return replace(self, **checked)


class Setting(NamedTuple):
    """A field of :class:`Settings`: how a value is checked and what it means."""

    name: str
    type: object
    meaning: str
    allowed: str

    def parse(self, value: object, name: str) -> object:
        """
        The value as its type.

        Args:
            name: The setting's name in the source of the value.

        Raises:
            SettingError: The value is not allowed.
        """
        try:
            return msgspec.convert(self._prepared(value), self.type, strict=False)
        except ValueError:  # msgspec's own, and JSON's
            shown = "(hidden)" if name.lower().endswith(tuple(SECRETS)) else repr(value)
            raise SettingError(f"{name} is {shown}, but it must be {self.allowed}.") from None

    def _prepared(self, value: object) -> object:
        """A value of an environment or a configuration, in the form that msgspec accepts."""
        kind = get_args(self.type)[0]
        if kind is bool and isinstance(value, str):
            return _BOOLEANS.get(value.strip().lower(), value)
        if kind in (int, float) and isinstance(value, str):
            return _number(self.name, value.strip().replace("_", ""))
        if kind is str and isinstance(value, os.PathLike):
            return os.fspath(value)
        if self.name == "alert_rules":
            return _rules(value)
        if get_origin(kind) is tuple:
            return _parts(value)
        return value


_BOOLEANS = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off", ""), False)


def _number(name: str, text: str) -> float | str:
    found: float | None = None
    if name.endswith("_bytes"):
        found = read_bytes(text)
    elif name.endswith("_seconds"):
        found = read_seconds(text)
    return found if found is not None else text


def _parts(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes) else value


def _rules(value: object) -> object:
    if isinstance(value, str):
        value = msgspec.json.decode(value)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(rule, Mapping) and "rule" in rule for rule in value):
        raise ValueError
    return [dict(rule) for rule in value]


#: What a type allows.
_ALLOWED: dict[object, str] = {
    bool: "a boolean: True or False (in the environment 1 or 0)",
    str: "text",
    tuple[str, ...]: "a list of texts (in the environment separated by commas)",
    tuple[Mapping[str, object], ...] | None: (
        "a list of mappings, each with at least the key 'rule' (in the environment as JSON); see docs/alerts.md"
    ),
}


def _setting(name: str, hint: object) -> Setting:
    kind, *metas = get_args(hint)
    allowed = next((meta.extra["allowed"] for meta in metas if meta.extra), "") or _ALLOWED.get(kind, "")
    return Setting(name, hint, metas[-1].description, allowed or "one of " + ", ".join(get_args(kind)))


SETTINGS: tuple[Setting, ...] = tuple(
    _setting(name, hint) for name, hint in get_type_hints(Settings, include_extras=True).items()
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}


def _names(prefix: str, source: Iterable[str]) -> dict[str, str]:
    return {key[len(prefix) :].lower(): key for key in source if isinstance(key, str) and key.startswith(prefix)}


def _without_secrets(names: dict[str, str]) -> dict[str, str]:
    return {name: key for name, key in names.items() if name not in MONITOR_ONLY}


def load(
    configuration: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    command_line: Mapping[str, object] | None = None,
) -> Settings:
    """
    Merge the sources and check every value. On an interpreter without its lock, ``enabled`` is False.

    Args:
        configuration: Celery's or Django's settings; keys ``trace_*`` or ``CELERY_TRACE_*`` count, others are ignored.
        environment: ``CELERY_TRACE_*``; ``os.environ`` if None.
        command_line: Values by their bare names.

    Raises:
        SettingError: An unknown name, or an invalid value.
    """
    environment = os.environ if environment is None else environment
    configuration = configuration or {}
    spellings: list[tuple[Mapping[str, object], dict[str, str]]] = [
        (configuration, _names("trace_", configuration)),
        (configuration, _names("CELERY_TRACE_", configuration)),
        (environment, _without_secrets(_names("CELERY_TRACE_", environment))),
        (command_line or {}, {name: name for name in command_line or {}}),
    ]
    values: dict[str, object] = {}
    for source, names in spellings:
        for name, key in names.items():
            setting = _BY_NAME.get(name)
            if setting is None:
                near = difflib.get_close_matches(name, _BY_NAME, 1)
                hint = f" Did you mean {key[: -len(name)]}{_cased(near[0], key)}?" if near else ""
                known = ", ".join(f"trace_{known}" for known in _BY_NAME)
                raise SettingError(f"Unknown setting {key}.{hint} Known are: {known}.")
            values[name] = setting.parse(source[key], key)
    loaded = replace(Settings(), **values)
    if loaded.enabled and _runs_without_lock():
        _say_that_nothing_is_traced()
        return replace(loaded, enabled=False)
    return loaded


def _runs_without_lock() -> bool:
    """Whether this is a free-threaded interpreter with its lock off; since Python 3.13 there are such builds."""
    is_on: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return not is_on()


@functools.cache
def _say_that_nothing_is_traced() -> None:
    logger.warning(
        "celery-trace: nothing is traced, as this free-threaded Python runs without the global interpreter lock, on "
        "which it relies. Use the standard build, or PYTHON_GIL=1."
    )


def _cased(name: str, like: str) -> str:
    return name.upper() if like.isupper() else name


def from_app(app: Celery, command_line: Mapping[str, object] | None = None) -> Settings:
    """
    The settings of a Celery app: its configuration, then the environment, then the command line.

    With ``namespace="CELERY"`` Django's ``CELERY_TRACE_STORE`` is ``trace_store`` here.

    Raises:
        SettingError: As :func:`load`.
    """
    configuration: dict[str, object] = {}
    for mapping in reversed(list(getattr(app.conf, "maps", [app.conf]))):
        for key in list(mapping):
            if isinstance(key, str) and key.startswith(("trace_", "CELERY_TRACE_")):
                configuration[key] = mapping[key]
    return load(configuration, command_line=command_line)
