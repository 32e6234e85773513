"""Every page in a real Chromium: accessible, within its width, safe with hostile strings, live, below a prefix."""

import re
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from playwright.sync_api import expect

from celery_trace.alerting.rules import in_force
from celery_trace.model import (
    ExceptionInfo,
    Failure,
    Kept,
    Kind,
    MemoryState,
    Outcome,
    ProcessRecord,
    QueueSample,
    Role,
    Rollup,
    Run,
    Sample,
    failure_id,
)
from celery_trace.settings import load
from celery_trace.stores import open_store
from flower_plugin.pages.registry import PAGES
from tests.support import monitor_facts
from tests.support.monitor_app import PASSWORD, end_sessions, eventually, make_monitor, serving

AXE = next((Path(__file__).parent / "vendor").glob("axe-*.min.js"))
FAILURE = failure_id("6e1f9b3a-0000-4000-8000-000000000000", 0)
PREFIX = "pre/fix"
MIB = 1024 * 1024
#: What a machine that does many other things may take for a page, milliseconds.
SLOW_MS = 30_000
WIDTHS = (390, 820, 1280, 1440)
#: Pages of one thing, which a store without facts has none of.
OF_ONE = (
    "trace_run_in_progress", "trace_leak", "trace_failure", "trace_failure_group", "trace_transcript", "trace_runs_of",
    "trace_profile", "trace_workflow",
)  # fmt: skip


def filled(folder, hostile=False, empty=False):
    settings = load({"trace_dir": str(folder), "trace_collector": False, "trace_shell": "recreated"}, environment={})
    if not empty:
        store = open_store(settings)
        monitor_facts.fill(store, time.time(), hostile=hostile)
        store.close()
        monitor_facts.write_profiles(settings.folder, time.time(), hostile=hostile)
    return settings


def addresses(application):
    """Every page of PAGES, with ids that exist where there are any."""
    leaks = application.context.queries.leaks(limit=1).rows
    known = {
        "trace_run_in_progress": ("child-1", monitor_facts.RUNNING),
        "trace_leak": leaks[0].id if leaks else "none",
        "trace_failure": FAILURE,
        "trace_failure_group": "group-0",
        "trace_transcript": "shell-1",
        "trace_runs_of": ("task", "shop.tasks.remember_order"),
        "trace_profile": monitor_facts.PROFILE,
        "trace_flame": ("task", "shop.tasks.remember_order"),
        "trace_workflow": monitor_facts.ROOT,
    }
    found = {}
    for page in PAGES:
        values = known.get(page.name, ())
        found[page.name] = application.reverse_url(page.name, *((values,) if isinstance(values, str) else values))
    found["trace"] = found["trace"].removesuffix("?").removesuffix("/")
    return found


@pytest.fixture(scope="module", params=["full", "hostile", "empty"])
def monitor(request, tmp_path_factory):
    """A monitor with facts, with hostile ones (and below a prefix), and with none."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    settings = filled(folder, hostile=kind == "hostile", empty=kind == "empty")
    options = {"url_prefix": PREFIX} if kind == "hostile" else {}
    with serving(lambda: make_monitor(folder, settings=settings, **options)) as (base, app):
        yield kind, base, app


@pytest.fixture
def full(standing):
    yield standing
    end_sessions(standing[1])


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    settings = filled(folder)
    with serving(lambda: make_monitor(folder, settings=settings)) as (base, app):
        yield base, app


def log_in(page, base, app):
    page.goto(f"{base}{app.context.base_url}/login")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/trace")


def violations(page):
    """What axe-core finds, of any weight, in words."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']} ({one['impact']}): {node['target']} {node.get('failureSummary', '')[:300]}"
        for one in found["violations"]
        for node in one["nodes"][:3]
    ]


#: How cards begin that are narrower than what stands in them: they hide the rest, and the page gets no wider for it.
#: A plot is drawn anew a moment after the window has another width.
CUT_CARDS = """() => Array.from(document.querySelectorAll(".tr-card"))
    .filter(card => card.scrollWidth > card.clientWidth + 1 && !card.querySelector("[data-plot]"))
    .map(card => card.textContent.trim().slice(0, 60))"""


