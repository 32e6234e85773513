"""The base of our errors: each says what happened, why, and what to do next."""

from __future__ import annotations


class TraceError(Exception):
    """
    An error of celery-trace for users.

    Args:
        what: What was tried or is wrong, without secrets. It may be the whole text.
        why: The reason, if it is known.
        next: What the user can do about it.
    """

    def __init__(self, what: str, why: str = "", next: str = "") -> None:
        text = f"{what}: {why}" if why else what
        self._text = f"{text}. {next}" if next else text
        super().__init__(self._text)
        self.what = what
        self.why = why
        self.next = next

    def __str__(self) -> str:
        return self._text


class Unavailable(TraceError):
    """A resource, such as the store or the broker, is unavailable. Records wait where they are."""
