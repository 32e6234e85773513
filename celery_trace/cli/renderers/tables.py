"""Tables for terminals, and lines of facts. With a width no line is wider; without one nothing is cut."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence

from msgspec import Struct
from rich.box import Box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from celery_trace.cli.renderers.style import OF_STATE, Style
from celery_trace.text.escape import escaped

#: A cell: any object with a text, or a text and its colour.
Cell = object | tuple[str, str]

#: Minimum width of an elastic cell, columns.
_LEAST = 12
#: Wide enough for every row if nothing is to be cut.
_UNBOUNDED = 100_000
#: A box with only a line below the head.
_UNDERLINED = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


class TableColumn(Struct, frozen=True):
    """
    A column of a table.

    On a narrow terminal, ``elastic`` columns are cut first; ``spare`` ones are left out, the last first, before the
    elastic ones become unreadable; ``whole`` ones, such as ids, are wrapped, never cut.
    """

    title: str
    right: bool = False
    elastic: bool = False
    spare: bool = False
    whole: bool = False


class _Elastic:
    """A text that is cut in the middle, as the ends of a name or a path are most informative."""

    def __init__(self, text: str, colour: str) -> None:
        self._text = text
        self._colour = colour

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = cell_len(self._text)
        return Measurement(min(_LEAST, width), width).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shortened(self._text, options.max_width), self._colour, no_wrap=True, overflow="ellipsis")


def shortened(text: str, columns: int) -> str:
    """The text, cut in the middle to this many columns."""
    if cell_len(text) <= columns:
        return text
    head = (columns - 1) // 2
    tail = max(0, columns - 1 - head)
    return f"{set_cell_size(text, head)}…{set_cell_size(text[::-1], tail)[::-1]}"


def table(columns: Sequence[TableColumn], rows: Iterable[Sequence[Cell]], style: Style, empty: str = "Nothing.") -> str:
    """
    A table with a line under its head.

    Args:
        rows: Cells; a ``(text, colour)`` pair is painted.
        empty: The text for a table without rows.
    """
    cells = [[cell if isinstance(cell, tuple) else (escaped(cell), "") for cell in row] for row in rows]
    if not cells:
        return wrapped(style.hint(empty), style) + "\n"
    kept = _columns_that_fit(columns, cells, style.width)
    made = Table(box=_UNDERLINED, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0),
                 header_style="bold", border_style="dim")  # fmt: skip
    for index in kept:
        column = columns[index]
        made.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.elastic,
            overflow="ellipsis",
        )
    for row in cells:
        made.add_row(*(_rendered(row[index], columns[index]) for index in kept))
    left_out = ", ".join(column.title for index, column in enumerate(columns) if index not in kept)
    note = shortened(f"Hidden columns: {left_out}.", style.width) + "\n" if left_out else ""
    return _printed(made, style) + note


def wrapped(text: str, style: Style, *, begin: str = "", indent: str = "") -> str:
    """A text in lines of the terminal's width; the first begins with ``begin``, the others with ``indent``."""
    if not style.width:
        return begin + text
    return textwrap.fill(text, max(20, style.width), initial_indent=begin, subsequent_indent=indent)


def _columns_that_fit(
    columns: Sequence[TableColumn], cells: Sequence[Sequence[tuple[str, str]]], width: int
) -> list[int]:
    """The indices of the shown columns: spare ones are hidden until the elastic ones are readable."""
    widths = [
        max(cell_len(column.title), *(cell_len(row[index][0]) for row in cells)) for index, column in enumerate(columns)
    ]
    needed = [min(wide, _LEAST) if column.elastic else wide for wide, column in zip(widths, columns, strict=True)]
    kept = list(range(len(columns)))
    for index in reversed(range(len(columns))):
        if not width or sum(needed[one] + 2 for one in kept) - 2 <= width:
            break
        if columns[index].spare:
            kept.remove(index)
    return kept


def _rendered(cell: tuple[str, str], column: TableColumn) -> Text | _Elastic:
    if column.elastic:
        return _Elastic(*cell)
    return Text(*cell, no_wrap=False, overflow="fold") if column.whole else Text(*cell)


def grid(rows: Iterable[Sequence[Cell]], style: Style) -> str:
    """Aligned cells without a head; the last of a row is wrapped at the terminal's width."""
    made = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        made.add_row(*(Text(*(cell if isinstance(cell, tuple) else (escaped(cell), ""))) for cell in row))
    for index, column in enumerate(made.columns):
        column.no_wrap = index < len(made.columns) - 1
        column.overflow = "fold"
    return _printed(made, style)


def _printed(made: Table, style: Style) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=style.width or _UNBOUNDED, color_system="standard" if style.colour else None,
        force_terminal=style.colour, legacy_windows=False, highlight=False, markup=False, emoji=False, _environ={},
    )  # fmt: skip
    console.print(made)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def state(word: str) -> Cell:
    """A state, a verdict or an outcome in its colour."""
    return escaped(word), OF_STATE.get(word, "")


def fact(label: str, text: str) -> str:
    """A line with a label."""
    return f"  {label:<10} {text}"