def test_every_page_holds_in_both_themes_and_three_widths(monitor, page):
    kind, base, app = monitor
    problems = []
    console = []
    page.on("console", lambda message: console.append(message.text) if message.type == "error" else None)
    log_in(page, base, app)
    for name, address in addresses(app).items():
        if kind == "empty" and name in OF_ONE:
            continue
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            page.set_viewport_size({"width": 1280, "height": 900})
            answer = page.goto(base + address)
            assert answer.status == 200, address
            expect(page.locator("h1")).to_be_visible()
            expect(page.locator("#tr-live-text")).to_have_text("Live")
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_timeout(30)
                if width == 1280 or (kind == "full" and theme == "light"):  # the rest differs in nothing that counts
                    problems += [f"{kind} {name} {theme} {width} px: {text}" for text in violations(page)]
                cut = page.evaluate(CUT_CARDS)
                problems += [f"{kind} {name} {theme} {width} px: a card cuts off what it holds: {text}" for text in cut]
                wide = page.evaluate("document.documentElement.scrollWidth")
                if wide > width:
                    problems.append(f"{kind} {name} {theme} is {wide} px wide in a window of {width}")
        if page.evaluate("window.pwned"):
            problems.append(f"{kind} {name}: a string of a record ran as a script")
    assert problems == [], "\n".join(problems)
    # A browser says here what the content security policy refused.
    assert console == []


#: Adds up how far what is seen moves without an input, as browsers score it.
SHIFTS = """
window.shifted = [];
new PerformanceObserver((list) => {
    for (const one of list.getEntries()) {
        if (one.hadRecentInput) { continue; }
        const moved = one.sources.map((source) => source.node?.className || source.node?.nodeName || "?");
        window.shifted.push([one.value, moved.join(" ")]);
    }
}).observe({type: "layout-shift", buffered: true});
"""
#: What Web Vitals call good.
GOOD = 0.1


def test_no_page_shifts_when_it_has_loaded_or_when_facts_arrive(full, page):
    base, app = full
    page.add_init_script(SHIFTS)
    log_in(page, base, app)
    moved = {}
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        for name, address in addresses(app).items():
            page.goto(base + address)
            expect(page.locator("#tr-live-text")).to_have_text("Live")
            memory = MemoryState(rss_bytes=(100 + width % 7) * MIB, uss_bytes=MIB, fds=9, threads=2)
            with page.expect_response(lambda answer: "x-trace-refresh" in answer.request.headers, timeout=SLOW_MS):
                app.context.store.write([Sample(process="child-1", at_s=time.time(), memory=memory)])
            page.wait_for_timeout(100)
            found = page.evaluate("window.shifted")
            if sum(value for value, _ in found) > GOOD:
                moved[f"{name} {width} px"] = found
    assert moved == {}


def test_the_login_page_and_a_missing_page_are_accessible_too(full, page):
    base, app = full
    page.goto(f"{base}/login")
    assert violations(page) == []
    log_in(page, base, app)
    answer = page.goto(f"{base}/trace/leaks/nothing")
    assert answer.status == 404
    assert violations(page) == []
    page.get_by_role("link", name="All leaks").click()
    expect(page).to_have_url(f"{base}/trace/leaks")


