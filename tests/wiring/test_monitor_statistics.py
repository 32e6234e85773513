"""The statistics page as it is served: how big the store is, and what was lost with the one before."""

from tests.support.monitor_app import Client, make_monitor, serving
from tests.support.store_records import failure


def test_the_page_shows_the_stores_size_and_that_it_was_lost(tmp_path):
    with serving(lambda: make_monitor(tmp_path, roles=(), token="script-token")) as (address, application):
        store = application.context.store
        store.write([failure("t1")])
        for path in tmp_path.rglob("trace.db*"):
            path.unlink()
        store.write([failure("t2")])
        client = Client(address)
        client.log_in()
        answer = client.get("/trace/statistics")
        assert answer.status == 200
        page = answer.text
        assert "The store takes " in page
        assert "1 failures take " in page
        assert "file was deleted while in use" in page
        stats = client.get("/api/trace/stats").json()
        assert [lost["why"] for lost in stats["lost_stores"]] == ["deleted"]
        assert stats["size"]["failures"] == 1
