"""Pages by key, never by offset: a cursor says after which row the next page begins."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

#: Most rows of one page.
MOST = 1000


class BadCursor(ValueError):
    """A cursor that this list did not give out."""


def encode(values: Sequence[Any]) -> str:
    """A cursor for the row with these values in the columns of the order."""
    return base64.urlsafe_b64encode(msgspec.json.encode(list(values))).rstrip(b"=").decode()


def decode(cursor: str, kinds: Sequence[type]) -> list[Any]:
    """
    The values of a cursor.

    Args:
        cursor: What somebody sent.
        kinds: The type of each value, as the order's columns have it.

    Raises:
        BadCursor: It is none of ours, or belongs to another list.
    """
    try:
        values = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        raise BadCursor(f"{cursor[:80]!r} is no cursor. Leave it out to begin with the first page.") from None
    if not isinstance(values, list) or len(values) != len(kinds) or not all(map(_fits, values, kinds)):
        raise BadCursor(f"{cursor[:80]!r} belongs to another list. Leave it out to begin with the first page.")
    return list(values)


def _fits(value: Any, kind: type) -> bool:
    """Whether a database can compare a value with a column of this type: what it can't, some refuse with an error."""
    if kind is str:
        return isinstance(value, str) and "\0" not in value
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def after(order: Sequence[tuple[sa.Column[Any], bool]], values: Sequence[Any]) -> sa.ColumnElement[bool]:
    """
    The rows that stand after these values.

    Written as ``a <= x AND (a < x OR (b < y …))``, which every database answers from the index.

    Args:
        order: Columns, and whether each descends.
        values: One for each.
    """
    column, descending = order[0]
    value = sa.literal(values[0], column.type)
    beyond = column < value if descending else column > value
    if len(order) == 1:
        return beyond
    reaching = column <= value if descending else column >= value
    return sa.and_(reaching, sa.or_(beyond, after(order[1:], values[1:])))


def ordered(wanted: sa.Select[Any], order: Sequence[tuple[sa.Column[Any], bool]]) -> sa.Select[Any]:
    """The statement in that order."""
    return wanted.order_by(*(column.desc() if descending else column.asc() for column, descending in order))


def like(text: str) -> str:
    """A pattern that finds the text anywhere, whatever signs it holds; use with ``escape="!"``."""
    for sign in "!%_":
        text = text.replace(sign, "!" + sign)
    return f"%{text}%"
