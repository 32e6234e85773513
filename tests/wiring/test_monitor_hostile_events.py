"""Events that somebody else publishes: whatever stands in them, every page and every answer still comes."""

import json
import re
import time
from base64 import b64encode
from urllib.parse import quote

import pytest
from kombu import Exchange

from celery_trace.clock import SystemClock
from celery_trace.redaction import Redactor
from flower_plugin import upstream
from flower_plugin.incoming import events as checks
from flower_plugin.incoming.calls import Calls
from tests.support.hostile_text import TEXTS, nested, odd_values
from tests.support.monitor_app import Client, eventually, make_monitor, serving

TABLE = "draw=1&start=0&length=50&order%5B0%5D%5Bcolumn%5D=0&order%5B0%5D%5Bdir%5D=desc&columns%5B0%5D%5Bdata%5D={sort}"
#: Every field that Celery's events have, some that Flower's objects use inside, and some that none has.
COMMON = ("type", "hostname", "timestamp", "local_received", "clock", "utcoffset", "pid")
INSIDE = ("heartbeats", "event", "update", "alive", "status_string", "expire_window", "_fields", "__class__",
          "__dict__", "id", "children", "cluster_state", "state", "worker", "client", "as_dict", "_serializer_handlers",
          "parent", "root", "ready", "merge_rules", "received", "started", "nobody knows")  # fmt: skip
WORKER = ("freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys")
TASK = ("uuid", "name", "args", "kwargs", "retries", "eta", "expires", "parent_id", "root_id", "queue", "exchange",
        "routing_key", "result", "exception", "traceback", "runtime", "signum", "terminated", "requeue")  # fmt: skip
TYPES = {
    **dict.fromkeys(("worker-online", "worker-heartbeat", "worker-offline"), WORKER),
    **dict.fromkeys(
        ("task-sent", "task-received", "task-started", "task-succeeded", "task-failed", "task-retried",
         "task-revoked", "task-rejected", "task-progress"), TASK),
    "shop-custom": (),
}  # fmt: skip


def event(kind, **fields):
    """One that Celery could have sent."""
    now_s = time.time()
    sound = {"type": kind, "hostname": "celery@sound", "timestamp": now_s, "clock": 1, "utcoffset": 0.0, "pid": 1}
    if kind.startswith("task-"):
        sound.update(uuid="sound", name="shop.pay")
    return {**sound, **fields}


@pytest.fixture
def monitor(tmp_path):
    with serving(lambda: make_monitor(tmp_path, pairs=("ada:1",))) as (base, app):
        app.events.state.tasks.limit = 20_000  # whatever a test sends is still there when the pages come
        header = {"Authorization": "Basic " + b64encode(b"ada:1").decode()}
        yield app, lambda path: Client(base).get(path, headers=header)


def deliver(app, bodies):
    """As the broker does; returns when the loop has taken all of them in."""
    with app.capp.connection() as connection:
        receiver = app.events.receiver(connection)
        for body in bodies:
            receiver.receive(body)
    eventually(lambda: not app.events._taking)


def assert_that_every_page_comes(get):
    for path in ("/", "/workers", "/tasks", "/metrics", "/trace", "/trace/statistics", "/trace/workers", "/trace/runs"):
        assert get(path).status == 200, path
    tables = [TABLE.format(sort=sort) for sort in ("name", "received", "started", "state", "runtime")]
    lists = [f"/tasks/datatable?{table}" for table in tables]
    for path in ("/workers?json=1", "/api/workers?status=1", "/api/tasks", "/api/task/types", *lists):
        answer = get(path)
        assert answer.status == 200, path
        json.loads(answer.text, parse_constant=pytest.fail)  # a browser knows no NaN


def assert_that_each_task_comes(app, get):
    for uuid in list(app.events.state.tasks):
        assert get(f"/task/{quote(uuid, safe='')}").status == 200, uuid
        assert get(f"/api/task/info/{quote(uuid, safe='')}").status == 200, uuid


@pytest.mark.parametrize("kind", TYPES)
def test_odd_values_in_any_field_of_an_event_break_no_page(monitor, kind):
    app, get = monitor
    odd = odd_values()
    fields = (*COMMON, *TYPES[kind], *INSIDE)
    deliver(
        app,
        [
            event(kind, **({"uuid": f"u-{field}-{number}"} if field != "uuid" else {}), **{field: value})
            for field in fields
            for number, value in enumerate(odd)
        ],
    )
    assert app.events.check.refused > 50
    assert app.events.not_understood == 0
    assert_that_every_page_comes(get)


