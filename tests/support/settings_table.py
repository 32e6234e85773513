"""The table of docs/settings.md, made from the settings; ``python -m tests.support.settings_table`` writes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from celery_trace.settings import SETTINGS, Settings
from celery_trace.text.format import size

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
HEAD = "| Setting | Default | Meaning |\n|---|---|---|\n"
_TABLE = re.compile(re.escape(HEAD) + r"(?:\|.*\n)*")


def _default(name: str) -> str:
    value: Any = getattr(Settings(), name)
    if name == "store":
        return "SQLite in `trace_dir`"
    if name == "shell_key":
        return "a file in `trace_dir`"
    if name == "alert_rules":
        return "the shipped rules"
    if name.endswith("_bytes"):
        return size(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"`{value!r}`" if isinstance(value, bool | str | tuple) else f"{value:g}"


def table() -> str:
    """The whole table, a row for each setting."""
    rows = (f"| `trace_{s.name}` | {_default(s.name)} | {s.meaning.replace('|', chr(92) + '|')} |\n" for s in SETTINGS)
    return HEAD + "".join(rows)


def written() -> str:
    """The table as it stands on the page; empty if there is none."""
    found = _TABLE.search(PAGE.read_text(encoding="utf-8"))
    return found[0] if found else ""


def main() -> None:
    """Put the table onto the page."""
    PAGE.write_text(_TABLE.sub(lambda _: table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
