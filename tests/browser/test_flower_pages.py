"""Flower's own pages in a real Chromium: they work under our policy, and nothing from the broker runs on them."""

import json
import time
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from flower_plugin import upstream
from tests.support.hostile_text import TEXTS
from tests.support.monitor_app import PASSWORD, eventually, make_monitor, serving

PAYLOAD = "<img src=x onerror=window.pwned=1>"
#: Every column that Flower's page of tasks can show.
COLUMNS = (
    "name,uuid,state,args,kwargs,result,received,started,runtime,worker,exchange,routing_key,retries,revoked,"
    "exception,expires,eta"
)
#: The fields of events that are no time.
WORKER = ("hostname", "clock", "pid", "freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys")
TASK = (
    "uuid", "hostname", "name", "args", "kwargs", "result", "exception", "traceback", "eta", "expires", "retries",
    "runtime", "queue", "exchange", "routing_key", "root_id", "parent_id", "clock", "pid",
)  # fmt: skip
#: Remembers each markup with something in it that could run.
WATCH = """
window.ran = [];
const own = Object.getOwnPropertyDescriptor(Element.prototype, "innerHTML");
Object.defineProperty(Element.prototype, "innerHTML", {
    ...own,
    set(text) {
        const found = new DOMParser().parseFromString(String(text), "text/html").querySelectorAll("*");
        for (const one of found) {
            const names = one.getAttributeNames();
            if (names.some(name => name.startsWith("on")) || ["SCRIPT", "IFRAME", "OBJECT", "IMG"].includes(one.tagName)
                || ["href", "src", "action"].some(name => String(one.getAttribute(name)).startsWith("javascript:"))) {
                window.ran.push(String(text).slice(0, 200));
            }
        }
        own.set.call(this, text);
    },
});
"""


@pytest.fixture(scope="module", autouse=True)
def patience():
    """A machine that does many other things may take long for a table of hundreds of rows."""
    expect.set_options(timeout=30_000)
    yield
    expect.set_options(timeout=5_000)


def deliver(app, bodies):
    with app.capp.connection() as connection:
        receiver = app.events.receiver(connection)
        for body in bodies:
            receiver.receive(body)
    eventually(lambda: not app.events._draining)


def event(kind, **fields):
    now_s = time.time()
    return {"type": kind, "hostname": "celery@one", "timestamp": now_s, "clock": 1, "utcoffset": 0, "pid": 1, **fields}


def heartbeat(name="celery@one", **fields):
    return event("worker-heartbeat", hostname=name, **{"freq": 3600.0, "active": 0, "processed": 0, **fields})


def runs(number):
    for one in range(number):
        uuid = f"id-{one}"
        yield event("task-received", uuid=uuid, name="shop.pay", args="(1,)", kwargs="{'user': 'ada'}")
        yield event("task-started", uuid=uuid)
        if one % 3:
            yield event("task-succeeded", uuid=uuid, result="'ok'", runtime=0.5)
        else:
            yield event("task-failed", uuid=uuid, exception="ValueError('no')", traceback="Traceback …")


def answered(app, value="shop.pay", name="celery@one"):
    """What a worker answers to all that Flower asks, with ``value`` where a text goes."""
    app.inspector.inspect = lambda _=None: None
    task = dict.fromkeys(("id", "name", "args", "kwargs"), value)
    for method, answer in {
        "stats": {"total": {value: 4}, "pool": {"x": value}, "broker": {"x": value}, "pid": 1, "prefetch_count": 4,
                  "rusage": {"utime": 1.0, "x": value}, "uptime": 12, "other": value},
        "active_queues": [{"name": value}], "registered": [value], "scheduled": [{"request": task}], "active": [task],
        "reserved": [task], "revoked": [value], "conf": {"x": value},
    }.items():  # fmt: skip
        app.inspector.keep(name, method, answer)


@pytest.fixture
def monitor(tmp_path):
    with serving(lambda: make_monitor(tmp_path, tasks_columns=COLUMNS)) as (base, app):
        yield base, app


@pytest.fixture
def errors(page):
    """What the browser complains about; it says here what the policy refused."""
    found = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    return found


def log_in(page, base):
    page.goto(f"{base}/login")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/trace")


