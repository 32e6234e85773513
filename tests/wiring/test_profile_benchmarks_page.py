"""The page of the benchmarks: promises stand plainly, also those that were not kept, and what is missing is said."""

from __future__ import annotations

import platform
import socket

from benchmarks.__main__ import BENCHMARKS, FOLDER, Reach, Section, page


def test_a_promise_that_was_not_met_says_so() -> None:
    reach = [Reach("rate", "at least 0.98", "0.91", False), Reach("pause", "at most 200 ms", "90 ms", True)]
    text = page([Section("A worker", "Words.", ["| a | b |"], reach)], "make bench", [0.5, 3.25], ["shell"])
    assert "| rate | at least 0.98 | 0.91 | **not met** |" in text
    assert "| pause | at most 200 ms | 90 ms | met |" in text
    assert "`shell` did not finish" in text
    assert "0.5 to 3.2" in text


def test_the_page_names_machine_and_command_but_no_host() -> None:
    text = page([], "make bench", [0.5], [])
    assert "`make bench`" in text
    assert platform.python_version() in text
    assert socket.gethostname() not in text.split()


def test_every_benchmark_is_a_script_of_its_own() -> None:
    for benchmark in BENCHMARKS:
        assert 'if __name__ == "__main__":' in (FOLDER / benchmark.script).read_text()
