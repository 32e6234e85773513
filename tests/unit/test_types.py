"""How much of the code is not typed."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("celery_trace", "django_bridge", "flower_plugin")
#: Lines of the three packages that use `Any`. Lower it with what you type; never raise it.
MOST_LINES_WITH_ANY = 55


def lines_with_any(source: str) -> set[int]:
    """The numbers of the lines that use the name; its imports don't count."""
    if "Any" not in source:  # parsing takes long
        return set()
    return {node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name) and node.id == "Any"}


def test_a_line_counts_once_and_an_import_not_at_all() -> None:
    assert lines_with_any("from typing import Any\n\ndef f(a: Any, b: list[Any]) -> Any:\n    '''Any.'''\n") == {3}


def test_no_more_lines_use_any_than_before() -> None:
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): len(lines_with_any(path.read_text(encoding="utf-8"))) for path in modules}
    assert sum(found.values()) <= MOST_LINES_WITH_ANY, {path: count for path, count in found.items() if count}
