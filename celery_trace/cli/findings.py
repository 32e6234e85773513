"""The results of the checks of ``celery trace doctor``."""

from __future__ import annotations

from msgspec import Struct


class Finding(Struct, frozen=True, kw_only=True):
    """The result of a check: ``level`` is ``ok``, ``warn`` (something useful is missing) or ``fail``."""

    level: str
    check: str
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(level="ok", check=check, found=found)


def warn(check: str, found: str, advice: str) -> Finding:
    """Something useful is missing."""
    return Finding(level="warn", check=check, found=found, advice=advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(level="fail", check=check, found=found, advice=advice)
