"""
Alert rules: facts from the store go in, readings come out. Pure; nothing here waits, writes or keeps state.

A rule's function looks at :class:`Facts` and yields a :class:`Reading` for each subject (a leak, a worker, a task's
name) that has a value worth comparing. Whether a value *fires*, for how long and whom it pages is decided by
:class:`~celery_trace.alerting.engine.AlertEngine`. To add a rule: one function, and one row in :data:`KINDS` that names
the facts the function reads. The engine fetches those facts, as far back as the rule's ``window``.

``trace_alert_rules`` is a list of mappings; each names a ``rule`` and overrides what it likes of that rule's
defaults. :func:`configured` checks them and refuses what it does not know, saying what is allowed.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from urllib.parse import quote

from msgspec import Struct

from celery_trace.heap import forecasting
from celery_trace.model import (
    FailureGroup,
    FailureSummary,
    Forecast,
    Leak,
    Outcome,
    Role,
    Rollup,
    Verdict,
    WorkerView,
    stable_id,
)
from celery_trace.settings import SettingError
from celery_trace.words import (
    duration,
    exact_duration,
    exact_size,
    moment,
    read_bytes,
    read_seconds,
    read_share,
    read_whole,
    size,
    times,
)

SETTING = "trace_alert_rules"
SEVERITIES = ("info", "warning", "critical")

_MIB = 1024 * 1024

# A leaked descriptor, thread or child process has no size of its own, so that it can be compared with `above` it counts
# as what the kernel holds for it at least: an open file or socket about 1 KiB, a thread or a process its kernel stack
# and structures.
_COUNTABLE = {"fds": "descriptors", "threads": "threads", "children": "child processes"}
_WEIGHTS_BYTES = {"fds": 1024, "threads": 32 * 1024, "children": 32 * 1024}


#: What is listed with the workers and is none.
NO_WORKERS = frozenset({Role.WEB, Role.SCRIPT, Role.BEAT})

_MAIN_ROLES = {Role.MAIN, Role.SOLO, Role.THREADS, Role.GREEN}

#: An idle process says something this often, seconds; a shorter silence means nothing.
IDLE_WORD_S = 300.0


class Facts(Struct, frozen=True, kw_only=True):
    """
    What the rules look at: one reading of the store.

    ``groups`` and ``losses`` are at least those that were active within the longest window of a rule, ``rollups``
    those of the buckets that reach into it. ``leaks`` are those whose verdict is in. ``dropped_records`` counts what
    the spools dropped and nobody was told of. A fact that no rule in force needs is not fetched.
    """

    now_s: float
    leaks: list[Leak] = []
    workers: list[WorkerView] = []
    forecasts: list[Forecast] = []
    groups: list[FailureGroup] = []
    losses: list[FailureSummary] = []
    rollups: list[Rollup] = []
    dropped_records: int = 0


class Reading(NamedTuple):
    """The value of one subject under one rule."""

    subject: str  # identifies it among the rule's subjects; shown
    value: float  # in the rule's unit
    text: str  # one sentence for a person
    link: str = ""  # where to look, a path on the monitor


class Rule(Struct, frozen=True, kw_only=True):
    """
    A checked rule. All times in seconds.

    It fires once a reading's value has been greater than ``above`` for ``for_s``. It is over once the value has
    stayed at or under ``clear_below`` (a share of ``above``) for ``hold_s``: between the two nothing changes, so that
    a value that dances on the line pages once.
    """

    rule: str
    name: str
    above: float
    severity: str = "warning"
    for_s: float = 0.0
    hold_s: float = 600.0
    clear: float = 0.8
    repeat_s: float = 4 * 3600.0
    window_s: float = 0.0
    runs: int = 0
    names: tuple[str, ...] = ()

    @property
    def clear_below(self) -> float:
        """The value at or under which a firing alert may end, in the rule's unit."""
        return self.above * self.clear

    def wants(self, name: str) -> bool:
        """Whether the rule looks at this name at all; patterns as in the shell, any of them."""
        return not self.names or any(fnmatchcase(name, pattern) for pattern in self.names)


Reader = Callable[[Facts, Rule], Iterator[Reading]]


