"""A loaded worker that is asked to end: what Celery promises then holds with the plugin too."""

import pytest

from tests.support.warm_shutdown import CONCURRENCY, both_ways

STOPS = 3


@pytest.mark.timeout(600)
def test_a_loaded_worker_that_is_stopped_loses_no_message_and_runs_few_twice(
    tmp_path, own_broker_url, second_broker_url
):
    with_plugin, without = both_ways(tmp_path / "ways", (own_broker_url, second_broker_url), stops=STOPS)
    told = f"with: {with_plugin}; without: {without}"
    assert with_plugin.lost == without.lost == [], told
    assert with_plugin.killed == without.killed == 0, told
    # Celery itself runs twice what it has written to a child that has not taken it yet: one message a child at most.
    # A hundred stops are compared by `python -m benchmarks.warm_shutdown`.
    assert len(with_plugin.twice) <= STOPS * CONCURRENCY, told