def test_the_head_of_the_table_of_tasks_stays_above_its_columns(monitor, page, errors):
    base, app = monitor
    deliver(app, [heartbeat(), *runs(6)])
    log_in(page, base)
    page.goto(f"{base}/tasks")
    expect(page.locator("#tasks-table tbody tr").first).to_contain_text("shop.pay")
    slip = """() => {
        const lefts = (rows) => [...document.querySelectorAll(rows)].map((one) => one.getBoundingClientRect().left);
        const head = lefts(".dataTables_scrollHead th"), body = lefts("#tasks-table tbody tr:first-child td");
        return head.length === body.length ? Math.max(...head.map((left, at) => Math.abs(left - body[at]))) : 999;
    }"""
    for width in (1280, 390, 700, 1600):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(f"({slip})() < 2", timeout=10_000)
    assert not errors


def test_the_workers_page_counts_refreshes_searches_and_sorts(monitor, page, errors):
    base, app = monitor
    deliver(app, [heartbeat(active=2, loadavg=[0.5, 0.4, 0.3]), heartbeat("celery@two & <b>"), *runs(6)])
    log_in(page, base)
    answer = page.goto(f"{base}/workers")
    assert "unsafe-inline" not in answer.headers["content-security-policy"]
    row = page.locator("#workers-table tbody tr").filter(has_text="celery@one")
    expect(row.locator("td")).to_have_text(["celery@one", "Online", "2", "6", "2", "4", "0.50.40.3"])
    expect(page.locator("#workers-online")).to_have_text("2")
    deliver(app, [heartbeat(active=7)])
    expect(page.locator("#workers-active")).to_have_text("7")  # without a reload
    expect(row.get_by_role("link", name="7")).to_have_attribute("href", "/tasks?worker=celery%40one&state=STARTED")
    page.get_by_placeholder("celery@hostname or online").fill("two & <b>")
    expect(page.locator("#workers-table tbody tr")).to_have_count(1)
    expect(page.locator("#workers-table tbody td").first).to_have_text("celery@two & <b>")
    page.get_by_placeholder("celery@hostname or online").fill("")
    page.get_by_role("columnheader", name="Active").first.click()
    expect(page.locator("#workers-table tbody td").first).to_have_text("celery@two & <b>")
    assert errors == []


def test_without_auto_refresh_the_workers_page_stands_still(tmp_path, page, errors):
    with serving(lambda: make_monitor(tmp_path, auto_refresh=False)) as (base, app):
        deliver(app, [heartbeat(active=2)])
        log_in(page, base)
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "json=1" in request.url else None)
        page.clock.install()
        page.goto(f"{base}/workers")
        expect(page.locator("#workers-active")).to_have_text("2")
        page.clock.run_for(10_000)
        assert len(asked) == 1
        assert errors == []


def test_the_pages_of_tasks_and_of_a_worker_work_as_they_do_in_flower(monitor, page, errors):
    base, app = monitor
    deliver(app, [heartbeat(), *runs(20)])
    answered(app)
    log_in(page, base)
    page.goto(f"{base}/tasks")
    expect(page.locator("#tasks-table tbody tr")).to_have_count(15)
    page.get_by_role("button", name="Failed").click()
    expect(page.locator("#tasks-table tbody tr")).to_have_count(7)
    page.get_by_role("link", name="id-0", exact=True).click()
    expect(page.locator(".task-name-value")).to_have_text("shop.pay")
    page.get_by_role("button", name="Copy task UUID").click()
    expect(page.get_by_role("button", name="Task UUID copied")).to_be_visible()
    page.goto(f"{base}/worker/celery@one")
    for tab in ("Broker", "Queues", "Tasks", "Limits", "Config", "System", "Other", "Pool"):
        page.get_by_role("tab", name=tab).click()
        expect(page.locator(f"#tab-{tab.lower()}")).to_be_visible()
    page.locator("#theme-toggle").click()
    page.get_by_role("button", name="Dark").click()
    expect(page.locator("html")).to_have_attribute("data-bs-theme", "dark")
    assert errors == []


def test_a_button_for_a_task_whose_id_is_a_path_asks_for_that_task_and_nothing_else(monitor, page):
    base, app = monitor
    uuid = "../../worker/shutdown/celery@one"
    deliver(app, [heartbeat(), event("task-received", uuid=uuid, name="shop.pay")])
    log_in(page, base)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    page.goto(f"{base}/task/{quote(uuid, safe='')}")
    page.get_by_role("button", name="Revoke").click()
    expect(page.locator(".toast")).to_be_visible()
    assert asked == [f"{base}/api/task/revoke/{quote(uuid, safe='')}"]


