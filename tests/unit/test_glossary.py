"""Pages, commands and docs use the terms of docs/glossary.md, and no banned words."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_trace.model.records import Outcome, Verdict
from tests.support import prose

KNOWN = prose.terms()
READ = [*prose.docs(), *prose.templates(), *prose.scripts(), *prose.modules()]


def name(path: Path) -> str:
    return str(path.relative_to(prose.ROOT))


def test_headings_and_labels_have_their_terms_in_the_glossary() -> None:
    shown = [*prose.templates(), *prose.modules()]
    assert {name(path): wrong for path in shown if (wrong := prose.unknown(path, KNOWN))} == {}


def test_no_text_has_a_banned_word() -> None:
    assert {name(path): found for path in READ if (found := prose.banned(prose.prose(path)))} == {}


def test_headings_and_labels_are_found_in_pages_and_commands() -> None:
    found = {one for path in prose.templates() for one in prose.headings(path) | prose.labels(path)}
    assert {"Verdict", "Processes", "Channels", "Statistics"} <= found | {
        one for path in prose.modules() for one in prose.headings(path)
    }
    assert "VERDICT" in {one for path in prose.modules() for one in prose.labels(path)}


@pytest.mark.parametrize("word", [*Verdict, *Outcome])
def test_verdicts_and_outcomes_are_explained(word: str) -> None:
    assert word in KNOWN or f"`{word}`" in KNOWN["outcome"]


def test_each_term_is_there_once() -> None:
    lines = prose.GLOSSARY.read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[1] for line in lines if line.startswith("| ")]
    terms = [term.strip().lower() for cell in cells for term in cell.split(",")]
    assert {term for term in terms if terms.count(term) > 1} <= {"term", "label"}


@pytest.mark.parametrize(
    "text", ["It was told.", "nobody\nknows", "'5x' is no age", "The block, whose label it is", "Tables beside it"]
)
def test_a_banned_word_is_found(text: str) -> None:
    assert prose.banned(text)


@pytest.mark.parametrize("text", ["`shipped` stands for all", "requirements-beside.txt", "docs/0010-blame-by-code.md"])
def test_names_and_terms_with_such_a_word_are_not(text: str) -> None:
    assert prose.banned(text) == []


def test_a_module_is_read_by_its_texts_and_the_headings_of_its_docstrings(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""A heading.\n\nIt is told."""\n\nTEXT = f"heard {1}"\n')
    assert len(prose.banned(prose.prose(module))) == 1


def test_an_unknown_label_and_a_heading_without_a_term_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<h2>What stays {{ x }}</h2><h2>Leak</h2><th>So far</th><td data-label="Verdict"></td>')
    assert prose.unknown(page, KNOWN) == ["So far", "What stays"]
