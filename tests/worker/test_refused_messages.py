"""What a real worker refuses before it is a task is one record a message, made without decoding what is unsafe."""

from __future__ import annotations

import json
import pickle
from uuid import uuid4

import pytest
from kombu import Connection, Producer

from tests.support import failing_project
from tests.support.processes import free_port

SETTINGS = {"memory": "off"}


class Mine:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def project(tmp_path):
    return failing_project.write(tmp_path / "project")


@pytest.fixture
def publish(own_broker_url):
    """Put raw bytes into the worker's queue; gives the id in the headers."""
    with Connection(own_broker_url) as connection:
        producer = Producer(connection)

        def publish(body, *, kind="application/json", encoding="utf-8", task="failing.two", **more):
            id = str(uuid4())
            headers = {"task": task, "id": id, "retries": 0, "api_key": "hunter2", **more} if task else {}
            producer.publish(
                body, routing_key="celery", content_type=kind, content_encoding=encoding, headers=headers,
                correlation_id=id,
            )  # fmt: skip
            return id

        yield publish


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_each_message_that_is_refused_is_one_record_that_says_why(
    start_worker, project, publish, records, trace_dir, tmp_path, pool
):
    worker = start_worker("failing", project, settings=SETTINGS, pool=pool)
    mine = tmp_path / "went-off"
    pickled = pickle.dumps([(Mine(mine),), {}, {}])
    body = json.dumps([[1, 2], {"password": "hunter2"}, {}]).encode()
    publish(json.dumps({"task": "failing.two", "id": "p1", "args": [1, 2], "kwargs": "none"}).encode(), task="")
    ids = {
        "bad arguments": "p1",
        "pickled": publish(pickled, kind="application/x-python-serialize", encoding="binary"),
        "broken": publish(b'[[1, 2], {"password": "hunter2"'),
        "stranger": publish(json.dumps({"hello": "hunter2"}).encode(), task=""),
        "unknown": publish(body, task="failing.nothing"),
        "unknown and pickled": publish(pickled, kind="application/x-python-serialize", task="failing.nothing"),
        "fails": publish(json.dumps([["one"], {}, {}]).encode()),
    }

    def found(queries):
        rows = {row.task_id: row for row in queries.failures(limit=100).rows}
        return len(rows) == len(ids) and rows

    rows = records.wait(found, "a record of each message", explain=worker.tail)
    assert set(rows) == set(ids.values())
    seen = {name: rows[id] for name, id in ids.items()}
    assert {name: (row.outcome, row.name, row.exception.type) for name, row in seen.items()} == {
        "pickled": ("rejected", "failing.two", "ContentDisallowed"),
        "broken": ("rejected", "failing.two", "DecodeError"),
        "stranger": ("rejected", "(no task)", "UnknownMessage"),
        "bad arguments": ("rejected", "failing.two", "InvalidTaskError"),
        "unknown": ("failed", "failing.nothing", "NotRegistered"),
        "unknown and pickled": ("failed", "failing.nothing", "NotRegistered"),
        "fails": ("failed", "failing.two", "TypeError"),
    }
    details = {name: records.queries.failure(row.id) for name, row in seen.items()}
    assert "Refusing to deserialize" in details["pickled"].exception.message
    size = f"content type application/x-python-serialize, encoding binary, body {len(pickled)} bytes"
    assert details["pickled"].note.endswith(size)
    assert "could not decode the message" in details["broken"].note
    assert "delimiter" in details["broken"].exception.message, "as the decoder says it"
    assert details["broken"].task.headers["api_key"] == "[redacted]"
    assert [arg.value for arg in details["unknown"].args] == ["1", "2"]
    assert details["unknown and pickled"].args == []
    worker.stop()
    assert not mine.exists(), "nothing was unpickled"
    for path in trace_dir.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()


def test_a_flood_of_refused_messages_is_bounded_and_counted(start_worker, project, publish, records):
    worker = start_worker("failing", project, settings=SETTINGS)
    for _ in range(400):
        publish(b"{broken")
    good = publish(json.dumps([["one"], {}, {}]).encode())
    records.failure_of(good, explain=worker.tail)

    def told(queries):
        refused = queries.failures(outcome="rejected", limit=500).rows
        notes = [queries.failure(row.id).note for row in refused]
        left_out = sum(int(note.split(" more such messages were refused")[0].rpartition(" ")[2]) for note in notes
                       if "more such messages were refused" in note)  # fmt: skip
        return len(refused) + left_out == 400 and len(refused)

    recorded = records.wait(told, "the flood in records and in numbers", explain=worker.tail)
    assert 30 <= recorded <= 60, "thirty a minute"
    assert records.wait(lambda queries: queries.stats().cut.get("refused_messages"), "the count in the account") > 300


def test_an_unknown_task_is_recorded_while_the_result_backend_is_away(start_worker, project, publish, records):
    away = {"FAILING_RESULTS": f"redis://127.0.0.1:{free_port()}/0"}
    worker = start_worker("failing", project, settings=SETTINGS, extra=away)
    found = records.failure_of(publish(b"[[], {}, {}]", task="failing.nothing"), explain=worker.tail)
    assert (found.outcome, found.exception.type) == ("failed", "NotRegistered")
