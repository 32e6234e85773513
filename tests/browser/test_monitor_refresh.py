"""What a page takes over without being loaded again: what a person opened, chose or scrolled stays, nothing jumps."""

import time

import pytest
from playwright.sync_api import expect

from celery_trace.model import ExceptionInfo, Failure, Kind, MemoryState, Outcome, Run, Sample, Site, failure_id
from tests.browser.test_monitor_browser import MIB, SLOW_MS, filled, log_in
from tests.support.monitor_app import make_monitor, serving

NAME = "shop.tasks.remember_order"


@pytest.fixture
def monitor(tmp_path, page):
    settings = filled(tmp_path)
    with serving(lambda: make_monitor(tmp_path, settings=settings)) as (base, app):
        log_in(page, base, app)
        yield base, app


def opened(page, address):
    page.goto(address)
    expect(page.locator("#tr-live-text")).to_have_text("Live")


def longest_run(number):
    return Run(
        id=f"long-{number}", process="child-1", kind=Kind.TASK, name=NAME, task_id=f"long-{number}",
        started_at_s=time.time(), state="SUCCESS", duration_s=100.0 + number, why="outlier",
        memory=MemoryState(rss_bytes=MIB),
        top=[Site(file="/srv/shop/tasks.py", line=number, bytes=MIB, blocks=1, code="")],
    )  # fmt: skip


#: The lines that opened rows show.
OPEN_ROWS = "Array.from(document.querySelectorAll('.tr-top details[open] .tr-where')).map(one => one.title)"


def test_a_row_that_was_opened_stays_open_when_others_come_above_it(monitor, page):
    base, app = monitor
    app.context.store.write([longest_run(1)])
    opened(page, f"{base}/trace/runs/task/{NAME}")
    page.locator(".tr-top summary").first.click()
    assert page.evaluate(OPEN_ROWS) == ["/srv/shop/tasks.py:1"]
    for number in (2, 3):
        app.context.store.write([longest_run(number)])
        expect(page.get_by_role("row").filter(has_text=f"long-{number}")).to_be_visible(timeout=SLOW_MS)
        assert page.evaluate(OPEN_ROWS) == ["/srv/shop/tasks.py:1"]


def test_the_focus_and_the_scrolled_place_stay(monitor, page):
    base, app = monitor
    page.set_viewport_size({"width": 820, "height": 500})
    opened(page, f"{base}/trace/workers")
    link = page.locator(".tr-blame a").first
    link.focus()
    page.evaluate("window.scrollTo(0, 300)")
    memory = MemoryState(rss_bytes=MIB)
    app.context.store.write([Sample(process="child-1", at_s=time.time(), memory=memory, runs=4_321)])
    expect(page.get_by_role("cell", name="4,321")).to_have_count(1, timeout=SLOW_MS)
    expect(link).to_be_focused()
    assert page.evaluate("window.scrollY") == 300


#: Counts what moves without a person's doing, from now on.
WATCH_SHIFTS = """() => {
    window.shifts = [];
    new PerformanceObserver(list => list.getEntries().forEach(entry => window.shifts.push(entry.value)))
        .observe({type: "layout-shift"});
}"""


def test_nothing_moves_when_a_plot_is_drawn_anew(monitor, page):
    base, app = monitor
    opened(page, f"{base}/trace/workers")
    expect(page.locator(".tr-lanes")).to_be_visible(timeout=SLOW_MS)
    page.mouse.move(5, 5)
    page.evaluate(WATCH_SHIFTS)
    page.evaluate("document.querySelector('[data-plot] .uplot').dataset.same = 'plot'")
    sample = Sample(process="child-1", at_s=time.time(), memory=MemoryState(rss_bytes=150 * MIB), runs=4_321)
    app.context.store.write([sample])
    expect(page.get_by_role("cell", name="4,321")).to_be_visible(timeout=SLOW_MS)
    assert page.evaluate("document.querySelector('[data-plot] .uplot').dataset.same") is None
    expect(page.locator(".tr-lanes")).to_have_count(1)
    page.evaluate("new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    assert page.evaluate("window.shifts") == []


def test_a_plot_with_the_same_data_is_not_drawn_anew(monitor, page):
    base, app = monitor
    opened(page, f"{base}/trace/runs/task/{NAME}")
    page.mouse.move(5, 5)
    same = "document.querySelectorAll('.uplot').forEach(plot => { plot.dataset.same = 'plot'; })"
    page.evaluate(same)
    drawn = page.locator(".uplot").count()
    failure = Failure(
        id=failure_id("new", 0), process="child-1", kind=Kind.TASK, name=NAME, task_id="new", outcome=Outcome.FAILED,
        at_s=time.time(), fingerprint="new", exception=ExceptionInfo("BrandNewError", "shop", ""),
    )  # fmt: skip
    app.context.store.write([failure])
    expect(page.get_by_role("link", name="BrandNewError")).to_be_visible(timeout=SLOW_MS)
    expect(page.locator(".uplot[data-same]")).to_have_count(drawn)
