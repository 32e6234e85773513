"""What Flower's pages and answers show of a task is as redacted as our capture of it, whoever looks."""

import json
import re
import time
from base64 import b64encode

import pytest

from celery_trace.clock import SystemClock
from celery_trace.redaction import MARK, Redactor
from celery_trace.settings import load
from flower_plugin.incoming import events
from flower_plugin.incoming.calls import Calls
from flower_plugin.incoming.redacted import CUT, MOST_CHARACTERS, redacted, text_of
from tests.support.hostile_text import TEXTS, nested, odd_values
from tests.support.monitor_app import Client, eventually, make_monitor, serving

#: Each under a telling name or in a shape of its own; none may be seen anywhere.
SECRETS = {
    "password": "hunter2-opensesame",
    "key": "sk-live-0123456789abcdefABCDEF",
    "card": "4111 1111 1111 1111",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "url": "s3cr3t-in-url",
    "own": "only-by-our-setting",
}
TEXT = (
    f"{{'password': '{SECRETS['password']}', 'user': 'ada'}} {SECRETS['key']} {SECRETS['card']} "
    f"Bearer {SECRETS['jwt']} redis://:{SECRETS['url']}@cache/0 customer_code='{SECRETS['own']}'"
)
TREE = {
    "password": SECRETS["password"],
    "deep": [{"api_key": SECRETS["key"], "plain": "ada"}, int(SECRETS["card"].replace(" ", ""))],
    "note": TEXT,
    "customer_code": SECRETS["own"],
}
TABLE = "draw=1&start=0&length=10&order%5B0%5D%5Bcolumn%5D=0&columns%5B0%5D%5Bdata%5D=name"


@pytest.fixture(scope="module")
def formatted():
    return []


@pytest.fixture(scope="module")
def monitor(tmp_path_factory, formatted):
    folder = tmp_path_factory.mktemp("redaction")
    settings = load(
        {"trace_dir": str(folder), "trace_collector": False, "trace_redact": ["customer_code"]}, environment={}
    )

    def format_task(task):
        formatted.append(task)
        return task

    def make():
        app = make_monitor(folder, settings=settings, pairs=("val:1",), roles=("val:live",), format_task=format_task)
        app.capp.conf.result_backend = "cache+memory://"
        app.capp.set_current()  # Flower asks the current app for results
        return app

    with serving(make) as (base, app):
        with app.capp.connection() as connection:
            receiver = app.events.receiver(connection)
            for kind, more in (
                ("task-received", {"name": "shop.pay", "args": f"('{TEXT}',)", "kwargs": TEXT}),
                ("task-succeeded", {"result": TEXT, "runtime": 0.5}),
                (
                    "task-failed",
                    {"exception": f"ValueError({TEXT!r})", "traceback": f"Traceback:\n  x\nValueError: {TEXT}"},
                ),
            ):
                event = {"type": kind, "uuid": "u-1", "hostname": "celery@x", "timestamp": time.time(), "clock": 1}
                receiver.receive({**event, **more})
        eventually(lambda: not app.events._taking)
        app.inspector.inspect = lambda _=None: None
        running = {"id": "u-1", "name": "shop.pay", "args": [TREE], "kwargs": TREE}
        written = {"id": "u-2", "name": "shop.pay", "args": f"[{TEXT}]", "kwargs": TEXT}
        for method, answer in {
            "active": [running, written], "reserved": [running, written], "scheduled": [{"request": running}],
            "stats": {"total": {}, "broker": {"transport_options": TREE}}, "active_queues": [], "registered": [],
            "revoked": [],
            "conf": {
                "broker_url": f"redis://:{SECRETS['url']}@cache/0", "result_backend": f"redis://u:{SECRETS['url']}@c/1",
                "trace_alert_channels": [f"slack://{SECRETS['own']}/x/y"], "trace_shell_key": SECRETS["own"],
                "CELERY_TRACE_SHELL_KEY": SECRETS["own"], "trace_store": f"postgresql://u:{SECRETS['url']}@db/t",
                "beat_schedule": {"pay": {"args": [TEXT], "kwargs": TREE}}, "task_default_queue": "shop-queue",
            },
        }.items():  # fmt: skip
            app.inspector.keep("celery@x", method, answer)
        yield base, app


def get(monitor, path):
    return Client(monitor[0]).get(path, headers={"Authorization": "Basic " + b64encode(b"val:1").decode()})


