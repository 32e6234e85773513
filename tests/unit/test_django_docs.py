"""What the page about Django promises is what there is."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "django.md").read_text()


def test_every_check_and_no_other_is_documented():
    source = (REPOSITORY / "django_bridge" / "checks.py").read_text()
    assert set(re.findall(r"celery_trace\.[EW]\d+", PAGE)) == set(re.findall(r"celery_trace\.[EW]\d+", source))


def test_every_command_and_no_other_is_documented():
    folder = REPOSITORY / "django_bridge" / "management" / "commands"
    commands = {path.stem for path in folder.glob("trace_*.py")}
    assert commands == set(re.findall(r"manage\.py (trace_\w+)", PAGE))


def test_the_limit_of_suspicious_operations_is_the_documented_one():
    source = (REPOSITORY / "django_bridge" / "tracer.py").read_text()
    most = re.search(r"^SUSPICIONS: Final = (\d+)$", source, re.MULTILINE)[1]
    assert f"at most {most} a minute and process" in PAGE
