"""
Redacts and bounds replies of workers and results of the backend; the result is always valid JSON.

Failures are redacted in the process that failed. Flower's own pages show other values: replies to inspect commands,
configurations of workers, and results of the backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from celery_trace.redaction import MARK, Redactor, Scrubber, is_card_number
from celery_trace.text.escape import escaped_lines

#: Limits: characters per text, nesting depth, and values in total.
MOST_CHARACTERS = 64 * 1024
MOST_DEPTH = 20
MOST_VALUES = 20_000
#: Replaces values beyond these limits.
CUT = "…"
#: Integers must fit into 64 bits for all JSON parsers.
_GREATEST = 2**63

#: Our settings that are secret as a whole. The store's URL is not: its password is recognized by its form.
_SECRET_SETTINGS = frozenset({"trace_shell_key", "trace_alert_channels"})


def text_of(text: str, redactor: Redactor, most: int = MOST_CHARACTERS, scrubber: Scrubber | None = None) -> str:
    """
    A text without secrets, truncated to ``most`` characters, with control and direction characters escaped.

    Args:
        scrubber: Already known secrets.
    """
    cut = text if len(text) <= most else text[:most]
    shown = redactor.text(cut if scrubber is None else scrubber.text(cut))
    shown = escaped_lines(shown)
    return shown if cut is text else shown + CUT


def redacted(value: object, redactor: Redactor, scrubber: Scrubber | None = None) -> object:
    """
    A value as plain JSON types, without secrets.

    A value with a secret name is replaced as a whole. Values without a JSON type, such as NaN or an object, become
    text.
    """
    return _Redaction(redactor, scrubber).value(value, 0)


def redacted_mapping(value: Mapping[object, object], redactor: Redactor) -> dict[str, object]:
    """A mapping as plain JSON types, without secrets."""
    return _Redaction(redactor, None).mapping(value, 0)


def redacted_settings(settings: Mapping[str, object], redactor: Redactor) -> dict[str, object]:
    """A worker's configuration without secrets. Celery hides some itself, but not those of our settings."""
    shown: dict[object, object] = {
        name: MARK if value and str(name).lower().removeprefix("celery_") in _SECRET_SETTINGS else value
        for name, value in settings.items()
    }
    return redacted_mapping(shown, redactor)


class _Redaction:
    """One pass over one value."""

    def __init__(self, redactor: Redactor, scrubber: Scrubber | None) -> None:
        self._redactor = redactor
        self._scrubber = scrubber
        self._left = MOST_VALUES

    def value(self, value: object, depth: int) -> object:
        self._left -= 1
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return text_of(value, self._redactor, scrubber=self._scrubber)
        if isinstance(value, int):
            return self._integer(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if depth >= MOST_DEPTH or self._left <= 0:
            return CUT
        if isinstance(value, Mapping):
            return self.mapping(value, depth)
        if isinstance(value, list | tuple | set | frozenset):
            return self._items(value, depth)
        try:
            return text_of(repr(value), self._redactor, scrubber=self._scrubber)
        except Exception:
            # The __repr__ of a user class raised.
            return f"<{type(value).__name__}>"

    def _integer(self, value: int) -> object:
        if is_card_number(value):
            return MARK
        # Python refuses to print very long numbers, and browsers round them.
        return value if -_GREATEST <= value < _GREATEST else f"<integer of {value.bit_length():,} bits>"

    def mapping(self, value: Mapping[object, object], depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, inner in value.items():
            if self._left <= 0:
                found[CUT] = CUT
                break
            name = key if isinstance(key, str) else str(self.value(key, MOST_DEPTH))
            secret = self._redactor.is_secret_name(name) and inner is not None and inner not in ("", False)
            found[text_of(name, self._redactor, 1000)] = MARK if secret else self.value(inner, depth + 1)
        return found

    def _items(self, value: Iterable[object], depth: int) -> list[object]:
        found: list[object] = []
        for inner in value:
            if self._left <= 0:
                found.append(CUT)
                break
            found.append(self.value(inner, depth + 1))
        return found
