"""The last log records of a run: bounded, redacted, and without running the user's code."""

import datetime
import decimal
import gc
import json
import logging
import threading
import weakref

import pytest

from celery_trace.failures import run_logs
from celery_trace.failures.run_logs import MOST_OF_RUN, MOST_RUNS, MOST_TEXT, RunLogs
from celery_trace.guard import own_errors
from celery_trace.redaction import Redactor, Scrubber


@pytest.fixture
def logger():
    """A logger of its own, without pytest's handlers, with one that does not format."""
    logger = logging.Logger("test.shop")
    logger.addHandler(logging.NullHandler())
    return logger


@pytest.fixture
def make():
    made = []

    def run_logs_of(most=50, find=lambda: ("id-1", 0)):
        logs = RunLogs(most, Redactor())
        logs.find.append(find)
        logs.attach()
        made.append(logs)
        return logs

    before = logging.Logger.callHandlers
    yield run_logs_of
    for logs in reversed(made):
        logs.detach()
    assert logging.Logger.callHandlers is before
    assert not own_errors


@pytest.fixture
def logs(make):
    return make()


def texts(logs, *key):
    return [line.text for line in logs.of(*(key or ("id-1", 0))).lines]


class Hostile:
    """Each of its methods is the user's code."""

    def __str__(self):
        raise RuntimeError("called")

    __repr__ = __len__ = __bool__ = __int__ = __float__ = __iter__ = __format__ = __str__


class Chatty:
    called = 0

    def __str__(self):
        Chatty.called += 1
        return "called"

    __repr__ = __str__


def test_the_last_records_are_kept_oldest_first_and_the_others_are_counted(make, logger):
    logs = make(most=3)
    for number in range(5):
        logger.info("step %d of %s", number, "five")
    tail = logs.of("id-1", 0)
    assert [line.text for line in tail.lines] == ["step 2 of five", "step 3 of five", "step 4 of five"]
    assert tail.left_out == 2
    (_, _, last) = tail.lines
    assert (last.level, last.logger, last.file) == ("INFO", "test.shop", __file__)
    assert last.line > 0
    assert logs.of("id-1", 1).lines == []


def test_no_code_of_a_value_runs_and_nothing_is_raised(logs, logger):
    Chatty.called = 0
    logger.warning("%s and %s", Hostile(), Chatty())
    logger.warning("%d", Hostile())
    logger.warning(Hostile())
    logger.warning("%(it)s", {"it": Chatty()})
    logger.warning([Chatty(), Hostile()])
    logger.warning(KeyError(Chatty()))
    assert Chatty.called == 0
    assert len(texts(logs)) == 6
    assert "Hostile" in texts(logs)[0]


def test_a_text_that_a_handler_has_formatted_is_used_as_it_is(logs, logger):
    class Formats(logging.Handler):
        def emit(self, record):
            self.format(record)

    Chatty.called = 0
    handler = Formats()
    logger.addHandler(handler)
    try:
        logger.warning("it is %s", Chatty())
    finally:
        logger.removeHandler(handler)
    assert (texts(logs), Chatty.called) == (["it is called"], 1)


@pytest.mark.parametrize(
    ("message", "arguments", "shown"),
    [
        ("%d of %s", (3, "x"), "3 of x"), ("%5.1f %%", (2.25,), "  2.2 %"),
        ("%(a)s-%(b)03d", ({"a": None, "b": 7},), "None-007"),
        ("%s", ({"a": 1, "b": [2]},), "{'a': 1, 'b': [2]}"), ("%r", (decimal.Decimal("1.5"),), "Decimal('1.5')"),
        ("%s", (datetime.date(2026, 11, 30),), "date('2026-11-30')"), ("%s", ([1, (2, 3)],), "[1, (2, 3)]"),
        ("%s", (ValueError("no such card"),), "no such card"), ("no place", (1,), "no place (1,)"),
        ("%s %s", (1,), "%s %s (1,)"), ("%(x)s", ({"y": 1},), "%(x)s {'y': 1}"), ("%d", ("x",), "%d ('x',)"),
        ("100 %", (), "100 %"), (5, (), "5"), ("%s", (10**400,), "<int>"), ("%q", (1,), "%q (1,)"),
    ],
)  # fmt: skip
def test_arguments_are_shown_as_logging_shows_them_or_after_the_message(logs, logger, message, arguments, shown):
    logger.info(message, *arguments)
    assert texts(logs) == [shown]


def test_nothing_of_the_users_is_kept_alive(logs, logger):
    class Big:
        pass

    big = Big()
    gone = weakref.ref(big)
    logger.warning("%s %s", big, [big])
    try:
        raise ValueError(big)
    except ValueError as error:
        logger.exception("failed with %s", error)
    del big
    gc.collect()
    assert gone() is None
    assert texts(logs)[1].endswith("(ValueError)")


def test_a_long_record_is_cut_and_what_is_cut_is_counted(logs, logger):
    logger.info("a" * 9000)
    logger.info("%s", "b" * 9000)
    first, second = logs.of("id-1", 0).lines
    assert (len(first.text), first.cut) == (MOST_TEXT, 9000 - MOST_TEXT)
    assert (len(second.text), second.text.strip("b")) == (MOST_TEXT, "")
    assert second.cut > 0