@pytest.mark.parametrize("kind", TYPES)
def test_two_hundred_texts_in_every_field_of_an_event_break_no_page(monitor, kind):
    app, get = monitor
    assert len(TEXTS) > 200
    fields = (*COMMON, *TYPES[kind])
    deliver(
        app,
        [
            event(kind, **({"uuid": f"u-{field}-{number}"} if field != "uuid" else {}), **{field: text})
            for field in fields
            for number, text in enumerate(TEXTS)
        ],
    )
    # ... and in all of them at once, in what Flower's objects use inside as well.
    others = [field for field in (*fields, *INSIDE) if field not in {"type", "timestamp", "hostname", "uuid"}]
    deliver(
        app, [event(kind, uuid=f"all-{number}", **dict.fromkeys(others, text)) for number, text in enumerate(TEXTS)]
    )
    assert app.events.not_understood == 0
    assert_that_every_page_comes(get)


def test_the_page_of_each_hostile_task_comes(monitor):
    app, get = monitor
    texts = ("name", "args", "kwargs", "result", "exception", "traceback", "eta", "expires", "queue", "exchange",
             "routing_key", "root_id", "parent_id")  # fmt: skip
    deliver(
        app,
        [
            event("task-failed", uuid=text or "none", hostname=text or "none", **dict.fromkeys(texts, text))
            for text in TEXTS
        ],
    )
    assert len(app.events.state.tasks) > 150
    assert_that_each_task_comes(app, get)
    assert "<img src=x" not in get(f"/task/{quote(TEXTS[8], safe='')}").text


def test_nothing_of_an_event_is_markup_on_flowers_pages(monitor):
    app, get = monitor
    payload = "<img src=x onerror=window.pwned=1>"
    deliver(app, [event("worker-heartbeat", hostname=payload, sw_ident=payload)])
    deliver(app, [event("task-failed", uuid=payload, **dict.fromkeys(("name", "args", "exception", "eta"), payload))])
    assert payload in app.events.state.workers
    for path in ("/workers", f"/task/{quote(payload, safe='')}", "/tasks"):
        answer = get(path)
        assert answer.status == 200
        assert payload not in answer.text


@pytest.mark.parametrize(
    ("field", "value"),
    [("active", "<img src=x onerror=window.pwned=1>"), ("active", ["<img>"]), ("freq", "x"), ("freq", 1e308),
     ("loadavg", ["<b>"]), ("loadavg", [float("nan")]), ("processed", 10**400), ("heartbeats", "x"), ("pid", "<b>")],
)  # fmt: skip
def test_a_field_that_is_not_what_it_should_be_is_left_out_of_a_heartbeat(monitor, field, value):
    app, get = monitor
    deliver(app, [event("worker-heartbeat", freq=2.0, active=3, processed=4, loadavg=[0.1, 0.2, 0.3])])
    deliver(app, [event("worker-heartbeat", **{field: value})])
    (worker,) = get("/workers?json=1").json()["data"]
    assert (worker["active"], worker["processed"], worker["freq"]) == (3, 4, 2.0)
    assert worker["loadavg"] == [0.1, 0.2, 0.3]
    assert worker["worker-heartbeat"] == 2  # it still counts as a sign of life
    assert worker["status"] is True
    assert app.events.check.fields_left_out == (field != "heartbeats")


@pytest.mark.parametrize("kind", ["worker-heartbeat", "task-started"])
def test_an_event_of_the_far_future_keeps_no_worker_online(monitor, kind):
    app, get = monitor
    for far in (time.time() + 10 * 86_400, 1e18, 10**400, float("inf")):
        deliver(app, [event(kind, hostname="celery@future", timestamp=far)])
    assert app.events.check.refused == 4
    assert get("/workers?json=1").json()["data"] == []


def test_what_is_refused_or_left_out_is_counted_on_the_page_and_in_the_metrics(monitor, caplog):
    app, get = monitor
    deliver(app, ["no event", 7, None, [{}, {"type": "task-sent"}], event("worker-heartbeat", active="<b>")])
    assert app.events.counts == {"skipped": 0, "refused": 5, "field_left_out": 1}
    page = re.sub(r"<[^>]+>", " ", get("/trace/statistics").text)
    assert re.search(r"Events refused [a-zA-Z ]+ 5\b", page)
    assert re.search(r"Fields left out [a-zA-Z ]+ 1\b", page)
    metrics = get("/metrics").text
    assert 'celery_trace_events_total{fate="refused"} 5.0' in metrics
    assert 'celery_trace_events_total{fate="field_left_out"} 1.0' in metrics
    assert caplog.text.count("An event on the broker was refused") == 1


