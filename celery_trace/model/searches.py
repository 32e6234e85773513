"""Saved searches of users."""

from __future__ import annotations

from msgspec import Struct


class SavedView(Struct, frozen=True, kw_only=True):
    """A search of a list that a user has saved under a title."""

    id: str
    user: str
    noun: str  # the list, such as "failures"
    title: str
    query: str
    at: float
