"""The page of a workflow's timeline in a real Chromium: by keyboard, on a phone, and live."""

import time

import pytest
from playwright.sync_api import expect

from celery_trace.model import MemoryState, Sample
from celery_trace.settings import load
from celery_trace.stores import open_store
from tests.browser.test_monitor_browser import log_in, violations
from tests.support import monitor_facts
from tests.support.monitor_app import make_monitor, serving
from tests.support.monitor_facts import ROOT
from tests.wiring.test_timelines import chord, deliver, event, stored


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timeline")
    settings = load({"trace_dir": str(folder), "trace_collector": False}, environment={})
    store = open_store(settings)
    monitor_facts.fill(store, time.time())
    store.write(stored(time.time()))
    store.close()
    with serving(lambda: make_monitor(folder, settings=settings)) as (base, app):
        deliver(app, *chord(time.time()))
        yield base, app


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_workflow_is_reached_from_a_failure_and_read_at_each_width(monitor, page, theme, tmp_path):
    base, app = monitor
    page.emulate_media(color_scheme=theme)
    log_in(page, base, app)
    failure = app.context.queries.failures(root_id=ROOT, limit=1).rows[0]
    page.goto(f"{base}/trace/failures/{failure.id}")
    page.get_by_role("link", name="Timeline").first.click()
    expect(page).to_have_url(f"{base}/trace/workflow/{ROOT}")
    root = "c0000000-0000-4000-8000-000000000000"
    for workflow in (ROOT, root):
        page.goto(f"{base}/trace/workflow/{workflow}")
        for width in (390, 820, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(50)
            assert violations(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.screenshot(path=str(tmp_path / f"{theme}-{width}-{workflow[:2]}.png"), full_page=True)
    expect(page.get_by_role("rowheader")).to_have_count(5)
    expect(page.get_by_text("the body of a chord, waits for")).to_be_visible()
    bars = page.get_by_role("img", name="waiting for")
    expect(bars.first).to_be_visible()
    assert bars.first.bounding_box()["width"] > 100
    table = page.get_by_role("region", name="Table of tasks")
    table.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('th[scope=row]') !== null")


def test_a_task_that_ends_changes_its_row_without_a_reload(monitor, page):
    base, app = monitor
    log_in(page, base, app)
    now_s = time.time()
    deliver(app, event("task-received", "one", now_s - 9, root_id="one", name="shop.one"),
            event("task-started", "one", now_s - 5, root_id="one"))  # fmt: skip
    page.goto(f"{base}/trace/workflow/one")
    expect(page.locator("#tr-live-text")).to_have_text("Live")
    row = page.get_by_role("row", name="shop.one")
    expect(row).to_contain_text("running")
    deliver(app, event("task-succeeded", "one", now_s, root_id="one"))
    # A page refreshes when the store changes, as it does every few seconds.
    app.context.store.write([Sample(process="child-2", at_s=now_s, memory=MemoryState(rss_bytes=1))])
    expect(row).to_contain_text("succeeded", timeout=20_000)
    expect(row).to_contain_text("5 s")
