"""
The language of searches: ``task:shop.* -exception:KeyError order_id=7 since:2h "no such card"``.

A word is a qualifier with a value, or text. ``*`` in a value stands for any text, a comma separates alternatives, ``-``
negates a qualifier, and double quotes keep spaces and colons together. Words are combined by "and".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import sqlalchemy as sa
from msgspec import Struct

from celery_trace.errors import TraceError
from celery_trace.stores.tables import AnyColumn
from celery_trace.text.parse import read_seconds

#: Characters of a search, and its words.
LONGEST, MOST_WORDS = 500, 20
#: Words of text that one search looks for; each reads values.
MOST_TEXTS = 4

_WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
_QUALIFIED = re.compile(r"(-?)([a-z_]+):(.*)", re.DOTALL)


class BadSearch(TraceError, ValueError):
    """A search that can't be understood."""


class Qualifier(Struct, frozen=True, kw_only=True):
    """
    A word of the language.

    Attributes:
        name: In a search.
        meaning: For the help and the completion.
        words: The allowed values, if they are few.
        reads_values: Whether it finds values of users, for which a role is needed.
        is_time: Its value is an age (``2h``) or a time (``2026-11-30``).
    """

    name: str
    meaning: str
    words: tuple[str, ...] = ()
    reads_values: bool = False
    is_time: bool = False


class Term(Struct, frozen=True, kw_only=True):
    """A qualifier with its alternatives."""

    qualifier: Qualifier
    values: tuple[str, ...]
    negative: bool = False
    at_s: float = 0.0  # of a time, seconds since the epoch

    @property
    def exact(self) -> str | None:
        """The value, if it is a single one without a wildcard and not negated."""
        return self.values[0] if len(self.values) == 1 and "*" not in self.values[0] and not self.negative else None

    def where(self, *columns: AnyColumn) -> sa.ColumnElement[bool]:
        """The condition that one of these columns has one of the values."""
        found = sa.or_(*(_like(column, value) for column in columns for value in self.values))
        return sa.not_(found) if self.negative else found

    def fits(self, *texts: str) -> bool:
        """Whether one of these texts has one of the values, as in :meth:`where`."""
        found = any(_pattern(value).fullmatch(text) for value in self.values for text in texts)
        return found is not self.negative


class Search(Struct, frozen=True, kw_only=True):
    """A search as it was understood. ``texts`` are free text and ``name=value``."""

    terms: tuple[Term, ...] = ()
    texts: tuple[str, ...] = ()

    def of(self, *names: str) -> list[Term]:
        """The terms with these qualifiers."""
        return [term for term in self.terms if term.qualifier.name in names]

    @property
    def reads_values(self) -> bool:
        """Whether it looks at users' values."""
        return bool(self.texts) or any(term.qualifier.reads_values for term in self.terms)


def _like(column: AnyColumn, value: str) -> sa.ColumnElement[bool]:
    if "*" not in value:
        return column == value
    pattern = value.lower()
    for sign in "!%_":
        pattern = pattern.replace(sign, "!" + sign)
    return sa.func.lower(column).like(pattern.replace("*", "%"), escape="!")


def _pattern(value: str) -> re.Pattern[str]:
    if "*" not in value:
        return re.compile(re.escape(value))
    return re.compile(".*".join(map(re.escape, value.split("*"))), re.IGNORECASE | re.DOTALL)


def read(text: str, qualifiers: Mapping[str, Qualifier], now_s: float) -> Search:
    """
    Understand a search.

    Args:
        text: What was written.
        qualifiers: Those of the list, by name.
        now_s: The time from which ages count, seconds since the epoch.

    Raises:
        BadSearch: It has an unknown qualifier, an invalid value, or too many words.
    """
    words = _WORD.findall(text[:LONGEST].replace("\0", " "))
    if len(text) > LONGEST or len(words) > MOST_WORDS:
        raise BadSearch("The search is too long", f"at most {LONGEST} characters and {MOST_WORDS} words are allowed")
    terms: list[Term] = []
    texts: list[str] = []
    for word in words:
        match = _QUALIFIED.fullmatch(word)
        if match is None or match[3].startswith("//") or not match[3]:
            if plain := word.replace('"', "").strip():
                texts.append(plain)
            continue
        terms.append(_term(qualifiers, match[2], match[3], negative=bool(match[1]), now_s=now_s))
    if len(texts) > MOST_TEXTS:
        raise BadSearch(
            "The search has too many words of text",
            f"at most {MOST_TEXTS} are allowed",
            "Quote words that belong together.",
        )
    return Search(terms=tuple(terms), texts=tuple(texts))