def test_what_celery_sends_is_taken_as_it_is(monitor):
    app, get = monitor
    now_s = time.time()
    deliver(
        app,
        [
            event("worker-online", freq=2.0, sw_ident="py-celery", sw_ver="5.7.0", sw_sys="Linux", active=0),
            [
                event("task-received", retries=0, eta="2026-01-02T03:04:05+00:00", expires="2026-01-02T03:04:06+00:00",
                      root_id="sound", parent_id=None, args="(1, 'größe')", kwargs="{'größe': '<b>'}"),
                event("task-started"),
                event("task-succeeded", result="'<ok>\\n'", runtime=0.25),
            ],
            event("task-progress", uuid="own", percent=50),
        ],
    )  # fmt: skip
    task = get("/api/task/info/sound").json()
    assert task["args"] == "(1, 'größe')"
    assert task["kwargs"] == "{'größe': '<b>'}"
    assert task["result"] == "'<ok>\\n'"
    assert (task["runtime"], task["state"], task["eta"]) == (0.25, "SUCCESS", "2026-01-02T03:04:05+00:00")
    assert abs(task["received"] - now_s) < 60
    assert get("/api/task/info/own").json()["state"] == "PROGRESS"
    assert app.events.counts == {"skipped": 0, "refused": 0, "field_left_out": 0}


def test_keyword_arguments_that_are_no_python_are_found_by_the_rest(monitor):
    app, get = monitor
    for uuid, kwargs in (("odd", "{[1]: 2}"), ("deep", "-" * 9000 + "1"), ("long", f"{{'x': 0x{'f' * 8000}}}")):
        deliver(app, [event("task-received", uuid=uuid, kwargs=kwargs)])
    assert app.events.not_understood == 0
    found = get(f"/tasks/datatable?{TABLE.format(sort='name')}&search%5Bvalue%5D=name:shop.pay").json()
    assert {row["uuid"] for row in found["data"]} == {"odd", "deep", "long"}


def test_names_of_workers_that_are_gone_take_no_room(monitor):
    app, _ = monitor
    app.events.state.max_workers_in_memory = 5
    app.events.state.workers.limit = 5
    deliver(app, [event("task-started", uuid="x", hostname=f"celery@{number}") for number in range(200)])
    state = app.events.state
    assert len(state.counter) <= 10
    assert len(state.tasks_by_worker) <= 10
    held = {labels[0] for labels in state.metrics.events._metrics if labels[0].startswith("celery@")}
    assert len(held & {f"celery@{number}" for number in range(200)}) <= 10


def test_a_task_of_the_app_has_its_name_however_many_others_were_made_up(monkeypatch):
    monkeypatch.setattr(checks, "MOST_NAMES", 20)
    calls = Calls(Redactor(), {"shop.pay": ()}.get)
    check = checks.EventCheck(Redactor(), SystemClock(), calls)
    names = [check.checked(event("task-sent", name=f"name-{number}")).get("name") for number in range(50)]
    assert names[20:] == [None] * 30
    assert check.checked(event("task-sent"))["name"] == "shop.pay"


def test_types_and_names_without_an_end_are_bounded(monitor, monkeypatch):
    app, _ = monitor
    monkeypatch.setattr(checks, "MOST_NAMES", 20)
    monkeypatch.setattr(checks, "MOST_TYPES", 30)
    deliver(app, [event("task-received", uuid=f"u{number}", name=f"name-{number}") for number in range(50)])
    assert len(app.events.state.task_types()) == 20
    deliver(app, [event(f"shop-{number}") for number in range(50)])
    assert len(app.events.state.counter["celery@sound"]) == 31  # and task-received, which is Celery's own
    deliver(app, [event("worker-heartbeat", active=3)])
    assert app.events.state.workers["celery@sound"].active == 3


METHODS = ("stats", "active_queues", "registered", "scheduled", "active", "reserved", "revoked", "conf")


def answers_of(value):
    """What a worker answers to each inspect command, in the right shape with ``value`` in it everywhere."""
    task = dict.fromkeys(("id", "name", "args", "kwargs", "acknowledged", "worker_pid", "time_start"), value)
    queue = dict.fromkeys(
        ("name", "exclusive", "exchange", "durable", "routing_key", "no_ack", "alias", "queue_arguments",
         "binding_arguments", "auto_delete"), value
    )  # fmt: skip
    inner = {"x": value, "utime": value}
    return {
        "stats": {"total": inner, "pool": inner, "broker": inner, "pid": value, "prefetch_count": value,
                  "rusage": inner, "uptime": value, "clock": value, "autoscaler": inner},
        "active_queues": [queue], "registered": [value], "scheduled": [{"request": task, "eta": value}],
        "active": [task], "reserved": [task], "revoked": [value], "conf": {"x": value, "trace_shell_key": value},
    }  # fmt: skip


ODD_STATS = {"total": 1, "pool": [], "broker": "x", "consumer": {"broker": 5}, "autoscaler": 1}


