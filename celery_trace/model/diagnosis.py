"""The answers of ``celery trace diagnose``: what is known about a task, how, and what can't be known."""

from __future__ import annotations

from msgspec import Struct


class Known(Struct, frozen=True, kw_only=True):
    """A fact. ``about`` is the question that it answers, ``how`` its source, ``at`` seconds since the epoch."""

    about: str
    what: str
    how: str
    at: float | None = None


class Unknown(Struct, frozen=True, kw_only=True):
    """A question without an answer, and the reason."""

    about: str
    why: str


class Diagnosis(Struct, frozen=True, kw_only=True):
    """One task: ``summary`` is the most important fact, ``known`` are all of them, oldest first."""

    task_id: str
    summary: str
    known: list[Known]
    unknown: list[Unknown]


class Concern(Struct, frozen=True, kw_only=True):
    """Something about the system that needs attention. ``severity`` is ``critical``, ``warning`` or ``info``."""

    severity: str
    what: str
    how: str
    next: str = ""
