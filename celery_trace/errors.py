"""What can't be had now, told so that the reader knows what to do."""

from __future__ import annotations


class Unavailable(Exception):
    """
    Something that we need (a store, a broker) can't be used now; records wait where they are.

    Args:
        what: What was tried, with an address without its password.
        why: What stands in the way.
        next: What the reader can do about it.
    """

    def __init__(self, what: str, why: str, next: str) -> None:
        super().__init__(f"{what}: {why}. {next}")
        self.what = what
        self.why = why
        self.next = next
