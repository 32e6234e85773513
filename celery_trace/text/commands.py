"""Celery's command line, as the user has written it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Final

_SUBCOMMANDS: Final = frozenset({"trace", "monitor", "worker", "beat", "multi"})


def given_app(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """The app as it was given to celery, by ``-A``, ``--app`` or ``APP``; empty if it was not. Quoted for a shell."""
    words = iter(argv[1:])
    for word in words:
        if word in {"-A", "--app"}:
            return shlex.quote(next(words, ""))
        if word.startswith("--app=") or (word.startswith("-A") and len(word) > 2):
            return shlex.quote(word.removeprefix("--app=").removeprefix("-A"))
        if word in _SUBCOMMANDS:
            break  # what follows are its options
    return shlex.quote(environment["APP"]) if environment.get("APP") else ""
