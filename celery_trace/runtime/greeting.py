"""What the worker prints below its banner: that it is traced, where its records go, and what to run next."""

from __future__ import annotations

import os
import sys
from typing import Protocol

from celery_trace.guard import Guard
from celery_trace.redaction import Redactor
from celery_trace.settings import Settings
from celery_trace.text.commands import given_app


class Banner(Protocol):
    """A worker that prints a banner."""

    def extra_info(self) -> str | None:
        """The text below the banner."""


def destination(settings: Settings) -> str:
    """Where the records go, without a password."""
    if settings.transport == "broker":
        return "the broker, for a monitor on it"
    if not settings.store:
        return str(settings.folder / "trace.db")
    return Redactor(settings.redact).text(settings.store_url)


def greeting(settings: Settings, app_name: str) -> str:
    """The text, in the style of Celery's banner."""
    app = given_app(sys.argv, os.environ) or app_name
    named = f" -A {app}" if app else ""
    return (
        f"\n[celery-trace]\n  . records go to {destination(settings)}"
        f"\n  . to see them: celery{named} monitor   or: celery{named} trace doctor\n"
    )


def add(worker: object, settings: Settings, app_name: str) -> None:
    """Have a worker print the text below its banner; a second call does nothing. With ``--quiet`` it prints none."""
    before = getattr(worker, "extra_info", None)
    if before is None or getattr(before, "__module__", "") == __name__:
        return

    def extra_info() -> str:
        text = str(before() or "")
        with Guard("greeting"):
            text += greeting(settings, app_name)
        return text

    worker.extra_info = extra_info  # type: ignore[attr-defined] # one instance's, so there is nothing to undo