def _term(qualifiers: Mapping[str, Qualifier], name: str, written: str, *, negative: bool, now_s: float) -> Term:
    qualifier = qualifiers.get(name)
    if qualifier is None:
        near = difflib.get_close_matches(name, qualifiers, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise BadSearch(
            f"Unknown qualifier {name!r}",
            f"known are {', '.join(qualifiers)}",
            f"{hint}Quote it to search for the text.",
        )
    values = tuple(value for part in _parts(written) if (value := part.replace('"', "")))
    if not values:
        raise BadSearch(f"The qualifier {name} has no value")
    if qualifier.words and (wrong := [value for value in values if value not in qualifier.words]):
        raise BadSearch(f"Invalid value {wrong[0]!r} of {name}", f"it must be one of {', '.join(qualifier.words)}")
    at_s = 0.0
    if qualifier.is_time:
        found = _moment(values[0], now_s) if len(values) == 1 and not negative else None
        if found is None:
            raise BadSearch(
                f"Invalid time {written!r} of {name}",
                next="Use an age (2h, 7d) or a time (2026-11-30, 2026-11-30T12:00).",
            )
        at_s = found
    return Term(qualifier=qualifier, values=values, negative=negative, at_s=at_s)


def _parts(written: str) -> list[str]:
    """Alternatives, separated by commas outside of quotes."""
    return re.findall(r'(?:[^,"]|"[^"]*"?)+', written)


def _moment(value: str, now_s: float) -> float | None:
    age_s = read_seconds(value)
    if age_s is not None:
        return now_s - age_s
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def written(name: str, value: str) -> str:
    """A qualifier with a value, quoted if need be."""
    value = value.replace('"', "")
    return f'{name}:"{value}"' if re.search(r"[\s,:]", value) or value.startswith("/") else f"{name}:{value}"


def joined(words: Iterable[str]) -> str:
    """A search from the words of a command line, of which some may have spaces."""
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    if '"' in word or not re.search(r"\s", word):
        return word
    match = _QUALIFIED.fullmatch(word)
    return f'{match[1]}{match[2]}:"{match[3]}"' if match is not None else f'"{word}"'


class Suggestion(Struct, frozen=True):
    """A completion: ``text`` replaces the characters of the search from ``start`` on."""

    start: int
    text: str
    meaning: str = ""


def word_at_end(text: str) -> tuple[int, str]:
    """Where the last word begins, and the word; empty after a space."""
    words = list(_WORD.finditer(text))
    return (words[-1].start(), words[-1][0]) if words and words[-1].end() == len(text) else (len(text), "")


def suggestions_of_names(
    text: str, qualifiers: Iterable[Qualifier], known: Sequence[str] | None = None
) -> list[Suggestion]:
    """
    Completions of the last word of a search.

    Args:
        text: The search up to the cursor.
        qualifiers: Those of the list.
        known: Values of the qualifier that is being written, from the store; None to complete the qualifier's name.
    """
    start, word = word_at_end(text)
    sign = "-" if word.startswith("-") else ""
    name, colon, _ = word.removeprefix("-").partition(":")
    if not colon:
        fitting = [one for one in qualifiers if one.name.startswith(name.lower())]
        return [Suggestion(start, f"{sign}{one.name}:", one.meaning) for one in fitting]
    return [Suggestion(start, f"{sign}{written(name, value)} ") for value in known or ()]