def holder_of(path: Sequence[str]) -> str:
    """
    What holds a leak, to the attribute: ``shop.tasks._receipts (list)``.

    Args:
        path: ``retained_by`` of a leak, root first.
    """
    if not path:
        return ""
    name = path[0].partition(" (")[0]
    kind = ""
    for step in path[1:]:
        attribute, colon, what = step.partition(": ")
        if not colon or attribute.startswith("["):  # a key is data
            break
        name, kind = f"{name}.{attribute}", what.partition("[")[0]
    return f"{name} ({kind})" if kind else name


# --- the shipped rules ----------------------------------------------------------------------------------


def _leak(facts: Facts, rule: Rule) -> Iterator[Reading]:
    """A task keeps more than ``above`` bytes a run, seen over at least ``runs`` runs, and the verdict is in."""
    for leak in facts.leaks:
        if leak.verdict is not Verdict.LEAKING or leak.runs < rule.runs or not rule.wants(leak.name):
            continue
        countable = _COUNTABLE.get(leak.resource)
        amount = f"{leak.kept_blocks_per_run:.3g} {countable}" if countable else size(leak.kept_bytes_per_run)
        no_line = f"native memory ({leak.resource or 'malloc'})" if leak.native else "a line not found yet"
        where = f"{leak.file}:{leak.line}" if leak.file else no_line
        holder = holder_of(leak.retained_by)
        held = f", held by {holder}" if holder else ", its holder was not found" if leak.note else ""
        began = f" It began with release {leak.began_with}" if leak.began_with else ""
        began += (f", {moment(leak.began_at)}" if leak.began_at else "") + "." if began else ""
        yield Reading(
            # A line that is found later is no other leak.
            subject=f"{leak.kind} {leak.name} at {no_line if leak.native else where}",
            value=leak.kept_bytes_per_run + leak.kept_blocks_per_run * _WEIGHTS_BYTES.get(leak.resource, 0),
            text=f"{leak.kind} {leak.name} keeps {amount} each run at {where} over {leak.runs} runs{held}.{began}",
            link=f"leaks/{leak.id}",
        )


def _process_memory(facts: Facts, rule: Rule) -> Iterator[Reading]:
    """
    A living process of a worker holds more than ``above`` bytes of resident memory.

    One subject per worker, its greatest process: children are recycled, and each new pid would page again.
    """
    for worker in facts.workers:
        held = [
            (process.memory.rss_bytes, process)
            for process in worker.processes
            if process.ended_at is None and process.memory is not None
        ]
        if not held or not rule.wants(worker.name):
            continue
        rss_bytes, process = max(held, key=lambda pair: pair[0])
        running = f", running {process.running}" if process.running else ""
        others = sum(1 for other_bytes, _ in held if other_bytes > rule.above) - 1
        more = f", and {others} more of its processes are over it" if others > 0 else ""
        yield Reading(
            subject=worker.name or worker.host,
            value=float(rss_bytes),
            text=f"Process {process.pid} of {worker.name or worker.host} holds {size(rss_bytes)}{running}; "
            f"allowed are {size(rule.above)}{more}.",
            link=f"workers?worker={_quote(worker.name or worker.host)}",
        )


def _process_limit(facts: Facts, rule: Rule) -> Iterator[Reading]:
    """
    A process, or the container that it runs in, grows and will have used more than the share ``above`` of its limit
    within ``window_s``.

    One subject per worker and limit, the process that reaches it first.
    """
    for forecast in facts.forecasts:
        if not rule.wants(forecast.worker):
            continue
        later_bytes = forecast.used_bytes + forecast.bytes_per_hour / 3600 * rule.window_s
        yield Reading(
            subject=f"{forecast.worker} ({forecast.limit})",
            value=later_bytes / forecast.limit_bytes,
            text=f"{forecasting.who(forecast)} {forecasting.sentence(forecast)}; now {size(forecast.used_bytes)}.",
            link=f"workers?worker={_quote(forecast.worker)}",
        )


