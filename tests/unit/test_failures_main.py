"""What the worker's main process alone can say: revoked, expired and unknown tasks."""

import pytest

from celery_trace.clock import FakeClock
from celery_trace.failures.watcher import FailureWatcher
from celery_trace.failures.writer import FailureWriter
from celery_trace.model import Outcome, ProcessRecord, Role, encode, failure_id
from celery_trace.settings import Settings


class Message:
    """As the worker's own request object: the signal is sent from one of its methods."""

    worker_pid = 77
    time_start = 900.0
    args = (5,)
    kwargs = {"password": "open sesame 12"}  # noqa: RUF012

    def __init__(self, watcher, retries=2):
        self._watcher = watcher
        self._request_dict = {"retries": retries}

    def _announce_revoked(self, **signal):
        context = {"id": "t1", "task": "shop.ship", "retries": 2, "delivery_info": {"routing_key": "slow"}}
        self._watcher.revoked(request=context, **signal)


@pytest.fixture
def records():
    return []


@pytest.fixture
def watcher(records):
    process = ProcessRecord(uid="u", host="h", pid=1, started_at_s=0.0, role=Role.MAIN, worker="w@h")
    settings, clock = Settings(), FakeClock()
    return FailureWatcher(settings, process, FailureWriter(settings, process, records.append, clock), clock)


@pytest.mark.parametrize(
    ("signal", "message", "note"),
    [
        ({"terminated": False, "expired": True}, "expired", "expired before it began"),
        ({"terminated": False, "expired": False}, "revoked", "revoked before it began"),
    ],
    ids=["expired", "revoked"],
)
def test_a_task_that_never_began_is_told_with_its_arguments_and_no_process(watcher, records, signal, message, note):
    Message(watcher)._announce_revoked(**signal)
    (failure,) = records
    assert (failure.id, failure.outcome) == (failure_id("t1", 2), Outcome.REVOKED)
    assert (failure.name, failure.task.queue) == ("shop.ship", "slow")
    assert (failure.exception.message, failure.note) == (message, note)
    assert (failure.pid, failure.duration_s) == (0, None)
    heap = failure.capture.heap
    assert heap[heap[failure.capture.args].items[0]].value == 5
    assert "redacted" in {node.kind for node in heap}


def test_a_task_that_was_terminated_tells_its_process_and_how_long_it_ran(watcher, records):
    Message(watcher)._announce_revoked(terminated=True, expired=False, signum="SIGTERM")
    (failure,) = records
    assert failure.pid == 77
    assert failure.duration_s is not None
    assert failure.note == "terminated while it ran, signal SIGTERM"


def test_what_the_arguments_tell_to_be_secret_is_in_no_other_part_of_the_record(watcher, records):
    said = "Traceback …\nValueError: no entry with open sesame 12"
    watcher.main_failure(
        task_id="t2",
        exception=ValueError("no entry with open sesame 12"),
        args=(),
        kwargs={"password": "open sesame 12"},
        traceback=said,
    )
    headers = {"task": "shop.gone", "id": "t3", "retries": 0, "note": "open sesame 12"}
    refuse_unknown(watcher, UnknownMessage(headers, {"password": "open sesame 12"}))
    assert [record.task_id for record in records] == ["t2", "t3"]
    assert records[0].traceback_text.startswith("Traceback")
    assert "note" in records[1].task.headers
    assert b"open sesame" not in encode(records[0]) + encode(records[1])


def refuse_unknown(watcher, message):
    watcher.refusals.refused("on_unknown_task", message, KeyError("shop.gone"))


class UnknownMessage:
    delivery_info: dict = {}  # noqa: RUF012

    def __init__(self, headers, kwargs):
        self.headers = headers
        self.payload = [(), kwargs, {}]


def test_the_same_revoke_told_twice_is_one_record(watcher, records):
    message = Message(watcher)
    for _ in range(2):
        message._announce_revoked(terminated=True, expired=False)
    assert len(records) == 1


def test_a_task_that_nobody_knows_is_told_by_its_name(watcher, records):
    class Body:
        headers = {"task": "shop.gone", "id": "t2", "retries": 1, "root_id": "r", "user": "ada"}  # noqa: RUF012
        delivery_info = {"routing_key": "shop"}  # noqa: RUF012
        payload = ((1, "two"), {}, {})

    refuse_unknown(watcher, Body())
    (failure,) = records
    assert (failure.name, failure.retries, failure.exception.type) == ("shop.gone", 1, "NotRegistered")
    assert (failure.task.root_id, failure.task.headers) == ("r", {"user": "ada"})
    assert failure.capture.heap[failure.capture.args].length == 2


def test_what_a_decoder_says_is_kept_only_where_it_does_not_quote_the_message(watcher, records):
    class Body:
        headers = {"task": "shop.pay", "id": "t4"}  # noqa: RUF012
        body = b"password: hunter2: broken"
        content_encoding = "utf-8"

    quoting = ValueError("mapping values are not allowed here: password: hunter2: broken")
    for kind in ("application/json", "application/x-yaml"):
        message = Body()
        message.content_type = kind
        watcher.refusals.refused("on_decode_error", message, ValueError("at line 1") if "json" in kind else quoting)
    assert [failure.exception.message[:9] for failure in records] == ["at line 1", "(left out"]
    assert records[1].note.endswith("content type application/x-yaml, encoding utf-8, body 25 bytes")
    assert b"hunter2" not in encode(records[1])


def test_an_unreadable_body_loses_the_arguments_and_not_the_failure(watcher, records):
    class Body:
        headers = None
        properties = {"correlation_id": "t3"}  # noqa: RUF012
        delivery_info = None

        @property
        def payload(self):
            raise ValueError("no such codec")

    refuse_unknown(watcher, Body())
    assert [failure.capture for failure in records] == [None]
