"""docs/architecture.md names every room of the core, in the layer in which import-linter has it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import celery_trace

CORE = Path(celery_trace.__file__).parent
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

Layers = list[set[str]]


def layers_of(**wanted: Any) -> list[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    found = [
        one for one in contracts if one["type"] == "layers" and wanted.items() <= {"containers": None, **one}.items()
    ]
    assert len(found) == 1
    layers: list[str] = found[0]["layers"]
    return layers


def layer_sets(lines: list[str]) -> Layers:
    return [{room.strip() for room in line.split("|")} for line in lines]


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## )", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def rows(text: str) -> set[str]:
    """The names in the first column of a table."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def core_layers() -> list[str]:
    return layers_of(containers=["celery_trace"], exhaustive=True)


def test_the_page_has_the_layers_that_import_linter_holds() -> None:
    [drawn] = re.findall(r"```\n(.*?)```", section("Layers"), flags=re.DOTALL)
    packages = layers_of(containers=None)
    assert packages[-1] == "celery_trace"
    assert layer_sets(drawn.splitlines()) == layer_sets([*packages[:-1], *core_layers()])


def test_every_room_has_a_row_of_its_own_and_no_row_is_left_of_one_that_went() -> None:
    rooms = re.split(r"^In `\w+`:$", section("Rooms"), flags=re.MULTILINE)[0]
    assert rows(rooms) == set().union(*layer_sets(core_layers()))


@pytest.mark.parametrize("room", re.findall(r"^In `(\w+)`:$", PAGE, flags=re.MULTILINE))
def test_a_module_that_the_page_names_in_a_room_exists(room: str) -> None:
    tables = re.split(r"^In `(\w+)`:$", section("Rooms"), flags=re.MULTILINE)
    named = rows(tables[tables.index(room) + 1])
    assert named
    assert named <= {path.stem for path in (CORE / room).glob("*.py")}