def test_a_new_failure_appears_without_reload(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/failures/all")
    expect(page.locator("#tr-live-text")).to_have_text("Live")
    page.evaluate("window.same = 'page'")
    page.get_by_role("combobox", name="Search").fill("half typed")
    app.context.store.write(
        [
            Failure(
                id=failure_id("fresh", 0), process="child-1", kind=Kind.TASK, name="shop.tasks.brand_new",
                task_id="fresh", outcome=Outcome.FAILED, at_s=time.time(), fingerprint="fresh",
                exception=ExceptionInfo("BrandNewError", "shop", "never seen"),
            )
        ]
    )  # fmt: skip
    expect(page.get_by_role("link", name="BrandNewError")).to_be_visible(timeout=20_000)
    assert page.evaluate("window.same") == "page"
    assert page.get_by_role("combobox", name="Search").input_value() == "half typed"


def test_a_failure_is_held_alive_no_longer_than_its_process_lives(full, page):
    base, app = full
    now_s = time.time()
    process = ProcessRecord(uid="holder", host="h", pid=8, started_at_s=now_s - 60, worker="w@holder", role=Role.CHILD)
    failure = Failure(
        id=failure_id("held", 0), process="holder", kind=Kind.TASK, name="shop.tasks.held", task_id="held",
        outcome=Outcome.FAILED, at_s=now_s, fingerprint="held", exception=ExceptionInfo("HeldError", "shop", "still"),
    )  # fmt: skip
    kept = Kept(process="holder", failure=failure.id, at_s=now_s, until_s=now_s + 900, address="q")
    app.context.store.write([process, failure, kept])
    log_in(page, base, app)
    page.goto(f"{base}/trace/failures/{failure.id}")
    expect(page.locator("#tr-live-text")).to_have_text("Live")
    expect(page.get_by_text("Kept live")).to_be_visible()
    app.context.store.write([replace(process, ended_at_s=now_s + 1, ended_how="exit")])
    expect(page.get_by_text("Kept live")).to_have_count(0, timeout=SLOW_MS)


def test_selected_text_is_not_taken_away_and_what_is_new_comes_after_it(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/failures/all")
    expect(page.locator("#tr-live-text")).to_have_text("Live")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('td .tr-mono'))")
    chosen = page.evaluate("getSelection().toString()")
    assert chosen
    new = Failure(
        id=failure_id("later", 0), process="child-1", kind=Kind.TASK, name="shop.tasks.later", task_id="later",
        outcome=Outcome.FAILED, at_s=time.time(), fingerprint="later", exception=ExceptionInfo("LaterError", "s", ""),
    )  # fmt: skip
    app.context.store.write([new])
    expect(page.locator("#tr-live-text")).to_have_text("Paused while text is selected", timeout=SLOW_MS)
    assert page.evaluate("getSelection().toString()") == chosen
    page.evaluate("getSelection().removeAllRanges()")
    expect(page.get_by_role("link", name="LaterError")).to_be_visible(timeout=SLOW_MS)
    expect(page.locator("#tr-live-text")).to_have_text("Live")


def test_what_stays_the_same_is_not_exchanged(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/failures")
    expect(page.locator("#tr-live-text")).to_have_text("Live")
    page.evaluate("document.querySelector('tbody tr').same = true")
    with page.expect_response(lambda answer: answer.url.endswith("/trace/failures")):
        app.context.store.write([Sample(process="child-2", at_s=time.time(), memory=MemoryState(rss_bytes=MIB))])
    page.evaluate("new Promise(resolve => setTimeout(resolve, 300))")
    assert page.evaluate("document.querySelector('tbody tr').same") is True


def test_a_filter_lives_in_the_address(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/leaks")
    page.get_by_label("Verdict").select_option("steady")
    page.get_by_role("button", name="Filter").click()
    expect(page).to_have_url(f"{base}/trace/leaks?verdict=steady")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("link", name="Retained per run").click()
    expect(page).to_have_url(f"{base}/trace/leaks?verdict=steady&sort=per_run")
    page.get_by_role("link", name="Clear").click()
    expect(page.locator("tbody tr")).to_have_count(3)


#: Cells of a table whose words begin left of where the first of them does, below their label: [label, how far], pixels.
BELOW_LABELS = """() => Array.from(document.querySelectorAll(".tr-table td[data-label]")).map(cell => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    const lefts = Array.from(range.getClientRects()).filter(box => box.width > 1).map(box => box.left);
    return [cell.dataset.label, Math.round(lefts[0] - Math.min(...lefts))];
}).filter(([, far]) => far > 2)"""


def test_a_phone_has_the_words_of_a_cell_beside_its_label(full, page):
    base, app = full
    log_in(page, base, app)
    page.set_viewport_size({"width": 390, "height": 900})
    for address in ("/trace/failures/all", "/trace/leaks", "/trace/alerts", "/trace/runs", "/trace/workers"):
        page.goto(base + address)
        expect(page.locator("td[data-label]").first).to_be_visible()
        assert page.evaluate(BELOW_LABELS) == [], address


#: Filters that have less room than their words take: [name, room, width of the words], pixels.
CUT_OFF = """() => {
    const ink = document.createElement("canvas").getContext("2d");
    return Array.from(document.querySelectorAll(".tr-filters input:not([type=hidden]), .tr-filters select"))
        .filter(field => field.offsetParent !== null)
        .map(field => {
            const style = getComputedStyle(field);
            ink.font = style.font;
            const words = field.selectedOptions ? field.selectedOptions[0].text : field.placeholder;
            const room = field.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
            return [field.name, Math.round(room), Math.ceil(ink.measureText(words).width)];
        })
        .filter(([, room, width]) => room < width);
}"""


def test_no_filter_is_cut_off(full, page):
    base, app = full
    log_in(page, base, app)
    filters = "?outcome=internal_error&verdict=too_few_runs&state=regressed&live=1&range=day"
    problems = []
    for address in ("/trace/leaks", "/trace/failures", "/trace/failures/all", "/trace/runs", "/trace/workers"):
        for query in ("", filters):
            page.goto(base + address + query)
            for width in (1280, 1024, 390):
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_timeout(30)
                problems += [f"{address}{query} {width} px: {field}" for field in page.evaluate(CUT_OFF)]
    assert problems == [], "\n".join(problems)


def test_a_phone_sorts_by_a_choice_as_its_tables_have_no_headings(full, page):
    base, app = full
    log_in(page, base, app)
    for address, label, sort in (("/trace/leaks", "Task", "name"), ("/trace/failures", "Count", "count")):
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(base + address)
        expect(page.get_by_label("Sort", exact=True)).to_be_hidden()
        page.set_viewport_size({"width": 390, "height": 900})
        page.get_by_label("Sort", exact=True).select_option(label)
        expect(page).to_have_url(f"{base}{address}?sort={sort}")
        expect(page.get_by_label("Sort", exact=True)).to_have_value(sort)


def test_a_local_opens_as_a_tree_by_mouse_and_keyboard(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/failures/{FAILURE}")
    page.get_by_role("button", name="Open order").first.click()
    tree = page.get_by_role("tree").first
    expect(tree.get_by_role("treeitem").first).to_contain_text("3 items")
    tree.get_by_role("treeitem").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(tree).to_contain_text("ada@example.org")
    expect(tree).to_contain_text("redacted")


def test_the_shell_answers_completes_and_remembers(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/failures/{FAILURE}")
    box = page.get_by_role("textbox", name="Shell input")
    log = page.get_by_role("log")
    box.fill("trace.context_data")
    page.keyboard.press("Enter")
    expect(log).to_contain_text("'Hello'", timeout=60_000)
    box.fill("<img src=x onerror=window.pwned=1>")
    page.keyboard.press("Enter")
    expect(log).to_contain_text("SyntaxError")
    box.press("ArrowUp")
    box.press("ArrowUp")
    expect(box).to_have_value("trace.context_data")
    box.fill("context_d")
    page.keyboard.press("Tab")
    expect(box).to_have_value("context_data")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    expect(box).not_to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(box).to_be_focused()
    box.fill("for name in ['x', 'y']:")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("print(name * 3)")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(log).to_contain_text("yyy")
    box.fill("# a remark")
    page.keyboard.press("Enter")
    expect(log.locator(".tr-log-remark")).to_contain_text("a remark")
    assert page.evaluate("window.pwned") is None
    assert violations(page) == []
    # A second person sees what was said.
    page.reload()
    page.get_by_role("textbox", name="Shell input").focus()
    expect(page.get_by_role("log")).to_contain_text("a remark", timeout=30_000)


def test_a_desk_and_a_phone_share_a_session_and_a_cut_of_the_line_loses_nothing(full, page, chromium):
    base, app = full
    phone = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).new_page()
    for one in (page, phone):
        log_in(one, base, app)
        one.goto(f"{base}/trace/failures/{FAILURE}")
        one.get_by_role("textbox", name="Shell input").focus()
        expect(one.locator("#console-mode")).to_have_text("recreated", timeout=60_000)

    def typed(one, code):
        one.get_by_role("textbox", name="Shell input").fill(code)
        one.keyboard.press("Enter")

    # A block that somebody begins is seen by the others when it is complete, once.
    typed(page, "for name in ['x', 'y']:")
    expect(page.get_by_role("textbox", name="Shell input")).to_have_value("for name in ['x', 'y']:\n    ")
    page.keyboard.type("print(name * 3)")
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Home")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(phone.get_by_role("log")).to_contain_text("yyy")
    expect(phone.locator(".tr-log-input")).to_have_count(1)
    sockets = [socket for room in app.rooms._rooms.values() for socket, _ in room._sockets.items()]
    assert len(sockets) == 2
    app.io_loop.add_callback(lambda: [socket.close(1011, "cut") for socket in sockets])
    expect(page.locator("#console-mode")).to_have_text("disconnected, reconnecting")
    typed(page, "while_away = 'kept'")
    expect(page.locator("#console-mode")).to_have_text("recreated", timeout=30_000)
    expect(phone.locator("#console-mode")).to_have_text("recreated", timeout=30_000)
    typed(page, "while_away")
    expect(page.get_by_role("log")).to_contain_text("'kept'")
    expect(phone.get_by_role("log")).to_contain_text("'kept'")
    # What a phone's keyboard lacks stands below the input.
    phone.get_by_role("textbox", name="Shell input").fill("while_a")
    phone.get_by_role("button", name="Tab").tap()
    expect(phone.get_by_role("textbox", name="Shell input")).to_have_value("while_away")
    phone.get_by_role("textbox", name="Shell input").fill("'phone'")
    phone.keyboard.press("Enter")
    expect(page.get_by_role("log")).to_contain_text("'phone'")
    phone.get_by_role("button", name="Earlier command").tap()
    expect(phone.get_by_role("textbox", name="Shell input")).to_have_value("'phone'")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    assert violations(phone) == []
    expect(page.get_by_role("button", name="Earlier command")).to_be_hidden()
    phone.context.close()


def test_the_page_says_when_it_is_cut_off(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/leaks")
    expect(page.locator("#tr-live-text")).to_have_text("Live")
    app.io_loop.add_callback(app.live.close)
    expect(page.locator("#tr-live-text")).to_have_text("Disconnected, reconnecting")
    expect(page.locator("#tr-live-text")).to_have_text("Live", timeout=20_000)


def test_an_alert_is_acknowledged_from_the_page(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/alerts?state=firing")
    page.get_by_role("button", name="Acknowledge").first.click()
    expect(page.get_by_text("acknowledged by admin")).to_be_visible(timeout=20_000)
    assert app.context.queries.alert("alert-leak").acknowledged_by == "admin"


def test_a_rule_is_changed_on_the_page_and_what_is_wrong_is_said_beside_it(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/alerts")
    rule = page.locator("[data-rule]", has_text="process_memory")
    rule.locator("summary").click()
    rule.get_by_label("threshold").fill("lots")
    page.get_by_role("button", name="Save rules").click()
    expect(page.get_by_role("alert")).to_contain_text("it must be a size")
    expect(rule.get_by_label("threshold")).to_be_focused()
    rule.get_by_label("threshold").fill("3 GiB")
    page.get_by_label("Add a rule").select_option("lost")
    expect(page.get_by_label("Name", exact=True).last).to_have_value("lost-2")
    assert violations(page) == []
    page.get_by_role("button", name="Save rules").click()
    expect(page.get_by_text("A process holds more than 3.0 GiB")).to_be_visible(timeout=20_000)
    expect(page.get_by_text("set here by admin")).to_be_visible()
    assert [rule.name for rule in in_force(None, app.context.queries.alert_rules())][-1] == "lost-2"
    page.get_by_role("button", name="Restore configured rules").click()
    page.get_by_role("dialog").get_by_role("button", name="Restore configured rules").click()
    expect(page.get_by_text("shipped defaults")).to_be_visible(timeout=20_000)
    assert app.context.queries.alert_rules() is None


def test_a_failure_is_found_by_the_value_of_a_local(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/failures/all")
    page.get_by_role("combobox", name="Search").fill("Email=ada@example")
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_url("**q=Email*")
    expect(page.locator("tbody tr").first).to_be_visible(timeout=SLOW_MS)
    expect(page.locator(".tr-filter-note")).to_be_visible(timeout=SLOW_MS)
    page.get_by_role("combobox", name="Search").fill("grace@example")
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_url("**q=grace*")
    expect(page.get_by_text("No failures match this search")).to_be_visible(timeout=SLOW_MS)


def test_an_outlier_is_opened_from_the_plot_and_closed_again(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/runs/task/shop.tasks.remember_order")
    place = page.locator('[data-plot="scatter"] .u-over')
    words = page.locator('[data-plot="scatter"] .tr-plot-tooltip')

    def pointed_at():
        place.hover()  # again where fresh facts drew the plot anew
        return "click to open" in (words.text_content(timeout=SLOW_MS) or "")

    eventually(pointed_at)
    place.click()
    page.wait_for_url("**run=run-*")
    expect(page.locator("#opened-run")).to_be_visible(timeout=SLOW_MS)
    assert violations(page) == []
    page.get_by_role("link", name="Close").click()
    expect(page.locator("#opened-run")).to_have_count(0, timeout=SLOW_MS)


def test_a_plot_under_the_pointer_stays_and_is_drawn_anew_when_the_pointer_leaves(full, page):
    base, app = full

    def another_sample(runs):
        memory = MemoryState(rss_bytes=150 * MIB)
        app.context.store.write([Sample(process="child-1", at_s=time.time(), memory=memory, runs=runs)])

    def same_plot():
        return page.evaluate("document.querySelector('[data-plot] .uplot').dataset.same") == "plot"

    log_in(page, base, app)
    page.goto(f"{base}/trace/workers")
    expect(page.locator("#tr-live-text")).to_have_text("Live")
    words = page.locator('[data-plot="memory"] .tr-plot-tooltip')

    def pointed_at():
        page.locator('[data-plot="memory"] .u-over').hover()
        return words.is_visible()

    eventually(pointed_at)
    page.evaluate("document.querySelector('[data-plot] .uplot').dataset.same = 'plot'")
    said = words.text_content()
    another_sample(4_321)
    expect(page.get_by_role("cell", name="4,321")).to_be_visible(timeout=SLOW_MS)
    assert same_plot()
    assert words.is_visible()
    assert words.text_content() == said
    page.mouse.move(5, 5)
    eventually(lambda: not same_plot())
    # So it does under the eyes of who came by keyboard.
    page.get_by_role("button", name="Unique (USS)").focus()
    page.keyboard.press("Enter")
    page.evaluate("document.querySelector('[data-plot] .uplot').dataset.same = 'plot'")
    another_sample(5_432)
    expect(page.get_by_role("cell", name="5,432")).to_be_visible(timeout=SLOW_MS)
    assert same_plot()
    expect(page.get_by_role("button", name="Unique (USS)")).to_be_focused()
    page.get_by_role("link", name="Alerts").focus()
    eventually(lambda: not same_plot())


def test_the_memory_page_shows_the_single_runs_of_its_processes(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}/trace/workers")
    lanes = page.locator(".tr-lanes")
    expect(lanes.get_by_text("shop.tasks.remember_order")).to_be_visible(timeout=SLOW_MS)
    bar = lanes.locator('.tr-lane a[href*="?run="]').last  # others are of runs in progress
    expect(bar).to_have_attribute("href", re.compile("/trace/runs/task/shop.tasks.remember_order[?]run=run-"))
    page.goto(base + bar.get_attribute("href"))
    expect(page.get_by_role("heading", level=1)).to_contain_text("shop.tasks.remember_order")


def test_a_bar_is_as_long_as_its_run(full, page):
    base, app = full
    now_s = time.time()
    worker = ProcessRecord(uid="long", host="long", pid=7, started_at_s=now_s - 3600, worker="w@long", role=Role.SOLO)
    samples = [
        Sample(process="long", at_s=now_s - ago_s, memory=MemoryState(rss_bytes=90 * MIB)) for ago_s in (3500, 600, 20)
    ]
    runs = [
        Run(
            id=f"run-of-{lasts_s}", process="long", kind=Kind.TASK, name="shop.lasts", task_id=f"lasts-{lasts_s}",
            started_at_s=now_s - ago_s, duration_s=lasts_s, state="SUCCESS", why="outlier",
        )
        for ago_s, lasts_s in ((3000, 300.0), (1500, 900.0))
    ]  # fmt: skip
    app.context.store.write([worker, *samples, *runs])
    log_in(page, base, app)
    for query in ("?worker=w@long", "?worker=w@long&range=day"):
        page.goto(f"{base}/trace/workers{query}")
        bars = page.locator(".tr-lanes .tr-lane a")
        expect(bars).to_have_count(2, timeout=SLOW_MS)
        widths = sorted(bars.nth(at).bounding_box()["width"] for at in range(2))
        assert widths[0] > 2
        assert widths[1] / widths[0] == pytest.approx(3.0, rel=0.3)


def test_a_single_sample_is_said_to_be_one(full, page):
    base, app = full
    now_s = time.time()
    host = ProcessRecord(uid="lonely", host="lonely", pid=1, started_at_s=now_s - 60, role=Role.WEB)
    memory = MemoryState(rss_bytes=120 * MIB)
    app.context.store.write([host, Sample(process="lonely", at_s=now_s, memory=memory, name="GET /")])
    log_in(page, base, app)
    page.goto(f"{base}/trace/workers?worker=web@lonely")
    expect(page.get_by_text("One sample so far")).to_be_visible(timeout=SLOW_MS)


def test_five_minutes_that_are_alone_stand_in_the_middle(full, page):
    base, app = full
    bucket_s = int(time.time()) // Rollup.BUCKET_S * Rollup.BUCKET_S
    app.context.store.write(
        [Rollup(process="child-1", kind=Kind.TASK, name="shop.tasks.once", bucket_s=bucket_s, seq=1, runs=7)]
    )
    log_in(page, base, app)
    page.goto(f"{base}/trace/runs/task/shop.tasks.once")
    over = page.locator('[data-plot="timeline"] .u-over')

    def place():
        over.hover()
        point = page.locator('[data-plot="timeline"] .u-cursor-pt').first.bounding_box()
        box = over.bounding_box()
        return point and (point["x"] + point["width"] / 2 - box["x"]) / box["width"]

    eventually(lambda: (place() or 0) > 0)
    assert place() == pytest.approx(0.5, abs=0.02)


def test_a_task_that_is_traced_shows_how_long_still_and_can_be_stopped(full, page):
    base, app = full
    log_in(page, base, app)
    asked = []

    def answer(route):
        asked.append(route.request.post_data_json["seconds"])
        route.fulfill(json={"workers": [{"worker": "w1@h", "ok": True, "why": ""}]})

    page.route("**/api/trace/tasks/trace", answer)
    page.goto(base + addresses(app)["trace_leak"])
    page.get_by_role("button", name="Trace now").click()
    words = page.locator("#tr-tracing-text")
    expect(words).to_contain_text("Tracing all runs, 1:5", timeout=SLOW_MS)
    page.reload()
    expect(words).to_contain_text("left", timeout=SLOW_MS)
    assert violations(page) == []
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(words).to_be_hidden(timeout=SLOW_MS)
    assert asked == [120, 0]


def test_ten_thousand_failures_are_a_page_that_is_usable_within_a_second(tmp_path, page):
    settings = filled(tmp_path)
    store = open_store(settings)
    now_s = time.time()
    rows = list(monitor_facts.failures(now_s, count=200))
    for start in range(50):
        store.write(
            [
                Failure(
                    id=failure_id(f"many-{start}-{n}", 0), process="child-1", kind=Kind.TASK, name=rows[n].name,
                    task_id=f"many-{start}-{n}", outcome=Outcome.FAILED, at_s=now_s - start * 200 - n,
                    fingerprint=f"many-{n % 40}", exception=rows[n].exception, worker="celery@web-1", pid=1,
                )
                for n in range(200)
            ]
        )  # fmt: skip
    store.close()
    with serving(lambda: make_monitor(tmp_path, settings=settings)) as (base, app):
        log_in(page, base, app)
        for address in ("/trace", "/trace/failures", "/trace/failures/all"):
            page.goto(base + address)  # the first visit fills caches
            page.goto(base + address)
            usable_ms = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
            assert usable_ms < 1000, (address, usable_ms)
        page.get_by_role("link", name="Older failures").click()
        expect(page.locator("tbody tr")).to_have_count(100)


# --- flame graphs ---------------------------------------------------------------------------------------------


def test_a_flame_graph_is_gone_through_by_keys_and_zoomed(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}{addresses(app)['trace_flame']}")
    graph = page.get_by_role("tree", name=re.compile("Retained memory of shop.tasks.remember_order"))
    root = graph.get_by_role("treeitem").first
    expect(root).to_have_text("shop.tasks.remember_order")
    words = page.locator("#flame-text")
    root.focus()
    page.keyboard.press("ArrowDown")
    expect(words).to_contain_text("remember_order · /srv/shop/shop/tasks.py:57 · ")
    expect(words).to_contain_text("RECEIPTS.append(order)")
    page.keyboard.press("ArrowDown")
    expect(words).to_contain_text("Receipt.__init__ · /srv/shop/shop/receipts.py:12 · ")
    page.keyboard.press("ArrowRight")
    expect(words).to_contain_text("Receipt.line · ")
    line = graph.get_by_text("Receipt.line")
    narrow = line.bounding_box()["width"]
    page.keyboard.press("Enter")
    assert line.bounding_box()["width"] > narrow * 2
    expect(line).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert abs(graph.get_by_text("Receipt.line").bounding_box()["width"] - narrow) < 2
    graph.get_by_text("Receipt.__init__").click()
    expect(words).to_contain_text("Receipt.__init__")


def test_a_difference_shows_what_keeps_more_and_what_less_and_its_files(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}{addresses(app)['trace_flame']}")
    page.get_by_label("Compare with").select_option("release:1.8.1")
    page.wait_for_url("**compare=release*")
    graph = page.get_by_role("tree")
    expect(graph.locator(".tr-grew-3").first).to_be_visible()
    expect(graph.get_by_text("dumps")).to_have_class(re.compile("tr-shrank-"))
    expect(page.locator(".tr-flame-legend")).to_contain_text("retains more than with release 1.8.1")
    page.get_by_text("Table and downloads").click()
    expect(page.get_by_role("row", name=re.compile("receipts.py.*Receipt.__init__"))).to_be_visible()
    with page.expect_download() as started:
        page.get_by_role("link", name="speedscope").click()
    assert started.value.suggested_filename == "kept-memory.speedscope.json"


def test_a_flame_graph_switches_between_memory_and_times_and_keeps_the_comparison(full, page):
    base, app = full
    log_in(page, base, app)
    page.goto(f"{base}{addresses(app)['trace_runs_of']}")
    switch = page.get_by_role("navigation", name="Measure")
    expect(switch.get_by_role("link")).to_have_text(["memory", "wall", "CPU", "lock"])
    expect(switch.get_by_role("link", name="memory")).to_have_attribute("aria-current", "page")
    switch.get_by_role("link", name="wall").click()
    page.wait_for_url("**measure=wall*")
    graph = page.get_by_role("tree", name=re.compile("Wall time of shop.tasks.remember_order"))
    graph.get_by_text("SocketIO.readinto").hover()
    expect(page.locator("#flame-text")).to_contain_text(re.compile(r"socket\.py:705 · 2 min \d+ s \(\d+(\.\d)? %\)"))
    page.get_by_role("link", name="Compare times or releases").click()
    page.wait_for_url("**/trace/flame/task/**measure=wall*")
    page.get_by_label("Compare with").select_option("release:1.8.1")
    page.wait_for_url("**compare=release*")
    assert "measure=wall" in page.url
    graph.get_by_text("SocketIO.readinto").hover()
    expect(page.locator("#flame-text")).to_contain_text(re.compile(r" ms per run, before .* ms per run \(\+\d+ ms\)"))
    switch.get_by_role("link", name="CPU").click()
    page.wait_for_url("**measure=cpu*")
    assert "compare=release" in page.url
    expect(page.get_by_role("tree", name=re.compile("CPU time of"))).to_be_visible()
    expect(page.locator(".tr-flame-legend")).to_contain_text("takes more than with release 1.8.1")
    page.get_by_text("Table and downloads").click()
    with page.expect_download() as started:
        page.get_by_role("link", name="Firefox Profiler").click()
    assert started.value.suggested_filename == "cpu-time.firefox.json"


def test_the_page_of_queues_shows_each_quantity_and_follows_the_store(page, full):
    base, app = full
    app.context.store.write([QueueSample(queue="mails", at_s=time.time(), depth=236, consumers=0)])
    log_in(page, base, app)
    page.goto(f"{base}/trace/queues")
    page.locator("[data-plot=queues] canvas").wait_for()
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="mails", exact=True))
    expect(row).to_contain_text("none")
    for name in ("Wait (p95)", "Oldest", "Reserved", "Running", "Waiting"):
        page.get_by_role("button", name=name, exact=True).click()
        page.locator("[data-plot=queues] canvas").wait_for()
    page.get_by_role("link", name="mails", exact=True).click()
    page.wait_for_url("**/trace/queues?queue=mails*")
    expect(page.get_by_role("link", name="orders", exact=True)).to_have_count(0)
    with_more = QueueSample(queue="mails", at_s=time.time() + 1, depth=4321, consumers=0)
    app.context.store.write([with_more])
    expect(page.get_by_role("row").filter(has_text="4,321")).to_have_count(1)
