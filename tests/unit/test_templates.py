"""Templates that a reviewer can read in a diff."""

import re

import pytest

from flower_plugin.rendering.templating import FOLDER

TEMPLATES = sorted(FOLDER.rglob("*.html"))
WIDEST = 160
#: These are spliced into Flower's templates, whose escaping holds there.
SPLICED = {"nav", "user", "logout", "on_task", "on_worker", "on_flower_head", "on_flower_body"}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_line_of_a_template_is_too_long_to_review(path):
    long = [number for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > WIDEST]
    assert long == [], f"lines over {WIDEST} columns"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_what_a_template_includes_is_there_and_escapes_as_ours_do(path):
    text = path.read_text()
    for name in re.findall(r'(?:include|extends|module Template\()\s*"(trace/[\w.]+)"', text):
        assert (FOLDER / name).is_file(), name
    if "{{" in text and path.stem not in SPLICED:
        assert text.startswith("{% autoescape show %}")