def _failure_rate(facts: Facts, rule: Rule) -> Iterator[Reading]:
    """More than the share ``above`` of a name's runs failed in the last ``window_s``, of at least ``runs`` runs."""
    since_s = facts.now_s - rule.window_s
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for rollup in facts.rollups:
        if rollup.bucket_s + Rollup.BUCKET_S > since_s and rule.wants(rollup.name):
            total = totals[str(rollup.kind), rollup.name]
            total[0] += rollup.runs
            total[1] += rollup.failed
    for (kind, name), (runs, failed) in totals.items():
        if failed and runs >= rule.runs:
            yield Reading(
                subject=f"{kind} {name}",
                value=failed / runs,
                text=f"{failed} of {runs} runs of {kind} {name} failed in the last {duration(rule.window_s)} "
                f"({failed / runs:.0%}; allowed are {rule.above:.0%}).",
                link=f"failures?name={_quote(name)}",
            )


def _new_failure(facts: Facts, rule: Rule) -> Iterator[Reading]:
    """A failure that was not known before, or that came back after it was resolved; ``above`` counts occurrences."""
    for group in facts.groups:
        if group.outcome in {Outcome.REVOKED, Outcome.LOST}:  # somebody wanted it to end; the rule lost tells of it
            continue
        newly = group.first_seen if group.state == "new" else group.last_seen
        if group.state not in {"new", "regressed"} or facts.now_s - newly > rule.window_s or not rule.wants(group.name):
            continue
        what = f"{group.exception.type}: {_clean(group.exception.message, 160)}" if group.exception else group.outcome
        what_type = group.exception.type if group.exception else str(group.outcome)
        came = "New failure" if group.state == "new" else "A resolved failure is back"
        yield Reading(
            subject=f"{group.kind} {group.name}: {what_type} ({group.fingerprint[:8]})",
            value=float(group.count),
            text=f"{came} in {group.kind} {group.name}: {what} ({times(group.count)}).",
            link=f"failures/{group.latest_id}",
        )


def _lost(facts: Facts, rule: Rule) -> Iterator[Reading]:
    """More than ``above`` runs of a name were lost to a kill (kernel, operator, crash) in the last ``window_s``."""
    by_name: dict[tuple[str, str], list[FailureSummary]] = defaultdict(list)
    for failure in facts.losses:
        recent = facts.now_s - failure.at <= rule.window_s
        if failure.outcome is Outcome.LOST and recent and rule.wants(failure.name):
            by_name[failure.kind, failure.name].append(failure)
    for (kind, name), failures in by_name.items():
        latest = max(failures, key=lambda failure: failure.at)
        # A message that is delivered again after each kill is one failure, and no less of an alarm.
        killed = sum(max(1, failure.kills) for failure in failures)
        where = latest.worker or latest.hostname
        yield Reading(
            subject=f"{kind} {name}",
            value=float(killed),
            text=f"{kind} {name} was killed while it ran ({times(killed)} in {duration(rule.window_s)}), "
            f"last on {where or 'an unknown host'}, pid {latest.pid}.",
            link=f"failures/{latest.id}",
        )


def _spool_dropping(facts: Facts, rule: Rule) -> Iterator[Reading]:
    """More than ``above`` records were dropped because the spool was full."""
    del rule
    if facts.dropped_records > 0:
        yield Reading(
            subject="spool",
            value=float(facts.dropped_records),
            text=f"The spool was full and {facts.dropped_records} records were dropped. See whether the collector runs "
            "and the store answers (celery trace doctor), or raise trace_spool_bytes.",
            link="",
        )


def _worker_silent(facts: Facts, rule: Rule) -> Iterator[Reading]:
    """
    A worker was killed, or nothing was heard of it for more than ``above`` seconds; it did not say goodbye.

    After ``window_s`` it counts as gone for good, and no longer as silent.
    """
    for worker in facts.workers:
        if worker.role in NO_WORKERS or not worker.processes or not rule.wants(worker.name):
            continue
        speaks_for_it = [process for process in worker.processes if process.role in _MAIN_ROLES] or worker.processes
        main = max(speaks_for_it, key=lambda process: process.started_at)
        killed = main.ended_how == "killed"
        silent_s = facts.now_s - worker.last_seen
        if silent_s > rule.window_s or (main.ended_at is not None and not killed):
            continue
        name = worker.name or worker.host
        yield Reading(
            subject=name,
            value=max(silent_s, rule.above + 1) if killed else silent_s,
            text=f"Worker {name} (pid {main.pid}) was killed and is not back."
            if killed
            else f"Worker {name} has been silent for {duration(silent_s)} and did not say that it would stop.",
            link=f"workers?worker={_quote(name)}",
        )


