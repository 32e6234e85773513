"""The corpus says of itself what is true: its leaks keep what they say for ever, its look-alikes are bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.corpus import cases
from tests.corpus.cases import DECOYS, LEAKS
from tests.support.processes import REPOSITORY, clean_environment

cases.load()
#: The measurement takes as long as it may, which is longer than a test of this tier may.
pytestmark = pytest.mark.timeout(300)
#: What the interpreter's own caches may gain, bytes.
NOISE_BYTES = 8_192


@pytest.fixture(scope="module")
def kept() -> Any:
    """What tracemalloc says of all cases, measured in a process of its own."""
    words = [sys.executable, "-m", "tests.support.corpus_proof"]
    done = subprocess.run(
        words, cwd=REPOSITORY, env=clean_environment(), stdout=subprocess.PIPE, check=True, timeout=240
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [name for name, case in LEAKS.items() if case.kept_bytes is not None])
def test_a_leak_keeps_what_it_says_run_by_run(name: str, kept: Any) -> None:
    assert kept["leaks"][name] == pytest.approx(LEAKS[name].kept_bytes, rel=0.15)


@pytest.mark.parametrize("name", DECOYS)
def test_a_look_alike_is_bounded_in_the_long_run(name: str, kept: Any) -> None:
    before, after = kept["decoys"][name]
    assert after <= before * 1.02 + NOISE_BYTES


def test_every_leak_on_the_heap_has_a_marked_line_and_a_holder() -> None:
    assert [case.name for case in LEAKS.values() if not case.native and not (case.lines and case.holders)] == []


def test_there_are_sixty_of_each() -> None:
    assert sum(not case.native for case in LEAKS.values()) >= 60
    assert len(DECOYS) >= 60