def test_the_records_of_a_run_are_bounded_in_characters(make, logger):
    logs = make(most=500)
    for number in range(400):
        logger.info("%s", f"{number:04d}" + "x" * 990)
    tail = logs.of("id-1", 0)
    assert sum(len(line.text) for line in tail.lines) <= MOST_OF_RUN
    assert len(tail.lines) + tail.left_out == 400
    assert tail.lines[-1].text.startswith("0399")


def test_runs_are_bounded_in_number_and_together(make, logger):
    now = [("a", 0)]
    logs = make(find=lambda: now[0])
    for number in range(MOST_RUNS + 5):
        now[0] = (f"run-{number}", 0)
        logger.info("one")
    assert [bool(texts(logs, f"run-{number}", 0)) for number in (0, 4, 5, MOST_RUNS + 4)] == [False, False, True, True]
    for number in range(40):
        now[0] = (f"big-{number}", 0)
        for _ in range(50):
            logger.info("%s", "x" * MOST_TEXT)
    kept = sum(len(text) for run in logs._runs for text in texts(logs, *run))
    assert kept <= run_logs.MOST_OF_ALL
    assert texts(logs, "big-39", 0)


def test_records_outside_of_runs_and_our_own_are_not_kept(make, logger):
    found = [None]
    logs = make(find=lambda: found[0])
    logger.info("before")
    found[0] = ("id-1", 0)
    logging.getLogger("celery_trace.guard").critical("ours")
    logging.getLogger("celery_tracer").critical("of the user")
    assert texts(logs) == ["of the user"]


def test_secrets_are_redacted_before_they_leave(logs, logger):
    logger.info("log in with password=%s", "hunter2hunter2")
    logger.info("%s", {"api_key": "abcdefghij", "user": "ada"})
    logger.info("Authorization: Bearer sk-live-0123456789abcdef0123456789")
    logger.info("sent tr0ub4dor to the bank")
    scrubber = Scrubber()
    scrubber.learn("tr0ub4dor")
    written = json.dumps([line.text for line in logs.of("id-1", 0, scrubber).lines])
    for secret in ("hunter2", "abcdefghij", "0123456789abcdef", "tr0ub4dor"):
        assert secret not in written
    assert "ada" in written


def test_lone_surrogates_and_zero_bytes_can_be_written(logs, logger):
    logger.info("bad \ud800 and \0")
    (text,) = texts(logs)
    text.encode()
    assert "\0" not in text


def test_the_handler_of_last_resort_and_basic_config_work_as_before(logs, capfd, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    logging.Logger("test.plain").warning("seen by the handler of last resort")
    assert "seen by the handler of last resort" in capfd.readouterr().err
    logging.basicConfig()
    assert len(logging.root.handlers) == 1
    logging.root.handlers[0].close()
    assert texts(logs) == ["seen by the handler of last resort"]


def test_an_error_of_a_handler_is_the_users(logs, logger, monkeypatch):
    class Fails(logging.Handler):
        def emit(self, record):
            raise ValueError("the user's")

    handler = Fails()
    logger.addHandler(handler)
    try:
        with pytest.raises(ValueError, match="the user's"):
            logger.info("x")
    finally:
        logger.removeHandler(handler)
    logger.info("y")
    assert texts(logs) == ["y"]


def test_our_own_error_does_not_reach_the_code_that_logs(make, logger, monkeypatch):
    logs = make()
    monkeypatch.setattr(logs, "_kept", lambda record: 1 / 0)
    logger.info("x")
    assert own_errors.pop("log records") == 1


def test_a_program_that_replaced_it_after_us_is_left_in_place(logger, monkeypatch):
    monkeypatch.setattr(logging.Logger, "callHandlers", logging.Logger.callHandlers)  # restored at the end
    logs, seen = RunLogs(50, Redactor()), []
    logs.find.append(lambda: ("id-1", 0))
    logs.attach()
    ours = logging.Logger.callHandlers

    def theirs(self, record):
        seen.append(record.msg)
        ours(self, record)

    logging.Logger.callHandlers = theirs
    logger.info("both")
    assert texts(logs) == ["both"]
    logs.detach()
    assert logging.Logger.callHandlers is theirs
    logger.info("theirs")
    assert (seen, texts(logs)) == (["both", "theirs"], [])


def test_nothing_is_replaced_when_it_is_off():
    before = logging.Logger.callHandlers
    logs = RunLogs(0, Redactor())
    logs.attach()
    assert logging.Logger.callHandlers is before
    logs.detach()


def test_threads_that_log_at_once_lose_nothing(make, logger):
    here = threading.local()
    logs = make(most=500, find=lambda: getattr(here, "run", None))

    def work(number):
        here.run = (f"run-{number}", 0)
        for step in range(200):
            logger.info("%d", step)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert texts(logs, f"run-{number}", 0) == [str(step) for step in range(200)]


def test_the_task_of_the_thread_is_found_with_its_attempt():
    from celery import Celery

    assert run_logs.task_in_progress() is None
    app = Celery("logs", broker="memory://", set_as_current=False)
    found = []

    @app.task(name="find", shared=False)
    def find():
        found.append(run_logs.task_in_progress())

    find.apply(task_id="id-7", retries=2)
    assert found == [("id-7", 2)]
    assert run_logs.task_in_progress() is None
    app.close()
