"""Strict and bounded reading of the JSON that visitors send."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

#: Lists and objects inside each other. The rules of the alerts have three.
MOST_DEPTH = 20

TOO_DEEP = "Its lists and objects are nested too deeply."
TOO_LARGE = "It has a number that is too large."


class BadJson(ValueError):
    """The text is not valid JSON, or exceeds a limit. The message says which."""


def read(sent: bytes | str, most_bytes: int) -> object:
    """
    The value of a JSON text.

    Args:
        sent: UTF-8, or text.
        most_bytes: The greatest length that is read, bytes of UTF-8 or characters of text.

    Raises:
        BadJson: It is too long, nested too deeply or no JSON, has a name twice in one object, or a number that
            neither 64 bits nor a float can hold.
    """
    if len(sent) > most_bytes:
        raise BadJson(f"It is {len(sent):,} bytes long; at most {most_bytes:,} are read.")
    try:
        text = sent if isinstance(sent, str) else sent.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise BadJson(TOO_DEEP) from None
    except UnicodeError:
        raise BadJson("It is no UTF-8.") from None
    except json.JSONDecodeError as error:
        raise BadJson(f"It is no JSON: {error}.") from None
    except ValueError as error:
        # Besides ours, Python's own refusal to read a number of thousands of digits.
        raise error if isinstance(error, BadJson) else BadJson(TOO_LARGE) from None
    check(value)
    _check_numbers(value)
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise BadJson(f"It has the name {name[:50]!r} twice in one object.")
        found[name] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise BadJson(f"It has {text}, which is no number in JSON.")


def check(value: Any, most_depth: int = MOST_DEPTH) -> None:
    """
    Look through a value that was read from JSON.

    Raises:
        BadJson: It is nested more than ``most_depth`` levels deep, or has half of a surrogate pair, which an escape
            can name and UTF-8 can't carry.
    """
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise BadJson("It has half of a surrogate pair, which is no character.") from None
        return
    if not isinstance(value, list | tuple | dict):
        return
    if most_depth <= 0:
        raise BadJson(TOO_DEEP)
    for item in value:
        check(item, most_depth - 1)
    if isinstance(value, dict):
        for item in value.values():
            check(item, most_depth - 1)


def _check_numbers(value: object) -> None:
    """Whether 64 bits, or a float, hold each number: no column and no clock takes others."""
    if isinstance(value, int | float):
        if not -(2**63) <= value < 2**63 and (isinstance(value, int) or math.isinf(value)):
            raise BadJson(TOO_LARGE)
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _check_numbers(item)
