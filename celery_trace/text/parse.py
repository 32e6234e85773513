"""
Parses sizes, durations and shares of settings, rules and options: ``1.5 GiB``, ``10 min``, ``20%``.

The ``read_`` functions return None for invalid text: the caller knows the name of the setting. They read the results of
the ``written_`` functions back as the same number.
"""

from __future__ import annotations

import re

#: Longest time that :func:`read_seconds` takes.
MOST_SECONDS = 366 * 86400.0

_DURATION = re.compile(r"\s*(\d{1,12}(?:\.\d+)?)\s*(ms|s|m|min|h|d|w)?\s*", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, None: 1.0}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", re.IGNORECASE | re.ASCII)
_SHARE = re.compile(r"\s*(\d{1,12}(?:\.\d+)?)\s*(%)?\s*", re.ASCII)


def read_number(value: object) -> float | None:
    """A finite number, 0 or greater; neither boolean nor text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value)
    return number if 0 <= number < float("inf") else None


def read_seconds(value: object) -> float | None:
    """``90``, ``'30s'``, ``'10m'``, ``'4h'``, ``'2d'``; at most :data:`MOST_SECONDS`."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    seconds = float(found[1]) * _SECONDS[found[2]] if found else read_number(value)
    return seconds if seconds is not None and seconds <= MOST_SECONDS else None


def read_bytes(value: object) -> float | None:
    """``1024``, ``'512 B'``, ``'100 KiB'`` (of 1024), ``'1.5 MB'`` (of 1000)."""
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return read_number(value)
    power = " kmgt".index(found[2].lower()) if found[2] else 0
    unit: int = 1024 if found[3] else 1000
    return float(found[1]) * float(unit**power)


def read_share(value: object) -> float | None:
    """``0.2`` or ``'20%'``; from 0 to 1."""
    found = _SHARE.fullmatch(value) if isinstance(value, str) else None
    share = float(found[1]) / (100 if found[2] else 1) if found else read_number(value)
    return share if share is not None and share <= 1 else None


def read_whole(value: object) -> int | None:
    """A whole number, 0 or greater, also as text."""
    number = read_number(float(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value)
    return int(number) if number is not None and number == int(number) else None


def written_bytes(number_bytes: float) -> str:
    """Bytes in the largest unit without a remainder: ``1 GiB``, ``512 B``."""
    value = float(number_bytes)
    if value != int(value):
        return f"{value:.3f} B"
    whole, unit = int(value), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if whole == 0 or whole % 1024:
            break
        whole, unit = whole // 1024, larger
    return f"{whole} {unit}"


def written_seconds(seconds: float) -> str:
    """Seconds in the largest unit without a remainder: ``15m``, ``4h``."""
    for unit, length_s in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds and seconds % length_s == 0:
            return f"{int(seconds // length_s)}{unit}"
    return f"{int(seconds) if seconds == int(seconds) else seconds}s"


def written_share(share: float) -> str:
    """A share as a percentage: ``20%``."""
    return f"{round(share * 100, 10):g}%"


def wrong_duration(value: object) -> str:
    """The error for an invalid duration."""
    return f"invalid duration {value!r} (examples: 30m, 12h, 7d)"


def wrong_size(value: object) -> str:
    """The error for an invalid size."""
    return f"invalid size {value!r} (examples: 500M, 2GiB)"
