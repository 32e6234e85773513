"""Selects the searches that can find something in a text, by the literals that they need."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

Row = TypeVar("Row")

#: Searched first, as one character is found fastest: the first of these inside a literal is its pivot.
#: Separators and the rarer capitals come first, so that most texts pass after these few searches.
_PIVOTS = "~@_/=<:-.&%(\\\"'JAKIVGHC"
#: At most this many pivots of one kind are checked one by one; beyond that, searching for each literal is faster.
_MOST = 32
#: Up to this number of literals, each is searched directly.
_FEW = 8


def _pivot_of(literal: str) -> str:
    """The pivot of a literal: the first one that is not at its beginning; the literal itself if there is none."""
    return next((pivot for pivot in _PIVOTS if literal.rfind(pivot) > 0), literal)


class _Group:
    """The literals that share a pivot. A set of rows is a number with a bit for each."""

    def __init__(self, pivot: str, rows_of: dict[str, int]) -> None:
        self._pivot = pivot
        self._rows_of = list(rows_of.items())
        self._alone = rows_of.get(pivot, 0)  # the pivot is a literal itself
        #: By the pivot and the character before it: the literals, and the pivot's offset in them.
        self._behind: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        for literal, rows in rows_of.items():
            place = literal.rfind(pivot)
            if place:
                self._behind[literal[place - 1 : place + 1]].append((literal, place, rows))

    def search(self, text: str) -> int:
        """The rows of the literals in a text that contains the pivot."""
        if len(self._rows_of) <= _FEW:
            return self._search_for_each(text)
        found = self._alone
        near, pivot, find = self._behind.get, self._pivot, text.find
        at = find(pivot)
        for _ in range(_MOST):
            literals = near(text[at - 1 : at + 1]) if at else None
            if literals is not None:
                for literal, place, rows in literals:
                    if text.startswith(literal, at - place):
                        found |= rows
            at = find(pivot, at + 1)
            if at < 0:
                return found
        return self._search_for_each(text)

    def _search_for_each(self, text: str) -> int:
        found = 0
        for literal, rows in self._rows_of:
            if literal in text:
                found |= rows
        return found


class Sieve(Generic[Row]):
    """
    Chooses rows of a table for a text. A row that is not chosen would have found nothing.

    Args:
        rows: Each with literals of which every matching text contains at least one.
    """

    def __init__(self, rows: Iterable[tuple[Row, Sequence[str]]]) -> None:
        self._rows: list[Row] = []
        by_literal: dict[str, int] = defaultdict(int)
        for row, literals in rows:
            for literal in literals:
                by_literal[literal] |= 1 << len(self._rows)
            self._rows.append(row)
        groups: dict[str, dict[str, int]] = defaultdict(dict)
        for literal, of_literal in by_literal.items():
            groups[_pivot_of(literal)][literal] = of_literal
        self._groups = [(pivot, _Group(pivot, rows_of).search) for pivot, rows_of in groups.items()]

    def rows(self, text: str) -> list[Row]:
        """The rows that may find something; mostly none."""
        found = 0
        for pivot, search in self._groups:
            if pivot in text:
                found |= search(text)
        chosen: list[Row] = []
        while found:
            lowest = found & -found
            chosen.append(self._rows[lowest.bit_length() - 1])
            found ^= lowest
        return chosen


def any_of(words: Iterable[str]) -> str:
    """A pattern that matches the shortest of the words at a place; common prefixes are merged."""
    by_first: dict[str, list[str]] = defaultdict(list)
    for word in words:
        if not word:
            return ""
        by_first[word[0]].append(word[1:])
    branches = [re.escape(first) + any_of(rest) for first, rest in by_first.items()]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
