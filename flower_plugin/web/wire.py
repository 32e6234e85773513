"""Strict and bounded parsing of JSON from clients."""

from __future__ import annotations

import json
import math
from typing import NoReturn

#: Maximum nesting depth. Alert rules have three levels.
MOST_DEPTH = 20

TOO_DEEP = "It is nested too deeply."
TOO_LARGE = "It has a number that is too large."


class BadJson(ValueError):
    """Invalid JSON, or a limit is exceeded; see the message."""


def read(sent: bytes | str, most_bytes: int) -> object:
    """
    The value of a JSON text.

    Args:
        sent: UTF-8, or text.
        most_bytes: Maximum length, bytes of UTF-8 or characters of text.

    Raises:
        BadJson: It is too long, nested too deeply or not JSON, has a duplicate name in an object, or a number that
            fits neither into 64 bits nor into a float.
    """
    if len(sent) > most_bytes:
        raise BadJson(f"It has {len(sent):,} bytes; the limit is {most_bytes:,}.")
    try:
        text = sent if isinstance(sent, str) else sent.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise BadJson(TOO_DEEP) from None
    except UnicodeError:
        raise BadJson("It is not valid UTF-8.") from None
    except json.JSONDecodeError as error:
        raise BadJson(f"It is not valid JSON: {error}.") from None
    except ValueError as error:
        # Ours, or Python's refusal to parse a number with thousands of digits.
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
    raise BadJson(f"It has {text}, which is not a JSON number.")


def check(value: object, most_depth: int = MOST_DEPTH) -> None:
    """
    Check a value that was parsed from JSON.

    Raises:
        BadJson: It is nested more than ``most_depth`` levels deep, or has a lone surrogate, which can be escaped in
            JSON but not encoded in UTF-8.
    """
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise BadJson("It has a lone surrogate.") from None
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
    """Check that each number fits into 64 bits or a float, as database columns need."""
    if isinstance(value, int | float):
        if not -(2**63) <= value < 2**63 and (isinstance(value, int) or math.isinf(value)):
            raise BadJson(TOO_LARGE)
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _check_numbers(item)
