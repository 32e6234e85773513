"""Keyset pagination: a cursor says after which row the next page begins."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import sqlalchemy as sa

from celery_trace.errors import TraceError

if TYPE_CHECKING:
    from celery_trace.stores.tables import AnyColumn, AnySelect

_Row = TypeVar("_Row", bound=Mapping[str, object])

#: Most rows of one page.
MOST = 1000


class BadCursor(TraceError, ValueError):
    """A cursor that this list did not return."""

    def __init__(self, what: str) -> None:
        super().__init__(what, next="Leave it out to begin with the first page.")


def encode(values: Sequence[object]) -> str:
    """A cursor for the row with these values in the order's columns."""
    return base64.urlsafe_b64encode(msgspec.json.encode(list(values))).rstrip(b"=").decode()


def decode(cursor: str, kinds: Sequence[type]) -> list[object]:
    """
    The values of a cursor.

    Args:
        cursor: The received cursor.
        kinds: The type of each value in the order's columns.

    Raises:
        BadCursor: It is invalid, or belongs to another list.
    """
    try:
        values = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        raise BadCursor(f"Invalid cursor {cursor[:80]!r}") from None
    if not isinstance(values, list) or len(values) != len(kinds) or not all(map(_fits, values, kinds)):
        raise BadCursor(f"The cursor {cursor[:80]!r} belongs to another list")
    return list(values)


def kinds_of(order: Sequence[tuple[AnyColumn, bool]]) -> list[type]:
    """The type of each value of a cursor for this order."""
    return [column.type.python_type for column, _ in order]


def _fits(value: object, kind: type) -> bool:
    """Whether a value can be compared with a column of this type; some databases raise an error otherwise."""
    if kind is str:
        return isinstance(value, str) and "\0" not in value
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def after(order: Sequence[tuple[AnyColumn, bool]], values: Sequence[object]) -> sa.ColumnElement[bool]:
    """
    A condition for the rows after these values.

    Written as ``a <= x AND (a < x OR (b < y …))``, for which every database uses the index.

    Args:
        order: Columns, and whether each descends.
        values: One for each column.
    """
    column, descending = order[0]
    value = sa.literal(values[0], column.type)
    beyond = column < value if descending else column > value
    if len(order) == 1:
        return beyond
    reaching = column <= value if descending else column >= value
    return sa.and_(reaching, sa.or_(beyond, after(order[1:], values[1:])))


def page_of(
    rows: Iterable[_Row], order: Sequence[tuple[AnyColumn, bool]], limit: int, cursor: str | None
) -> tuple[list[_Row], str | None]:
    """
    A page of rows in memory, with the same cursors.

    Args:
        rows: Each has the order's columns as attributes.
        order: Columns, and whether each descends; together unique for each row.
        limit: Most rows of the page.
        cursor: The row after which the page begins.

    Returns:
        The page, and the cursor of the next.
    """
    names = [column.name for column, _ in order]
    found = list(rows)
    for column, descending in reversed(order):
        found.sort(key=itemgetter(column.name), reverse=descending)
    if cursor:
        last = dict(zip(names, decode(cursor, kinds_of(order)), strict=True))
        found = [row for row in found if _stands_after(row, last, order)]
    limit = max(1, min(limit, MOST))
    page = found[:limit]
    return page, encode([page[-1][name] for name in names]) if len(found) > limit else None


def _stands_after(row: Mapping[str, Any], last: Mapping[str, Any], order: Sequence[tuple[AnyColumn, bool]]) -> bool:
    for column, descending in order:
        one, other = row[column.name], last[column.name]
        if isinstance(one, str) != isinstance(other, str):
            raise BadCursor("The cursor belongs to another order")
        if one != other:
            return bool(one < other) if descending else bool(one > other)
    return False


def ordered(wanted: AnySelect, order: Sequence[tuple[AnyColumn, bool]]) -> AnySelect:
    """The statement in this order."""
    return wanted.order_by(*(column.desc() if descending else column.asc() for column, descending in order))


def like(text: str) -> str:
    """A LIKE pattern that finds the text anywhere, with its special characters escaped; use with ``escape="!"``."""
    for sign in "!%_":
        text = text.replace(sign, "!" + sign)
    return f"%{text}%"
