"""How names of variables and attributes are shown, and which of them must be checked for secrets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from celery_trace.failures.capture.texts import encodable
from celery_trace.redaction import Redactor

#: A name and its value may be separate items: ``{"name": "password", "value": "x"}``.
NAMING = frozenset(("name", "key", "field", "header", "param", "parameter"))
VALUES = frozenset(("value", "content", "data", "val"))
PARTED = NAMING | VALUES


def are_parted(names: Iterable[object]) -> bool:
    """Whether the value of one name may be the name of another value."""
    found = PARTED.intersection(names)
    return len(found) > 1 and not NAMING.isdisjoint(found) and not VALUES.isdisjoint(found)


_LONGEST = 120
#: Characters of an identifier that may be a credential.
_CREDENTIAL = 12
_REMEMBERED = 512


class Shown(NamedTuple):
    """Names as they are shown; never changed. ``characters`` is their total length."""

    names: list[str]
    characters: int


class Names:
    """
    Caches checks of the names that objects of one class, or calls of one function, have in common.

    Captures share it, as the same code fails repeatedly. Bounded.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        # By the addresses of the names; the names are kept alive with the result, so that addresses are not reused.
        self._known: dict[tuple[int, ...], tuple[tuple[str, ...], Shown | None]] = {}

    def plain(self, names: Sequence[str]) -> Shown | None:
        """How to show the names, if none is secret, not text, or part of a pair; else None."""
        addresses = tuple(map(id, names))
        known = self._known.get(addresses)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = (tuple(names), self._decide(names))
            if all(type(name) is str and len(name) <= _LONGEST for name in names):
                self._known[addresses] = known
        return known[1]

    def _decide(self, names: Sequence[str]) -> Shown | None:
        shown: list[str] = []
        for name in names:
            if type(name) is not str or self._redactor.is_secret_name(name):
                return None
            text = self.shown(name)
            if not text.isascii() or not text.isprintable():
                return None
            shown.append(text)
        if are_parted(names):
            return None
        return Shown(shown, sum(map(len, shown)))

    def shown(self, name: str) -> str:
        """A name as it may be shown: bounded, valid, and redacted if it is not an identifier."""
        text = name if len(name) <= _LONGEST else name[:_LONGEST] + "…"
        if len(text) >= _CREDENTIAL or not text.isidentifier():
            text = encodable(self._redactor.text(text))
        return text
