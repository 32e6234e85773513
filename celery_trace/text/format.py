"""
Formats figures for pages, commands, alerts, the doctor, Django's admin and the demo.

The page's script follows the same rules; ``tests/support/format_cases.json`` holds cases for both.
"""

from __future__ import annotations

import math
import time

#: In place of an unknown value.
NONE = "–"

_SIZES = ("KiB", "MiB", "GiB", "TiB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_UNITS = {1: "s", _MINUTE: "min", _HOUR: "h", _DAY: "d"}


def size(number_bytes: float | None, *, signed: bool = False) -> str:
    """
    Bytes in the largest unit below them, with one decimal: ``512 B``, ``195.3 KiB``, ``2.0 GiB``.

    ``signed`` adds a plus sign to positive values.
    """
    if number_bytes is None:
        return NONE
    sign = "-" if number_bytes <= -0.5 else "+" if signed and number_bytes >= 0.5 else ""
    value = abs(number_bytes)
    if _rounded(value, 0) < 1024:
        return f"{sign}{_rounded(value, 0):.0f} B"
    power = 1
    while power < len(_SIZES) and _rounded(value / 1024**power, 1) >= 1024:
        power += 1
    return f"{sign}{_rounded(value / 1024**power, 1):.1f} {_SIZES[power - 1]}"


def duration(seconds: float | None) -> str:
    """
    Seconds in one or two units: ``250 ms``, ``9.5 s``, ``1 min 30 s``, ``1 h 5 min``, ``3 d 2 h``.

    Below 10 of the smallest unit there is one decimal, unless it is zero.
    """
    if seconds is None:
        return NONE
    if seconds <= 0:
        return f"-{duration(-seconds)}" if seconds else "0 s"
    for unit, scale, most in (("µs", 1e6, 1000), ("ms", 1e3, 1000), ("s", 1.0, _MINUTE)):
        value = seconds * scale
        if _rounded(value, 0) < most:
            return f"{_decimal(value, 1 if _rounded(value, 1) < 10 else 0)} {unit}"
    for larger, smaller, most in ((_MINUTE, 1, _HOUR), (_HOUR, _MINUTE, _DAY), (_DAY, _HOUR, 0)):
        whole, rest = divmod(int(_rounded(seconds / smaller, 0)), larger // smaller)
        if not most or whole * larger < most:
            break
    return f"{whole} {_UNITS[larger]}" + (f" {rest} {_UNITS[smaller]}" if rest else "")


def about(seconds: float) -> str:
    """An estimated time, rounded to its precision: ``a minute``, ``40 min``, ``3 h``, ``2 d``."""
    if seconds < 1.5 * _MINUTE:
        return "a minute"
    if seconds < 1.5 * _HOUR:
        minutes = seconds / _MINUTE
        return f"{round(minutes / 5) * 5 if minutes > 20 else round(minutes)} min"
    if seconds < 1.5 * _DAY:
        return f"{seconds / _HOUR:.0f} h"
    return f"{seconds / _DAY:.0f} d"


def ago(at_s: float | None, now_s: float) -> str:
    """How long ago, or how far ahead, in one unit: ``now``, ``40 s ago``, ``2 h ago``, ``in 10 min``."""
    if at_s is None:
        return NONE
    seconds = abs(now_s - at_s)
    if seconds < 5:
        return "now"
    for most, unit_s in ((1.5 * _MINUTE, 1), (1.5 * _HOUR, _MINUTE), (1.5 * _DAY, _HOUR), (float("inf"), _DAY)):
        if seconds < most:
            text = f"{_rounded(seconds / unit_s, 0):.0f} {_UNITS[unit_s]}"
            return f"in {text}" if at_s > now_s else f"{text} ago"
    return NONE


def moment(at_s: float, *, utc: bool = False) -> str:
    """A time (seconds since the epoch) in this machine's zone, ``2026-11-30 14:03:12``; with ``utc`` in that one."""
    try:
        parts = time.gmtime(at_s) if utc else time.localtime(at_s)
        return time.strftime("%Y-%m-%d %H:%M:%S UTC" if utc else "%Y-%m-%d %H:%M:%S", parts)
    except (OverflowError, OSError, ValueError):  # no such year
        return NONE


def percent(share: float | None) -> str:
    """
    A share as a percentage: ``20 %``, ``12.5 %``, ``0.52 %``.

    One decimal, and two below 1 %, unless they are zero.
    """
    if share is None:
        return NONE
    value = share * 100
    return f"{_decimal(value, 2 if abs(value) < 1 else 1)} %"


def count(number: float | None) -> str:
    """A number with thousands separators: ``1,234``; below 100 with one decimal, unless it is zero."""
    if number is None:
        return NONE
    return _decimal(number, 1 if abs(number) < 100 else 0)


def plural(number: int, noun: str, nouns: str = "") -> str:
    """``1 run``, ``2 runs``."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def times(number: int) -> str:
    """``once``, ``twice``, ``7 times``."""
    return {1: "once", 2: "twice"}.get(number, f"{number:,} times")


def clip(text: object, most: int = 200) -> str:
    """A text cut to a length, with an ellipsis if it was cut."""
    whole = str(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def _rounded(value: float, digits: int) -> float:
    """Rounds half up, like the page's script; Python's own rounds half to even."""
    scale = 10**digits
    return math.copysign(math.floor(abs(value) * scale + 0.5) / scale, value)


def _decimal(value: float, digits: int) -> str:
    text = f"{_rounded(value, digits):,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
