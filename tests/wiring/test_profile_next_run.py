"""
Profiling the next run: once, by one process, never two trackers, and never at the task's expense.

The cases run in a process of their own: memray sets the interpreter's profile function, and in one where other tests
have interrupted threads and left trampolines of tracing behind, CPython 3.11 can spin on the next frame.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "support" / "profile_cases.py"


def test_every_case_of_profiling_holds_in_a_process_of_its_own():
    expected = len(re.findall(r"^def test_", CASES.read_text(), re.MULTILINE))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:randomly", str(CASES)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None, ran.stdout
    assert int(passed[1]) >= expected > 5, ran.stdout
