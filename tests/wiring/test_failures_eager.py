"""Eager tasks: no worker, the same records."""

import msgspec
import pytest
from celery import Celery, Task

from celery_trace.clock import FakeClock
from celery_trace.failures.watcher import FailureWatcher
from celery_trace.failures.writer import FailureWriter
from celery_trace.model import ProcessRecord, Role, failure_id
from celery_trace.settings import Settings


class BadEnd(Task):
    def on_failure(self, exc, task_id, args, kwargs, einfo):
        raise RuntimeError("the end is bad")


class Heard:
    """The signals of one app, handed to a watcher as the plugin does."""

    def __init__(self, settings):
        from celery import signals

        self.records = []
        self.kept = []
        process = ProcessRecord(uid="u", host="h", pid=1, started_at_s=0.0, role=Role.SCRIPT)
        clock = FakeClock()
        writer = FailureWriter(settings, process, self.records.append, clock, keep=lambda *pair: self.kept.append(pair))
        watcher = FailureWatcher(settings, process, writer, clock)
        self._connected = [
            (signals.task_prerun, lambda task_id, **_: writer.written.pop(task_id, None)),
            (signals.task_postrun, watcher.postrun),
            (signals.task_failure, watcher.failure),
            (signals.task_retry, watcher.retry),
            (signals.task_internal_error, watcher.internal_error),
        ]
        for signal, receiver in self._connected:
            signal.connect(receiver, weak=False)

    def close(self):
        for signal, receiver in self._connected:
            signal.disconnect(receiver)


@pytest.fixture
def heard():
    opened = []

    def listen(**settings):
        opened.append(Heard(Settings(**settings)))
        return opened[-1]

    yield listen
    for one in opened:
        one.close()


@pytest.fixture
def app():
    app = Celery("eager", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    yield app
    app.close()


@pytest.fixture
def boom(app):
    @app.task(name="boom", shared=False)
    def boom(amount, password=None):
        half = amount / 2
        raise ValueError(f"{half} with {password}")

    return boom


def locals_of(failure, frame=0):
    capture = failure.capture
    return {local.name: capture.heap[local.ref].value for local in capture.exceptions[0].frames[frame].locals}


@pytest.mark.parametrize("propagate", [False, True])
def test_an_eager_failure_is_one_record_whether_it_propagates_or_not(heard, boom, propagate):
    listening = heard()
    if propagate:
        with pytest.raises(ValueError, match="with hunter2x"):
            boom.apply((5, "hunter2x"), throw=True)
    else:
        boom.apply((5, "hunter2x"))
    (failure,) = listening.records
    assert failure.outcome == "failed"
    assert failure.id == failure_id(failure.task_id, 0)
    assert failure.exception.message == "2.5 with [redacted]"
    assert locals_of(failure)["half"] == 2.5
    assert failure.task.eager
    assert failure.capture.heap[failure.capture.args].length == 2


def test_what_was_captured_is_kept_after_it_was_recorded(heard, boom):
    listening = heard()
    boom.apply((5,))
    ((failure, error),) = listening.kept
    assert failure == listening.records[0]
    assert isinstance(error, ValueError)


def test_an_on_failure_that_raises_is_an_internal_error_recorded_once(heard, app):
    @app.task(name="bad_end", shared=False, base=BadEnd)
    def bad_end():
        raise ValueError("first")

    listening = heard()
    with pytest.raises(RuntimeError, match="the end is bad"):
        bad_end.apply()
    (failure,) = listening.records
    assert failure.outcome == "internal_error"
    assert [one.message for one in failure.capture.exceptions] == ["the end is bad", "first"]


def test_the_same_task_run_again_is_recorded_again(heard, boom):
    listening = heard()
    for _ in range(2):
        boom.apply((5,), task_id="same")
    assert len(listening.records) == 2, "a redelivered message is a run of its own"


def test_nothing_is_recorded_when_failures_are_off(heard, boom):
    listening = heard(failures=False)
    boom.apply((5,))
    assert listening.records == []


def test_a_success_records_nothing(heard, app):
    @app.task(name="fine", shared=False)
    def fine():
        return 1

    listening = heard()
    assert fine.apply().get() == 1
    assert listening.records == []


def test_the_users_headers_are_told_without_their_secrets(heard, app):
    @app.task(name="headed", shared=False)
    def headed():
        raise ValueError

    listening = heard()
    headed.apply(headers={"tenant": "acme", "x-api-key": "hunter2x"})
    assert listening.records[0].task.headers == {"tenant": "acme", "x-api-key": "[redacted]"}


def test_a_run_that_begins_anew_under_its_id_is_no_repeat(heard, boom):
    listening = heard()
    for _ in range(2):
        boom.apply(args=(3,), task_id="same", throw=False)
    assert [failure.id for failure in listening.records] == [failure_id("same", 0)] * 2


def test_in_the_main_process_a_second_death_of_a_redelivered_run_is_recorded_again():
    records = []
    process = ProcessRecord(uid="u", host="h", pid=1, started_at_s=0.0, role=Role.MAIN)
    settings, clock = Settings(), FakeClock()
    watcher = FailureWatcher(settings, process, FailureWriter(settings, process, records.append, clock), clock)

    class Request:
        """As the worker's own: the signal is sent from one of its methods."""

        _request_dict = {"retries": 0}  # noqa: RUF012
        worker_pid = 7

        def __init__(self, time_start):
            self.time_start = time_start

        def on_failure(self):
            watcher.main_failure(task_id="killed", exception=type("WorkerLostError", (Exception,), {})("lost"))

    first, second = Request(1.0), Request(2.0)
    first.on_failure()
    first.on_failure()  # Celery says it twice
    second.on_failure()
    assert len(records) == 2


class Verbose(Exception):
    asked = 0

    def __init__(self, code, token):
        super().__init__(code, token)
        self.code, self.token = code, token

    def __str__(self):
        Verbose.asked += 1
        return f"the shop said {self.code}\nwith {self.token}"


def test_an_error_that_words_itself_is_quoted_from_celerys_traceback_and_not_asked_again(heard, app):
    @app.task(name="verbose", shared=False)
    def verbose(token):
        raise Verbose(418, token)

    Verbose.asked = 0
    verbose.apply(args=("tok-abcdef-123456",), throw=False)
    asked_by_celery = Verbose.asked
    listening = heard()
    Verbose.asked = 0
    verbose.apply(args=("tok-abcdef-123456",), throw=False)
    (failure,) = listening.records
    assert failure.exception.message == "the shop said 418\nwith [redacted]"
    assert Verbose.asked == asked_by_celery
    assert b"tok-abcdef" not in msgspec.json.encode(failure)
