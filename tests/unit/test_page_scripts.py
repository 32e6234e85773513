"""The pages' scripts by themselves: what node's own test runner says of tests/javascript."""

import json
import re
import subprocess

import pytest

from tests.support import requirements
from tests.support.processes import REPOSITORY

FOLDER = REPOSITORY / "tests" / "javascript"
#: How a test begins, on a line of its own.
TEST = re.compile(r"^ *test\(", re.MULTILINE)


def test_the_pages_scripts_pass_their_own_tests():
    node = requirements.program("node", package="nodejs")
    if not (REPOSITORY / "node_modules" / "jsdom").is_dir():
        requirements.lacking("jsdom", "`make node` installs it")
    words = [node, f"--test-reporter={FOLDER / 'reporter.js'}", str(FOLDER / "all.js")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50, check=False, cwd=REPOSITORY)
    said = f"{done.stdout}\n{done.stderr}"
    results = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [f"{one['name']}\n{one['why']}" for one in results if not one["passed"]]
    if failed:
        pytest.fail("\n\n".join(failed), pytrace=False)
    assert done.returncode == 0, said
    written = sum(len(TEST.findall(path.read_text())) for path in FOLDER.glob("*.test.js"))
    assert len([one for one in results if not one["skipped"]]) == written > 0, said
