"""The numbers by which the sampler knows tasks, routes and blocks."""

from __future__ import annotations

from typing import Final

from celery_trace.model import Kind

#: The name for allocations outside of tasks.
PROCESS: Final = "(process)"


class TagTable:
    """Numbers tasks, routes and blocks from 1 on; 0 is the process itself."""

    def __init__(self) -> None:
        self._tags: dict[tuple[Kind, str], int] = {}
        self._names: list[tuple[Kind, str]] = [(Kind.PROCESS, PROCESS)]

    def find(self, kind: Kind, name: str) -> int | None:
        """The tag of a name; None if it has none yet."""
        return self._tags.get((kind, name))

    def add(self, kind: Kind, name: str) -> int:
        """Give a name the next tag."""
        tag = self._tags[kind, name] = len(self._names)
        self._names.append((kind, name))
        return tag

    def name_of(self, tag: int) -> tuple[Kind, str]:
        """The kind and name of a tag."""
        return self._names[tag]

    def all_but_process(self) -> range:
        """The tags of all tasks, routes and blocks."""
        return range(1, len(self._names))


#: The tags of this process. The sampler counts runs and marks functions by them as long as the process lives, so a
#: later watch uses the same ones.
TAGS: Final = TagTable()
