"""The line that a stack is attributed to."""

from __future__ import annotations

from collections.abc import Callable

from celery_trace.heap.picks import Stack
from celery_trace.heap.survivors import Place
from celery_trace.text.code_owner import CodeOwner, is_our_own


class Places:
    """
    The places of stacks, each found once.

    Args:
        stack_of: The frames of a stack by its number, innermost first.
        own: Recognises the user's own files.
    """

    def __init__(self, stack_of: Callable[[int], Stack], own: CodeOwner) -> None:
        self._stack_of = stack_of
        self._own = own
        self._known: dict[int, Place | None] = {}

    def of(self, number: int) -> Place | None:
        """
        The innermost of the user's own lines in a stack; the innermost line if there is none.

        None if nothing is known of the stack, or if it is our own work.
        """
        if number not in self._known:
            lines = tuple((file, line) for file, line, _ in self._stack_of(number))
            self._known[number] = lines[self._own.first(lines)] if lines and not is_our_own(lines) else None
        return self._known[number]

    def clear(self) -> None:
        """The numbers of stacks have changed."""
        self._known.clear()
