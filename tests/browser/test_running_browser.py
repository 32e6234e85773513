"""The page Running and the stack of a run in a real Chromium."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from celery_trace.model import (
    Capture,
    CapturedException,
    Frame,
    Node,
    RunningRun,
    RunningSnapshot,
    RunningView,
    RunStack,
    Variable,
)
from celery_trace.settings import load
from celery_trace.stores import Store, open_store
from tests.support import monitor_facts
from tests.support.monitor_app import PASSWORD, make_monitor, serving
from tests.support.monitor_facts import RUNNING


class Reader:
    """Answers for the process."""

    def __init__(self) -> None:
        self.asked = 0

    def read(self, run: RunningView, *, user: str) -> RunStack:
        assert user
        self.asked += 1
        frame = Frame(
            file="/srv/shop/shop/tasks.py", line=88, function="sync_stock", code="lock.wait(timeout=None)",
            context_start=86, context=["def sync_stock(self, order):", "    lock = locks[order]", "    lock.wait()"],
            locals=[Variable("order", 0), Variable("options", 2), Variable("token", 1)],
        )  # fmt: skip
        nodes = [
            Node("str", "plain", "order-4711"), Node("str", "redacted"), Node("dict", "dict", items=[3, 0], length=1),
            Node("str", "plain", "key"),
        ]  # fmt: skip
        raised = CapturedException(type="", module="", message="", frames=[frame])
        return RunStack(request="r", at_s=time.time(), by="process", capture=Capture(exceptions=[raised], heap=nodes))


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Store, Reader]]:
    folder = tmp_path_factory.mktemp("running")
    settings = load({"trace_dir": str(folder), "trace_collector": False}, environment={})
    store = open_store(settings)
    monitor_facts.fill(store, time.time())
    with serving(lambda: make_monitor(folder, settings=settings)) as (base, app):
        app.context.stacks = reader = Reader()
        yield base, store, reader
    store.close()


@pytest.fixture
def visit(page: Page, monitor: tuple[str, Store, Reader]) -> Any:
    words = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    page.set_extra_http_headers({"Authorization": f"Basic {words}"})

    def go(path: str, *, width: int = 1280, dark: bool = False) -> Page:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.goto(monitor[0] + path)
        return page

    return go


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False), (1280, True)])
@pytest.mark.parametrize("path", ["/trace/running", f"/trace/running/child-1/{RUNNING}"])
def test_the_pages_fit_the_window(visit: Any, path: str, width: int, dark: bool, tmp_path: Any) -> None:
    page = visit(path, width=width, dark=dark)
    expect(page.locator("main").get_by_text("sync_stock").locator("visible=true").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_a_new_run_appears_without_a_reload(visit: Any, monitor: tuple[str, Store, Reader]) -> None:
    _, store, _ = monitor
    page = visit("/trace/running")
    expect(page.get_by_role("link", name="shop.tasks.sync_stock")).to_be_visible()
    page.evaluate("window.same = true")
    now_s = time.time()
    run = RunningRun(
        process="child-2", kind=monitor_facts.Kind.TASK, name="shop.tasks.fresh", task_id="fresh-1", worker="w2@web-2",
        hostname="web-2", pid=7, role=monitor_facts.Role.CHILD, started_at_s=now_s - 1,
    )  # fmt: skip
    store.write([RunningSnapshot(place="web-2:0", at_s=now_s, runs=[run])])
    expect(page.get_by_role("link", name="shop.tasks.fresh")).to_be_visible()
    assert page.evaluate("window.same")


def test_a_click_on_a_run_shows_its_source_and_values(visit: Any, monitor: tuple[str, Store, Reader]) -> None:
    _, store, reader = monitor
    page = visit("/trace/running")
    page.get_by_role("link", name="shop.tasks.sync_stock").first.click()
    expect(page.get_by_text("order-4711").first).to_be_visible()
    expect(page.locator(".tr-lit")).to_contain_text("lock.wait")
    expect(page.locator(".tr-redacted")).to_be_visible()
    page.get_by_role("button", name="Open options").click()
    expect(page.locator(".tr-tree-row")).to_be_visible()
    asked = reader.asked
    store.write([RunningSnapshot(place="web-3:0", at_s=time.time())])  # a change: the page refreshes itself
    page.wait_for_timeout(4000)
    assert reader.asked == asked
    page.get_by_role("link", name="Read the stack again").click()
    expect(page.get_by_text("order-4711").first).to_be_visible()
    assert reader.asked == asked + 1
