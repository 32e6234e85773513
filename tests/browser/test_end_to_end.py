"""
The main job, as a user does it: real processes, a real Chromium, and what the demo printed.

Open the printed address, see the leak, open its line, open the failure, type in the shell, read the answer.
"""

import re
import signal

import pytest
from playwright.sync_api import expect

from tests.support import leftovers
from tests.support.demo import Demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo, running, as for a person."""
    with Demo(work=tmp_path_factory.mktemp("demo")) as running:
        leftovers.outlives_tests(running.pid)
        running.wait_for(r"Ctrl-C stops everything", timeout_s=120)
        yield running


def _printed(demo, pattern):
    return demo.wait_for(pattern)[1]


def test_a_user_finds_the_leak_and_asks_the_failure(demo, page):
    link = _printed(demo, r"Monitor +(http\S+)")
    page.goto(link)
    expect(page.get_by_role("navigation").first).to_contain_text("Leaks")

    # The leak and its line. The page is live: nobody reloads it.
    page.get_by_role("link", name="Leaks", exact=True).first.click()
    row = page.get_by_role("row").filter(has_text="shop.tasks.remember_order").filter(has_text="leaking").first
    expect(row).to_contain_text("shop/tasks.py", timeout=120_000)
    row.get_by_role("link", name="shop.tasks.remember_order").click()
    lit = page.locator(".tr-lit")
    expect(lit).to_be_visible()
    assert "Receipt" in lit.inner_text() or "thank you for your purchase" in lit.inner_text()
    expect(page.get_by_text("shop/tasks.py").first).to_be_visible()

    # The failure, its frame and its locals.
    page.get_by_role("link", name="Failures", exact=True).first.click()
    row = page.get_by_role("row").filter(has_text="shop.tasks.create_error").filter(has_text="ZeroDivisionError").first
    row.get_by_role("link", name="ZeroDivisionError").click()
    page.get_by_role("link", name="Latest failure").click()
    expect(page.get_by_text("context_data").first).to_be_visible()

    # The shell.
    page.get_by_role("textbox", name="Shell input").fill("trace.context_data")
    page.keyboard.press("Enter")
    expect(page.get_by_role("log")).to_contain_text("'Hello'", timeout=60_000)

    # The printed link has done its work, and lets nobody in again.
    page.context.clear_cookies()
    page.goto(link)
    expect(page.get_by_text("This link was already used or has expired")).to_be_visible()


def test_flowers_own_pages_carry_our_navigation(demo, page):
    page.goto(_printed(demo, r"Monitor +(http\S+?)/login") + "/login?next=/workers")
    page.get_by_label("Password").fill(_printed(demo, r"with the password (\S+)\)"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Leaks", exact=True).first).to_be_visible()
    expect(page.get_by_role("link", name=re.compile("^Worker celery@"))).to_be_visible(timeout=30_000)


def test_ctrl_c_stops_everything(tmp_path):
    with Demo(work=tmp_path) as demo:
        demo.wait_for(r"Ctrl-C stops everything", timeout_s=120)
        demo.send(signal.SIGINT)
        assert demo.wait(60) == 0
    assert demo.output.rstrip().endswith("Everything has stopped; nothing was left behind.")