@pytest.mark.parametrize(
    "answers",
    [
        *(pytest.param(answers_of(value), id=f"text-{number}") for number, value in enumerate(TEXTS[::12])),
        *(pytest.param(answers_of(value), id=f"odd-{number}") for number, value in enumerate(odd_values())),
        *(pytest.param(dict.fromkeys(METHODS, value), id=f"all-{number}") for number, value in enumerate(odd_values())),
        pytest.param({"stats": ODD_STATS}, id="stats"),
    ],
)
def test_whatever_a_worker_answers_its_page_comes(answering, answers):
    app, get = answering
    # The page shows what it has while another answer is awaited; here none is.
    name = "celery@answers"
    app.inspector.workers.clear()
    for method, answer in {**{name: [] for name in METHODS}, "stats": {}, "conf": {}}.items():
        app.inspector.keep(name, method, answer)
    for method, answer in answers.items():
        app.inspector.keep(name, method, answer)
    for path in (f"/worker/{name}", "/api/workers", f"/api/workers?workername={name}"):
        assert get(path).status == 200, path
    json.loads(get("/api/workers").text, parse_constant=pytest.fail)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\ud800", "x\u202ey", "x" * 1000, None, 5])
def test_an_answer_of_nobody_is_not_kept(answering, name):
    app, get = answering
    before = set(app.inspector.workers)
    app.inspector.keep(name, "revoked", ["x"])
    assert get("/api/workers").status == 200
    assert set(app.inspector.workers) == before


def test_a_worker_with_very_many_waiting_tasks_keeps_them_all(answering):
    app, get = answering
    request = {"id": "x", "name": "shop.pay", "args": "()", "kwargs": "{}", "more": list(range(20))}
    app.inspector.keep("celery@many", "scheduled", [{"request": request, "eta": "x"}] * 3000)
    assert len(get("/api/workers").json()["celery@many"]["scheduled"]) == 3000


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    with serving(lambda: make_monitor(tmp_path_factory.mktemp("answering"), pairs=("ada:1",))) as (base, app):
        app.inspector.inspect = lambda _=None: None
        header = {"Authorization": "Basic " + b64encode(b"ada:1").decode()}
        yield app, lambda path: Client(base).get(path, headers=header)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[" * 10_000, "application/json"),
        (b'{"type": "worker-heartbeat", "active": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "application/json"),
        (b"no json", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"cos\nsystem\n(S'true'\ntR.", "application/x-python-serialize"),
        (b"x", "application/no-such-type"),
        (b'{"type": "worker-heartbeat", "hostname": "a", "timestamp": 1e999, "clock": "x"}', "application/json"),
        (b'{"type": "worker-heartbeat", "hostname": "a", "timestamp": "x", "utcoffset": [], "clock": 1}',
         "application/json"),
        (b'{"type": "worker-heartbeat", "hostname": "a", "timestamp": ' + b"9" * 5000 + b"}", "application/json"),
        (b'[1, null, "x", [[]]]', "application/json"),
        (b"null", "application/json"),
        (b'{"type": ["worker-heartbeat"]}', "application/json"),
    ],
)  # fmt: skip
def test_a_message_that_is_no_event_does_not_end_the_connection(monitor, body, content_type):
    """Over a real channel of kombu's, whose consumer decodes it as from any broker."""
    app, get = monitor
    name = f"celery@{abs(hash((body, content_type)))}"
    with app.capp.connection() as connection:
        receiver = app.events.receiver(connection)
        exchange = Exchange(receiver.exchange.name, type="topic")
        bound = receiver.queue(connection.default_channel)
        bound.declare()
        channel = connection.channel()
        producer = connection.Producer(channel=channel, exchange=exchange, serializer="json")
        sound = json.dumps(event("worker-online", hostname=name)).encode()
        for content, kind in ((body, content_type), (sound, "application/json")):
            producer.publish(content, content_type=kind, content_encoding="utf-8", routing_key="worker.online")
        for _ in receiver.consume(limit=2, timeout=5, wakeup=False):
            pass
    eventually(lambda: name in app.events.state.workers)
    assert app.events.check.refused >= 1
    assert get("/workers").status == 200


def test_a_clock_from_an_event_stays_in_a_range_that_can_be_counted_on(monitor):
    app, _ = monitor
    before = app.capp.clock.value
    deliver(app, [event("worker-heartbeat", clock=value) for value in (10**400, "9" * 400, -5, True, [1], nested(100))])
    assert before <= app.capp.clock.value < before + 100


def test_the_address_of_a_task_or_worker_can_not_become_another_address(caplog):
    upstream.fixed_script.cache_clear()
    script = upstream.fixed_script(f"{upstream.flower_urls.settings['static_path']}/js/flower.js").decode()
    assert not re.findall(r"url: url_prefix\(\) \+ '[^']+/' \+ \w+,", script)
    assert len(re.findall(r"url: url_prefix\(\) \+ '[^']+/' \+ encodeURIComponent\(\w+\),", script)) == 11
    assert not caplog.records  # each place of Flower's script that we change is there
