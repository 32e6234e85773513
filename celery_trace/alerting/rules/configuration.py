"""
The active rules: ``trace_alert_rules``, or those set in the monitor; and rules as text.

``trace_alert_rules`` is a list of mappings; each names a ``rule`` and overrides some of its defaults.
:func:`configured` checks them; its errors list what is allowed.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from celery_trace.alerting.rules.kinds import SHIPPED, kind_of, kinds_by_name
from celery_trace.alerting.rules.rule import SEVERITIES, Rule, RuleKind
from celery_trace.alerting.rules.units import TIME
from celery_trace.settings import SettingError
from celery_trace.text.format import duration
from celery_trace.text.parse import read_seconds, read_share, read_whole, written_seconds, written_share

SETTING = "trace_alert_rules"


def describe(rule: Rule) -> dict[str, object]:
    """A rule as pages and scripts show it: its values, the unit of ``above`` and what it means."""
    kind = kind_of(rule)
    return {
        **{field: getattr(rule, field) for field in rule.__struct_fields__},
        "unit": kind.unit.name,
        "meaning": kind.meaning,
    }


def sentence(rule: Rule) -> str:
    """When a rule fires, as a sentence with its values."""
    kind = kind_of(rule)
    values = {"above": kind.unit.in_words(rule.above), "window": duration(rule.window_s), "runs": str(rule.runs)}
    meaning = kind.at_zero if kind.at_zero and not rule.above else kind.meaning
    text = re.sub(r"`(\w+)`", lambda found: values[found[1]], meaning)
    if rule.for_s:
        text += f", for {duration(rule.for_s)}"
    return text


def written(rule: Rule) -> dict[str, str]:
    """A rule as in a form: text by key, in the form's order; :func:`configured` reads it back."""
    kind = kind_of(rule)
    found = {
        "rule": rule.rule,
        "name": rule.name,
        "above": kind.unit.exact(rule.above),
        "severity": rule.severity,
        "for": written_seconds(rule.for_s),
        "hold": written_seconds(rule.hold_s),
        "clear": written_share(rule.clear),
        "repeat": written_seconds(rule.repeat_s),
    }
    if kind.shipped.window_s:
        found["window"] = written_seconds(rule.window_s)
    if kind.shipped.runs:
        found["runs"] = str(rule.runs)
    found["names"] = ", ".join(rule.names)
    return found


class StoredRules(Struct, frozen=True):
    """Rules set in the monitor; they replace the configured ones."""

    entries: list[dict[str, object]]
    by: str = ""
    at: float = 0.0


def in_force(setting: Iterable[Mapping[str, object]] | None, stored: StoredRules | None) -> tuple[Rule, ...]:
    """
    The active rules: those set in the monitor, else the configured ones.

    Raises:
        SettingError: They can't be used; those of the monitor may have been set by a newer version.
    """
    return configured(setting if stored is None else stored.entries)


class _Key(NamedTuple):
    field: str
    parse: Callable[[object], object]  # None: not allowed
    allowed: str


def _patterns(value: object) -> tuple[str, ...] | None:
    parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if isinstance(parts, list | tuple) and parts and all(isinstance(part, str) and part for part in parts):
        return tuple(parts)
    return None


#: What an entry may set besides ``rule`` and ``above``.
KEYS: dict[str, _Key] = {
    "name": _Key(
        "name",
        lambda value: value if isinstance(value, str) and re.fullmatch(r"[\w.:-]{1,64}", value) else None,
        "a short name of letters, digits, '_', '-', '.' and ':' (at most 64)",
    ),
    "severity": _Key(
        "severity", lambda value: value if value in SEVERITIES else None, "one of " + ", ".join(SEVERITIES)
    ),
    "for": _Key("for_s", read_seconds, TIME),
    "hold": _Key("hold_s", read_seconds, TIME),
    "repeat": _Key("repeat_s", read_seconds, TIME),
    "window": _Key("window_s", read_seconds, TIME),
    "clear": _Key("clear", read_share, "a share of `above`: a number from 0 to 1, or text such as '80%'"),
    "runs": _Key("runs", read_whole, "a whole number, 0 or greater"),
    "names": _Key("names", _patterns, "a pattern such as 'shop.*', or a list of patterns"),
}


def configured(entries: Iterable[Mapping[str, object]] | None) -> tuple[Rule, ...]:
    """
    The rules of ``trace_alert_rules``; the shipped ones if it is not set.

    The entry ``{"rule": "shipped"}`` means all shipped rules, so that a list can add to them.

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
                raise SettingError(f"{place}: 'shipped' means all shipped rules and takes no other key.")
            rules.extend(SHIPPED)
        else:
            rules.append(_checked(place, entry))
    name, count = Counter(rule.name for rule in rules).most_common(1)[0] if rules else ("", 0)
    if count > 1:
        raise SettingError(
            f"{SETTING} has {len(rules)} rules of which {count} are named {name!r}. "
            "Their alerts would be mixed up; give each its own 'name'."
        )
    return tuple(rules)


def _checked(place: str, entry: Mapping[str, object]) -> Rule:
    kind = _kind_named(place, entry.get("rule"))
    rule = replace(
        kind.shipped, **dict(_value(place, kind, key, value) for key, value in entry.items() if key != "rule")
    )
    if kind.above_at_least and rule.above <= kind.above_at_least:
        raise SettingError(
            f"{place}: 'above' of the rule {kind.name} is {entry['above']!r}, but it must be more than "
            f"{kind.unit.in_words(kind.above_at_least)}: {kind.why_at_least}."
        )
    return rule


def _kind_named(place: str, name: object) -> RuleKind:
    kinds = kinds_by_name()
    kind = kinds.get(str(name))
    if kind is None:
        raise SettingError(
            f"{place}: unknown rule {name!r}.{_near(str(name), kinds)} "
            f"Rules are: {', '.join(kinds)}; or shipped for all of them."
        )
    return kind


def _value(place: str, kind: RuleKind, key: str, value: object) -> tuple[str, object]:
    """The field that a key of an entry sets, and its checked value."""
    keys = {"above": _Key("above", kind.unit.parse, kind.unit.allowed), **KEYS}
    known = keys.get(key)
    if known is None:
        raise SettingError(
            f"{place}: unknown key {key!r} for the rule {kind.name}.{_near(str(key), keys)} "
            f"Keys are: rule, {', '.join(keys)}."
        )
    checked = known.parse(value)
    if checked is None:
        raise SettingError(f"{place}: {key!r} of the rule {kind.name} is {value!r}, but it must be {known.allowed}.")
    return known.field, checked


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f" Did you mean {near[0]!r}?" if near else ""
