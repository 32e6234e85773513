"""Secrets that were found by name, to find them in other texts."""

from __future__ import annotations

import re

from celery_trace.redaction.spans import MARK
from celery_trace.redaction.values import HARMLESS


class Scrubber:
    """
    Secrets that were found by name, to find them in other texts.

    A password in a local ``password`` is also in the message ``Can't log in with hunter2`` and in a positional
    argument, and is removed there too.
    """

    #: Shorter ones would hide harmless text everywhere.
    SHORTEST = 4
    MOST = 200

    __slots__ = ("_known_spellings", "_pattern", "_secrets")

    def __init__(self) -> None:
        self._secrets: set[str] = set()
        self._known_spellings: set[str] | None = None
        self._pattern: re.Pattern[str] | None = None

    def learn(self, secret: str) -> None:
        """Remember a text, unless it is too short or there are too many."""
        secret = secret.strip()
        if len(secret) >= self.SHORTEST and secret.lower() not in HARMLESS and len(self._secrets) < self.MOST:
            self._secrets.add(secret)
            self._pattern = self._known_spellings = None

    def __len__(self) -> int:
        return len(self._secrets)

    def has_short_or_digits(self, length: int) -> bool:
        """Whether a secret fits into a text of fewer than ``length`` characters, or a number."""
        return any(len(spelling) < length or spelling.strip("-").isdigit() for spelling in self._spellings())

    def may_be_in(self, text: str) -> bool:
        """Whether a text contains a secret. Much cheaper than :meth:`text` on each part of it."""
        return any(secret in text for secret in self._spellings())

    def text(self, text: str) -> str:
        """The text without secrets; the same object if it has none."""
        if not self._secrets or len(text) < self.SHORTEST:
            return text
        if self._pattern is None:
            longest_first = sorted(self._spellings(), key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        return self._pattern.sub(MARK, text)

    def _spellings(self) -> set[str]:
        """Each secret as it is, and as in a repr or in source."""
        if self._known_spellings is None:
            spellings = set(self._secrets)
            for secret in self._secrets:
                if not secret.isascii() or not secret.isprintable() or "\\" in secret or "'" in secret:
                    spellings.add(repr(secret)[1:-1])
                    spellings.add(secret.encode("unicode_escape").decode("ascii"))
            self._known_spellings = {spelling for spelling in spellings if len(spelling) >= self.SHORTEST}
        return self._known_spellings