class RuleKind(NamedTuple):
    """One row of :data:`KINDS`."""

    name: str
    read: Reader
    needs: tuple[str, ...]  # the fields of :class:`Facts` that ``read`` looks at; it can't read any other
    unit: str  # of ``above``: "bytes", "share", "count", "seconds"
    shipped: Rule
    meaning: str
    happens: bool = False  # it tells of something that happened and cannot be undone: its end is not announced
    at_zero: str = ""  # the meaning where ``above`` is 0, in better words
    above_at_least: float = 0.0  # ``above`` must be greater than this, in the unit
    why_at_least: str = ""


KINDS: tuple[RuleKind, ...] = (
    RuleKind(
        "leak",
        _leak,
        ("leaks",),
        "bytes",
        Rule(rule="leak", name="leak", above=512, runs=20, hold_s=900, severity="warning"),
        "A task, request or block keeps more than `above` a run, over at least `runs` runs, and the verdict is leaking",
    ),
    RuleKind(
        "process_memory",
        _process_memory,
        ("workers",),
        "bytes",
        Rule(rule="process_memory", name="process_memory", above=1024 * _MIB, for_s=60, clear=0.9, severity="warning"),
        "A process holds more than `above` of resident memory",
    ),
    RuleKind(
        "process_limit",
        _process_limit,
        ("forecasts",),
        "share",
        Rule(
            rule="process_limit",
            name="process_limit",
            above=0.99,
            window_s=4 * 3600,
            for_s=60,
            clear=0.9,
            severity="warning",
        ),
        "A growing process will have used more than `above` of its limit (worker_max_memory_per_child, its container's "
        "or the machine's memory) within `window`",
    ),
    RuleKind(
        "failure_rate",
        _failure_rate,
        ("rollups",),
        "share",
        Rule(rule="failure_rate", name="failure_rate", above=0.2, window_s=900, runs=20, for_s=60, severity="warning"),
        "More than `above` of a name's runs failed within `window`, of at least `runs` runs",
    ),
    RuleKind(
        "new_failure",
        _new_failure,
        ("groups",),
        "count",
        Rule(rule="new_failure", name="new_failure", above=0, window_s=900, hold_s=0, severity="info"),
        "A failure group that was not known before or is back after it was resolved, more than `above` times",
        happens=True,
        at_zero="A failure group appears that was not known before, or is back after it was resolved",
    ),
    RuleKind(
        "lost",
        _lost,
        ("losses",),
        "count",
        Rule(rule="lost", name="lost", above=0, window_s=900, hold_s=0, severity="critical"),
        "More than `above` runs of a name were lost to a kill within `window`",
        happens=True,
        at_zero="A run was lost to a kill (out of memory, SIGKILL, a crash) within `window`",
    ),
    RuleKind(
        "spool_dropping",
        _spool_dropping,
        ("dropped_records",),
        "count",
        Rule(rule="spool_dropping", name="spool_dropping", above=0, window_s=900, hold_s=0, severity="critical"),
        "More than `above` records were dropped by a full spool within `window`",
        at_zero="A record was dropped by a full spool within `window`",
    ),
    RuleKind(
        "worker_silent",
        _worker_silent,
        ("workers",),
        "seconds",
        Rule(
            rule="worker_silent",
            name="worker_silent",
            above=900,
            window_s=86400,
            hold_s=0,
            clear=1,
            severity="critical",
        ),
        "A worker was killed, or said nothing for more than `above`, without goodbye; given up after `window`",
        above_at_least=IDLE_WORD_S,
        why_at_least="an idle worker reports no more often than that",
    ),
)

#: What holds when ``trace_alert_rules`` is not set.
SHIPPED: tuple[Rule, ...] = tuple(kind.shipped for kind in KINDS)


class _Needed:
    """
    The facts that one kind of rule needs. Any other is refused.

    The engine fetches only what the rules in force need. Without this check, a rule that reads a fact it does not name
    would work beside another rule that names it, and be silent alone.
    """

    def __init__(self, facts: Facts, kind: RuleKind) -> None:
        self._facts = facts
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        if name != "now_s" and name not in self._kind.needs:
            raise AttributeError(
                f"The alert rule {self._kind.name!r} reads the fact {name!r}, which its row in KINDS does not name. "
                f"Add {name!r} to `needs` there."
            )
        return getattr(self._facts, name)