def test_no_text_of_an_event_runs_on_any_page(monitor, page, errors):
    base, app = monitor
    page.add_init_script(WATCH)
    deliver(app, (heartbeat(text or "none", active=text, sw_ident=text, loadavg=[text]) for text in TEXTS))
    for kind in ("online", "offline", "custom"):
        deliver(app, (event(f"worker-{kind}", **dict.fromkeys(WORKER, text)) for text in TEXTS))
    deliver(app, (event("task-failed", **dict.fromkeys(TASK, text or "none")) for text in TEXTS))
    kinds = ("sent", "received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "custom")
    for kind in kinds:
        for number, text in enumerate(TEXTS[::19]):
            uuid = f"{kind}-{number} {text}"[:400]
            deliver(app, [event(f"task-{kind}", **{**dict.fromkeys(TASK, text), "uuid": uuid})])
    assert len(app.events.state.workers) > 150
    answered(app, PAYLOAD, PAYLOAD)
    log_in(page, base)
    page.goto(f"{base}/workers")
    page.get_by_placeholder("celery@hostname or online").fill("<img src=x")
    expect(page.locator("#workers-table tbody td").first).to_contain_text("<img src=x")
    page.goto(f"{base}/tasks")
    expect(page.locator("#tasks-table tbody tr")).to_have_count(15)
    page.evaluate("jQuery('#tasks-table').DataTable().page.len(1000).draw()")
    expect(page.locator("#tasks-table tbody tr")).to_have_count(len(app.events.state.tasks))
    assert page.evaluate("window.ran") == []
    shown = [text for text in TEXTS if text in app.events.state.tasks and "<" in text and len(text) < 400]
    for address in (f"/worker/{quote(PAYLOAD, safe='')}", *(f"/task/{quote(text, safe='')}" for text in shown[::10])):
        assert page.goto(base + address).status == 200
        assert page.evaluate("window.pwned") is None, address
        assert page.evaluate("window.ran") == [], address
    page.goto(f"{base}/trace/statistics")
    assert page.evaluate("window.pwned") is None
    assert errors == []


def ill_typed(texts):
    """What the two tables may get where events were not checked: a text or a list of it in every field."""
    for text in texts:
        for value in (text, [text], {"x": text, "length": 1}):
            worker = dict.fromkeys(
                ("hostname", "status", "active", "loadavg", "task-received", "task-failed", "task-succeeded"), value
            )
            yield worker, dict.fromkeys(COLUMNS.split(","), value)


def fulfilled(route, _request, **answer):
    route.fulfill(**answer)


@pytest.fixture(params=["served", "as Flower ships it"])
def tables(request, monitor, chromium):
    """A page without our policy, where the server answers with anything: with the script that we serve, or Flower's."""
    base, _ = monitor
    context = chromium.new_context(bypass_csp=True)
    context.set_default_timeout(30_000)
    context.add_init_script(WATCH)
    opened = context.new_page()
    log_in(opened, base)
    rows = list(ill_typed(TEXTS[:160:2]))
    answers = {"**/workers?json=1*": [worker for worker, _ in rows], "**/tasks/datatable": [task for _, task in rows]}
    for pattern, data in answers.items():
        body = json.dumps({"data": data, "draw": 1, "recordsTotal": len(data), "recordsFiltered": len(data)})
        opened.route(pattern, partial(fulfilled, body=body, content_type="application/json"))
    if request.param != "served":
        script = Path(upstream.flower_urls.settings["static_path"]) / "js" / "flower.js"
        opened.route("**/js/flower.js*", partial(fulfilled, path=script, content_type="text/javascript"))
        opened.add_init_script("window.autorefresh = 0;")  # Flower's page says so in an inline script
    yield request.param == "served", base, opened
    context.close()


@pytest.mark.parametrize("path", ["workers", "tasks"])
def test_flowers_tables_make_no_markup_of_a_value_even_without_the_policy(tables, path):
    """With Flower's own script the same page runs them: so this test would notice."""
    ours, base, page = tables
    page.goto(f"{base}/{path}")
    if ours:
        expect(page.locator(f"#{path}-table tbody tr").first).to_contain_text("pwned")
        if path == "workers":
            page.get_by_placeholder("celery@hostname or online").fill("img src")
            expect(page.locator("#workers-table tbody td").first).to_contain_text("img src")
        assert page.evaluate("window.ran") == []
        assert page.evaluate("window.pwned") is None
    else:
        page.wait_for_function("window.ran.length > 0")