def assert_without_secrets(text):
    assert MARK in text
    found = [name for name, secret in SECRETS.items() if secret in text or secret.replace(" ", "") in text]
    assert found == []


@pytest.mark.parametrize(
    "path",
    [f"/tasks/datatable?{TABLE}", "/task/u-1", "/api/tasks", "/api/task/info/u-1", "/worker/celery@x", "/api/workers",
     "/api/workers?workername=celery@x"],
)  # fmt: skip
def test_no_secret_stands_on_flowers_pages(monitor, path):
    answer = get(monitor, path)
    assert answer.status == 200
    assert_without_secrets(answer.text)
    assert "ada" in answer.text or "shop-queue" in answer.text  # what is no secret stays


def test_no_secret_is_in_the_memory_of_events_nor_reaches_format_task(monitor, formatted):
    get(monitor, "/task/u-1")
    held = monitor[1].events.state.tasks["u-1"]
    for task in (held, formatted[-1]):
        assert_without_secrets(json.dumps(task.as_dict(), default=str))


LOGIN = {
    "named": {"args": "('ada',)", "kwargs": "{'password': 'shown-nowhere', 'more': {'x': 1}}"},
    "nested": {"args": "()", "kwargs": "{'who': [{'password': ['shown-nowhere']}]}"},
    "positional": {"args": "('ada', 'shown-nowhere')", "kwargs": "{}"},
    "of a bound task": {"name": "shop.bound", "args": "('ada', 'shown-nowhere')", "kwargs": "{}"},
}


@pytest.fixture(scope="module")
def tasks(monitor):
    @monitor[1].capp.task(name="shop.login")
    def login(user, password):
        raise AssertionError

    @monitor[1].capp.task(name="shop.bound", bind=True)
    def bound(self, user, password):
        raise AssertionError


@pytest.mark.parametrize("call", LOGIN)
def test_a_secret_that_a_parameters_name_tells_stands_in_no_later_event(monitor, tasks, call):
    _, app = monitor
    uuid = f"login {call}"
    with app.capp.connection() as connection:
        receiver = app.events.receiver(connection)
        for kind, more in (
            ("task-received", {"name": "shop.login", **LOGIN[call]}),
            ("task-failed", {"exception": "ValueError('no: shown-nowhere')", "traceback": "x\nno: shown-nowhere\n"}),
            ("task-succeeded", {"result": "'ada has shown-nowhere'"}),
        ):
            receiver.receive(
                {"type": kind, "uuid": uuid, "hostname": "celery@y", "timestamp": time.time(), "clock": 1, **more}
            )
    eventually(lambda: not app.events._taking)
    answer = get(monitor, f"/api/task/info/{uuid.replace(' ', '%20')}")
    assert "shown-nowhere" not in answer.text
    assert answer.json()["exception"] == f"ValueError('no: {MARK}')"
    assert answer.json()["result"] == f"'ada has {MARK}'"
    assert "ada" in get(monitor, f"/task/{uuid.replace(' ', '%20')}").text


@pytest.mark.parametrize(
    "request_",
    [
        {"args": ["ada", "shown-nowhere"], "kwargs": {}},
        {"args": "('ada', 'shown-nowhere')", "kwargs": "{}"},
        {"args": ["ada"], "kwargs": {"password": "shown-nowhere", "note": "it is shown-nowhere"}},
    ],
)
@pytest.mark.parametrize("method", ["active", "scheduled", "reserved"])
def test_a_secret_argument_of_a_task_that_a_worker_holds_is_not_shown(monitor, tasks, method, request_):
    _, app = monitor
    task = {"id": "u-9", "name": "shop.login", **request_}
    app.inspector.keep("celery@y", method, [{"request": task} if method == "scheduled" else task])
    text = get(monitor, "/api/workers").text
    assert "ada" in text
    assert "shown-nowhere" not in text


def test_arguments_that_can_not_be_read_are_redacted_by_what_stands_beside_them():
    calls = Calls(Redactor(), {"shop.login": ("user", "password")}.get)
    for args in ("('ada', 'shown-no...", "(<Order 5>, 'x')", "(" * 5000, "x" * 100_000, "{[1]: 2}", None, 5, ["ada"]):
        assert calls.scrubber("shop.login", args, "{'password': <secret>}") is None
    assert calls.scrubber("shop.login", nested(100), {"password": nested(100)}) is None
    assert calls.scrubber("shop.other", "('ada', 'x' * 9)", "{}") is None
    assert not calls.knows("shop.other")


