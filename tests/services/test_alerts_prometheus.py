"""The shipped Prometheus rules, judged by Prometheus' own tool."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.requirements import program

RULES = Path(__file__).parents[2] / "docs" / "prometheus" / "celery-trace.rules.yml"


def test_promtool_accepts_the_shipped_rules() -> None:
    promtool = program("promtool", package="prometheus")
    checked = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "12 rules found" in checked.stdout
