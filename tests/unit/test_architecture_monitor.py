"""docs/architecture.md has the floors of the monitor and of the Django bridge, as import-linter holds them."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.support.processes import REPOSITORY

TEXT = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
CONTRACTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
HEADINGS = {"flower_plugin": "The monitor", "django_bridge": "The Django bridge"}


def section(heading: str) -> str:
    match = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert match, f"docs/architecture.md has no section {heading!r}"
    return match[1]


def contract(package: str) -> dict:
    (found,) = [one for one in CONTRACTS if one.get("containers") == [package]]
    return found


@pytest.mark.parametrize("package", HEADINGS)
def test_the_floors_of_the_page_are_those_of_the_contract(package):
    block = re.search(r"```\n(.*?)```", section(HEADINGS[package]), flags=re.DOTALL)
    assert block
    shown = [set(line.split(" | ")) for line in block[1].splitlines()]
    held = [set(re.sub(r"[()]", "", layer).split(" | ")) for layer in contract(package)["layers"]]
    assert shown == held


@pytest.mark.parametrize("package", HEADINGS)
def test_every_module_has_its_floor(package):
    assert contract(package)["exhaustive"]
    children = {
        path.stem
        for path in (REPOSITORY / package).iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    layers = contract(package)["layers"]
    assert {name for layer in layers for name in re.findall(r"\w+", layer)} == children


def test_every_room_of_the_monitor_is_described():
    described = re.findall(r"^\| `(\w+)` \|", section(HEADINGS["flower_plugin"]), flags=re.MULTILINE)
    rooms = [name for layer in contract("flower_plugin")["layers"] for name in re.findall(r"\w+", layer)]
    assert described == rooms


def test_no_circle_is_allowed():
    (contract,) = [one for one in CONTRACTS if one["type"] == "acyclic_siblings"]
    assert set(contract["ancestors"]) >= set(HEADINGS)
    assert "ignore_imports" not in contract


def imported(path: Path) -> set[str]:
    """The packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_only_upstream_imports_flower():
    package = REPOSITORY / "flower_plugin"
    assert [path.name for path in sorted(package.rglob("*.py")) if "flower" in imported(path)] == ["upstream.py"]