def test_the_secrets_of_many_tasks_are_forgotten_in_turn(monkeypatch):
    monkeypatch.setattr(events, "MOST_LEARNED", 10)
    check = events.EventCheck(Redactor(), SystemClock(), Calls(Redactor()))
    for number in range(100):
        check.checked(
            {"type": "task-sent", "uuid": f"u{number}", "hostname": "h", "timestamp": 1e9,
             "kwargs": "{'password': 'opensesame'}"}
        )  # fmt: skip
    assert list(check._learned) == [f"u{number}" for number in range(90, 100)]


def test_a_search_finds_no_secret(monitor):
    found = get(monitor, f"/tasks/datatable?{TABLE}&search%5Bvalue%5D=opensesame").json()
    assert found["recordsFiltered"] == 0
    assert get(monitor, f"/tasks/datatable?{TABLE}&search%5Bvalue%5D=shop.pay").json()["recordsFiltered"] == 1


@pytest.mark.parametrize(
    ("state", "result"),
    [
        ("SUCCESS", TREE),
        ("SUCCESS", TEXT),
        ("SUCCESS", [TREE, TREE]),
        ("FAILURE", ValueError(TEXT)),
        ("PROGRESS", TREE),
    ],
)
def test_no_secret_stands_in_a_result_from_the_backend(monitor, state, result):
    base, app = monitor
    name = f"result-{state}-{abs(hash(str(result)))}"
    app.capp.backend.store_result(name, result, state, traceback=TEXT if state == "FAILURE" else None)
    answer = get((base, app), f"/api/task/result/{name}")
    assert answer.status == 200
    body = answer.json()
    assert body["state"] == state
    if state != "PROGRESS":  # it is not ready, so its result is not told
        assert_without_secrets(json.dumps(body["result"]))
    if state == "FAILURE":
        assert_without_secrets(body["traceback"])


def test_a_task_that_is_run_from_the_api_answers_without_secrets(monitor, monkeypatch):
    base, app = monitor

    @app.capp.task(name="shop.eager")
    def eager():
        return TREE

    monkeypatch.setitem(app.capp.conf, "task_always_eager", True)
    answer = Client(base).post(
        "/api/task/apply/shop.eager", {}, headers={"Authorization": "Basic " + b64encode(b"val:1").decode()}
    )
    assert answer.status == 200
    assert_without_secrets(answer.text)
    assert answer.json()["result"]["deep"][0]["plain"] == "ada"


def test_our_settings_in_a_workers_configuration_show_no_secret_and_the_others_stay(monitor):
    conf = get(monitor, "/api/workers").json()["celery@x"]["conf"]
    assert conf["trace_shell_key"] == conf["trace_alert_channels"] == conf["CELERY_TRACE_SHELL_KEY"] == MARK
    assert conf["trace_store"] == f"postgresql://u:{MARK}@db/t"
    assert conf["task_default_queue"] == "shop-queue"


@pytest.mark.parametrize(
    "value", [*odd_values(), *TEXTS[::20], {"a": odd_values()}], ids=lambda value: type(value).__name__
)
def test_any_value_becomes_json_that_every_reader_takes(value):
    text = json.dumps(redacted(value, Redactor()), allow_nan=False)
    text.encode()  # no lone surrogate either
    assert len(text) < 2_000_000


def test_a_value_without_an_end_is_cut_and_says_so():
    wide = redacted([{"x": [1] * 100}] * 10_000, Redactor())
    assert wide[-1] == CUT
    assert redacted(nested(100), Redactor()) != nested(100)
    assert CUT in json.dumps(redacted(nested(100), Redactor()), ensure_ascii=False)
    assert text_of("x" * (MOST_CHARACTERS + 1), Redactor()) == "x" * MOST_CHARACTERS + CUT


def test_an_object_whose_repr_fails_is_told_by_its_type():
    class Odd:
        def __repr__(self):
            raise RuntimeError("no")

    assert redacted({"x": Odd()}, Redactor()) == {"x": "<Odd>"}


def test_plain_values_stay_as_they_are():
    value = {"a": [1, 2.5, None, True, "größe\n"], "b": {"c": ""}, "password": ""}
    assert redacted(value, Redactor()) == value
    assert re.fullmatch("<integer of .* bits>", redacted(10**400, Redactor()))
