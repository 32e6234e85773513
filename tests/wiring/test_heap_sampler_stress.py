"""The heap sampler in a process that does everything at once that could upset it."""

import os
import subprocess
import sys

import pytest

from celery_trace.heap.picks import CannotSample
from celery_trace.heap.sampler import Sampler
from tests.support.processes import REPOSITORY, clean_environment


@pytest.mark.parametrize("way", ["debug", "pymalloc"])
def test_threads_forks_collections_and_tracing_at_once_break_nothing(way: str) -> None:
    try:
        Sampler()
    except CannotSample as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.heap_stress", "4"],
        cwd=REPOSITORY,
        env=clean_environment({"PYTHONMALLOC": way, "PYTHONWARNINGS": "ignore"}),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-4000:])