def evaluate(rule: Rule, facts: Facts) -> list[Reading]:
    """
    All readings of one rule, the greatest value first; one for each subject.

    Raises:
        AttributeError: The rule's function reads a fact that its row in :data:`KINDS` does not name.
    """
    kind = kind_of(rule)
    needed: Any = _Needed(facts, kind)
    readings: dict[str, Reading] = {}
    for found in kind.read(needed, rule):
        reading = found._replace(subject=_clean(found.subject, 200), text=_clean(found.text, 600))
        known = readings.get(reading.subject)
        if known is None or reading.value > known.value:
            readings[reading.subject] = reading
    return sorted(readings.values(), key=lambda reading: (-reading.value, reading.subject))


def kind_of(rule: Rule) -> RuleKind:
    """The row of :data:`KINDS` that a rule was made from."""
    return _kinds()[rule.rule]


def _kinds() -> dict[str, RuleKind]:
    return {kind.name: kind for kind in KINDS}


def _clean(text: str, most: int) -> str:
    """
    One printable line of a bounded length: it goes to logs, mails and terminals, and parts of it come from a task.

    What is cut is still told apart: a digest of the whole stands at its end.
    """
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= most else f"{line[: most - 12]}… {stable_id(line)[:8]}"


def _quote(text: str) -> str:
    return quote(text, safe="")


def describe(rule: Rule) -> dict[str, Any]:
    """A rule as pages and scripts show it: its values, the unit of ``above`` and what it means."""
    kind = kind_of(rule)
    return {
        **{field: getattr(rule, field) for field in rule.__struct_fields__},
        "unit": kind.unit,
        "meaning": kind.meaning,
    }


def sentence(rule: Rule) -> str:
    """When a rule fires, in words with its own values."""
    kind = kind_of(rule)
    values = {"above": _in_words(kind.unit, rule.above), "window": duration(rule.window_s), "runs": str(rule.runs)}
    meaning = kind.at_zero if kind.at_zero and not rule.above else kind.meaning
    text = re.sub(r"`(\w+)`", lambda found: values[found[1]], meaning)
    if rule.for_s:
        text += f", for {duration(rule.for_s)}"
    return text


def _in_words(unit: str, value: float) -> str:
    if unit == "bytes":
        return size(value)
    if unit == "seconds":
        return duration(value)
    return f"{value * 100:g}%" if unit == "share" else f"{value:g}"


def written(rule: Rule) -> dict[str, str]:
    """A rule as somebody would write it: text by key, in the order of a form; :func:`configured` reads it back."""
    kind = kind_of(rule)
    above = {"bytes": exact_size, "seconds": exact_duration, "share": _exact_share}.get(kind.unit, _exact_count)
    found = {"rule": rule.rule, "name": rule.name, "above": above(rule.above), "severity": rule.severity}
    found |= {
        "for": exact_duration(rule.for_s),
        "hold": exact_duration(rule.hold_s),
        "clear": _exact_share(rule.clear),
        "repeat": exact_duration(rule.repeat_s),
    }
    if kind.shipped.window_s:
        found["window"] = exact_duration(rule.window_s)
    if kind.shipped.runs:
        found["runs"] = str(rule.runs)
    found["names"] = ", ".join(rule.names)
    return found


def _exact_share(value: float) -> str:
    return f"{round(value * 100, 10):g}%"


def _exact_count(value: float) -> str:
    return str(int(value))


class StoredRules(Struct, frozen=True):
    """Rules that somebody set in the monitor; they stand in for the configured ones."""

    entries: list[dict[str, Any]]
    by: str = ""
    at: float = 0.0


def in_force(setting: Iterable[Mapping[str, Any]] | None, stored: StoredRules | None) -> tuple[Rule, ...]:
    """
    The rules that hold: what somebody set in the monitor, or else what is configured.

    Raises:
        SettingError: They can't be used; those of the monitor may have been set by a newer version.
    """
    return configured(setting if stored is None else stored.entries)


# --- configuration --------------------------------------------------------------------------------------


class _Key(NamedTuple):
    field: str
    parse: Callable[[Any], Any]
    allowed: str


