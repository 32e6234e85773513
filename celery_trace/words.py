"""
Numbers as a person says them and writes them: ``1.5 GiB``, ``10 min``, ``20%``.

The readers give None for what they do not understand: the caller knows the setting and what is allowed there.
"""

from __future__ import annotations

import re
import time
from typing import Any

#: Longest time that :func:`read_seconds` takes.
MOST_SECONDS = 366 * 86400.0

_DURATION = re.compile(r"\s*(\d{1,12}(?:\.\d+)?)\s*(ms|s|m|min|h|d|w)?\s*", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, None: 1.0}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", re.IGNORECASE | re.ASCII)
_SHARE = re.compile(r"\s*(\d{1,12}(?:\.\d+)?)\s*(%)?\s*", re.ASCII)


def size(number_bytes: float) -> str:
    """Bytes for a person: ``512 B``, ``1.5 KiB``, ``2.0 MiB``."""
    value = float(number_bytes)
    for word in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if word == "B" else f"{value:.1f} {word}"
        value /= 1024
    return f"{value:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds for a person, in one or two units: ``45 s``, ``15 min``, ``2 h 5 min``, ``3 d``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d"


def moment(at_s: float) -> str:
    """A time (seconds since the epoch) in the zone of this machine: ``2026-11-30 14:03``."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_s))


def exact_size(number_bytes: float) -> str:
    """Bytes in the largest unit that tells them exactly: ``1 GiB``, ``512 B``; :func:`read_bytes` reads it back."""
    value = float(number_bytes)
    if value != int(value):
        return f"{value:.3f} B"
    whole, word = int(value), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if whole == 0 or whole % 1024:
            break
        whole, word = whole // 1024, larger
    return f"{whole} {word}"


def exact_duration(seconds: float) -> str:
    """Seconds in the largest unit that tells them exactly: ``15m``, ``4h``; :func:`read_seconds` reads it back."""
    for word, length_s in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds and seconds % length_s == 0:
            return f"{int(seconds // length_s)}{word}"
    return f"{int(seconds) if seconds == int(seconds) else seconds}s"


def times(count: int) -> str:
    """``once``, ``twice``, ``7 times``."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def read_number(value: Any) -> float | None:
    """A finite number, 0 or greater; no boolean and no text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value)
    return number if 0 <= number < float("inf") else None


def read_seconds(value: Any) -> float | None:
    """``90``, ``'30s'``, ``'10m'``, ``'4h'``, ``'2d'``; at most :data:`MOST_SECONDS`."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    seconds = float(found[1]) * _SECONDS[found[2]] if found else read_number(value)
    return seconds if seconds is not None and seconds <= MOST_SECONDS else None


def read_bytes(value: Any) -> float | None:
    """``1024``, ``'512 B'``, ``'100 KiB'`` (of 1024), ``'1.5 MB'`` (of 1000)."""
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return read_number(value)
    power = " kmgt".index(found[2].lower()) if found[2] else 0
    unit: int = 1024 if found[3] else 1000
    return float(found[1]) * float(unit**power)


def read_share(value: Any) -> float | None:
    """``0.2`` or ``'20%'``; from 0 to 1."""
    found = _SHARE.fullmatch(value) if isinstance(value, str) else None
    share = float(found[1]) / (100 if found[2] else 1) if found else read_number(value)
    return share if share is not None and share <= 1 else None


def read_whole(value: Any) -> int | None:
    """A whole number, 0 or greater, also as text."""
    number = read_number(float(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value)
    return int(number) if number is not None and number == int(number) else None
