"""What several tasks of the corpus use, in a module of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Shelf:
    def __init__(self) -> None:
        self.books: list[Any] = []


SHELF = Shelf()


class Publisher:
    subscribers: dict[str, list[Callable[[], Any]]]

    def __init__(self) -> None:
        self.subscribers = {}

    def subscribe(self, event: str, subscriber: Callable[[], Any]) -> None:
        self.subscribers.setdefault(event, []).append(subscriber)


PUBLISHER = Publisher()

_remembered: dict[int, str] = {}


def remember(number: int) -> None:
    """A helper that leaks, whoever calls it."""
    _remembered[number] = f"{number:08d}" * 300  # LEAK helper_of_one helper_of_another
