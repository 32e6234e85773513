"""What is exported is what is stored."""

import json

import pytest

from celery_trace import export
from celery_trace.model import encode
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import open_store
from tests.support.store_contract import open_clock
from tests.support.store_records import NOW_S, failure, process, run, window


@pytest.fixture
def store(tmp_path):
    store = open_store(Settings(dir=str(tmp_path / "trace")), clock=open_clock())
    store.write(
        [
            process(),
            window("w1"),
            *(run(f"r{n}", started_at_s=NOW_S + n // 2) for n in range(25)),
            *(failure(f"t{n}", at_s=NOW_S + n) for n in range(10)),
        ]
    )
    yield store
    store.close()


def test_rows_come_once_whatever_the_size_of_a_page(store):
    ids = [row["id"] for row in export.rows(store, "runs", page=4)]
    assert sorted(ids) == sorted(f"r{n}" for n in range(25))


def test_json_lines_hold_each_record_whole(store, tmp_path):
    exported = export.write_json_lines(store, tmp_path / "out")
    assert exported.rows["failures"] == 10
    assert exported.rows["runs"] == 25
    lines = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [line["task_id"] for line in lines] == [f"t{n}" for n in range(10)]
    known = Queries(store).failure_record(lines[0]["id"])
    assert {"record": "failure", **lines[0]["payload"]} == json.loads(encode(known))
    assert (tmp_path / "out" / "failures.jsonl").stat().st_mode & 0o777 == 0o600


def test_parquet_holds_the_same_rows_and_what_is_older_stays_out(store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    exported = export.write_parquet(store, tmp_path / "out", since_s=NOW_S + 5)
    assert exported.rows["failures"] == 5
    table = parquet.read_table(tmp_path / "out" / "failures.parquet").to_pydict()
    assert table["task_id"] == [f"t{n}" for n in range(5, 10)]
    assert json.loads(table["payload"][0])["task_id"] == "t5"
    assert table["at_s"] == [NOW_S + n for n in range(5, 10)]
    assert parquet.read_table(tmp_path / "out" / "alerts.parquet").num_rows == 0
