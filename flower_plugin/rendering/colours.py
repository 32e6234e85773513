"""The color of a task, request or block: one of sixteen, the same on every page and for ever."""

from __future__ import annotations

import zlib
from typing import Final

#: The colors are variables of the style sheet, ``--task-0`` to ``--task-15``, one set for each theme.
COLOURS: Final = 16


def of_name(name: str) -> int:
    """The number of the color of a name. It depends on the name alone."""
    return zlib.crc32(name.encode("utf-8", "backslashreplace")) % COLOURS


def dot(name: str) -> str:
    """A dot in the color of a name, as markup. It repeats nothing that is not said in text."""
    return f'<i class="tr-dot tr-task-{of_name(name)}" aria-hidden="true"></i>'