_TIME = "a time: seconds, or text such as '30s', '10m', '4h', '2d' (at most 366d)"
_UNITS: dict[str, _Key] = {
    "bytes": _Key("above", read_bytes, "a size: bytes, or text such as '512 B', '100 KiB', '1.5 GiB'"),
    "share": _Key("above", read_share, "a share: a number from 0 to 1, or text such as '20%'"),
    "count": _Key("above", read_whole, "a whole number, 0 or greater"),
    "seconds": _Key("above", read_seconds, _TIME),
}


def _patterns(value: Any) -> tuple[str, ...] | None:
    parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if isinstance(parts, list | tuple) and parts and all(isinstance(part, str) and part for part in parts):
        return tuple(parts)
    return None


_KEYS: dict[str, _Key] = {
    "name": _Key(
        "name",
        lambda value: value if isinstance(value, str) and re.fullmatch(r"[\w.:-]{1,64}", value) else None,
        "a short name of letters, digits, '_', '-', '.' and ':' (at most 64)",
    ),
    "severity": _Key(
        "severity", lambda value: value if value in SEVERITIES else None, "one of " + ", ".join(SEVERITIES)
    ),
    "for": _Key("for_s", read_seconds, _TIME),
    "hold": _Key("hold_s", read_seconds, _TIME),
    "repeat": _Key("repeat_s", read_seconds, _TIME),
    "window": _Key("window_s", read_seconds, _TIME),
    "clear": _Key("clear", read_share, "a share of `above`: a number from 0 to 1, or text such as '80%'"),
    "runs": _Key("runs", read_whole, "a whole number, 0 or greater"),
    "names": _Key("names", _patterns, "a pattern such as 'shop.*', or a list of patterns"),
}


def configured(entries: Iterable[Mapping[str, Any]] | None) -> tuple[Rule, ...]:
    """
    The rules of ``trace_alert_rules``; the shipped ones when it is not set.

    The entry ``{"rule": "shipped"}`` stands for all shipped rules, so that a list can add to them.

    Raises:
        SettingError: An entry names no rule, has a key or a value that is not allowed, or two share a name.
    """
    if entries is None:
        return SHIPPED
    rules: list[Rule] = []
    for number, entry in enumerate(entries, 1):
        place = f"{SETTING}[{number}]"
        if entry.get("rule") == "shipped":
            if len(entry) > 1:
                raise SettingError(f"{place}: 'shipped' stands for all shipped rules and takes no other key.")
            rules.extend(SHIPPED)
        else:
            rules.append(_checked(place, entry))
    seen: dict[str, int] = {}
    for rule in rules:
        seen[rule.name] = seen.get(rule.name, 0) + 1
    twice = [name for name, count in seen.items() if count > 1]
    if twice:
        raise SettingError(
            f"{SETTING} has {len(rules)} rules of which {seen[twice[0]]} are named {twice[0]!r}. "
            "Their alerts could not be told apart; give each its own 'name'."
        )
    return tuple(rules)


def _checked(place: str, entry: Mapping[str, Any]) -> Rule:
    kinds = _kinds()
    kind = kinds.get(str(entry.get("rule")))
    if kind is None:
        hint = _near(str(entry.get("rule")), kinds)
        raise SettingError(
            f"{place}: {entry.get('rule')!r} is no rule.{hint} "
            f"Rules are: {', '.join(kinds)}; or shipped for all of them."
        )
    keys = {"above": _UNITS[kind.unit], **_KEYS}
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "rule":
            continue
        known = keys.get(key)
        if known is None:
            raise SettingError(
                f"{place}: {key!r} is no key of the rule {kind.name}.{_near(str(key), keys)} "
                f"Keys are: rule, {', '.join(keys)}."
            )
        checked = known.parse(value)
        if checked is None:
            raise SettingError(
                f"{place}: {key!r} of the rule {kind.name} is {value!r}, but it must be {known.allowed}."
            )
        values[known.field] = checked
    if kind.above_at_least and values.get("above", kind.shipped.above) <= kind.above_at_least:
        raise SettingError(
            f"{place}: 'above' of the rule {kind.name} is {entry['above']!r}, but it must be more than "
            f"{_in_words(kind.unit, kind.above_at_least)}: {kind.why_at_least}."
        )
    defaults = {field: getattr(kind.shipped, field) for field in kind.shipped.__struct_fields__}
    return Rule(**{**defaults, **values})


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f" Did you mean {near[0]!r}?" if near else ""
