"""A group of failures in a real browser: our dialog, the selection, forms, and the progress of retries."""

import pytest
from playwright.sync_api import expect

from flower_plugin import retries
from tests.browser.test_monitor_browser import filled, log_in
from tests.support.monitor_app import make_monitor, serving

pytest_plugins = ["tests.support.fixtures_browser"]

GROUP = "/trace/failures/groups/group-0"


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    settings = filled(folder)
    with serving(lambda: make_monitor(folder, settings=settings)) as found:
        yield found


@pytest.fixture
def group(page, monitor):
    base, app = monitor
    log_in(page, base, app)
    page.goto(base + GROUP)
    return page


@pytest.fixture
def sent(monitor, monkeypatch):
    found = []

    def send_task(name, **_):
        found.append(name)
        return type("Sent", (), {"id": f"new-{len(found)}"})()

    monkeypatch.setattr(monitor[1].capp, "send_task", send_task)
    monkeypatch.setattr(retries, "PACE_S", 0.0)
    return found


def focused(page):
    return page.evaluate("document.activeElement.textContent.trim()")


def test_a_dialog_keeps_the_focus_and_escape_changes_nothing(group, sent):
    button = group.get_by_role("button", name="Retry all")
    button.focus()
    group.keyboard.press("Enter")
    dialog = group.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(dialog).to_have_accessible_name(
        "Send 5 failed tasks of shop.tasks.create_error again with the captured arguments?"
    )
    assert focused(group) == "Retry 5"
    seen = set()
    for _ in range(6):
        group.keyboard.press("Tab")
        seen.add(
            group.evaluate(
                "document.activeElement.closest('dialog') !== null || document.activeElement === document.body"
            )
        )
    assert seen == {True}, "the focus has left the dialog"
    group.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert focused(group).startswith("Retry all")
    assert sent == []


def test_a_click_beside_the_dialog_and_cancel_change_nothing(group, sent):
    group.get_by_role("button", name="Retry all").click()
    group.mouse.click(5, 5)
    expect(group.get_by_role("dialog")).to_have_count(0)
    group.get_by_role("button", name="Retry all").click()
    group.get_by_role("button", name="Cancel").click()
    expect(group.get_by_role("dialog")).to_have_count(0)
    assert sent == []


def test_a_selection_is_retried_by_keyboard_and_its_progress_is_shown(group, sent):
    retry = group.get_by_role("button", name="Retry selected")
    expect(retry).to_be_disabled()
    boxes = group.get_by_label("Select this failure")
    boxes.nth(0).focus()
    group.keyboard.press("Space")
    boxes.nth(2).check()
    expect(retry).to_have_text("Retry selected 2")
    group.get_by_label("Select all on this page").check()
    expect(retry).to_have_text(f"Retry selected {boxes.count()}")
    group.get_by_label("Select all on this page").uncheck()
    boxes.nth(0).check()
    retry.press("Enter")
    group.keyboard.press("Enter")
    expect(group.get_by_role("heading", name="Retries")).to_be_visible()
    # The facts of the tests have a redacted argument.
    expect(group.get_by_text("1 of 1: 0 sent again, 1 can’t be sent.")).to_be_visible()
    expect(boxes.nth(0)).to_be_checked()


def test_what_users_decide_is_shown_without_a_reload(group):
    group.get_by_label("Assign to").fill("grace")
    group.get_by_role("button", name="Assign", exact=True).click()
    expect(group.locator("#live-facts").get_by_text("grace")).to_be_visible()
    group.get_by_label("Comment", exact=True).fill("Since the deploy\nof 1.8 <b>bold</b>")
    group.get_by_role("button", name="Add comment").click()
    comment = group.locator(".tr-comments li", has_text="<b>bold</b>")
    expect(comment).to_be_visible()
    expect(group.get_by_label("Comment", exact=True)).to_have_value("")
    group.get_by_label("Ignore for").select_option("86400")
    group.get_by_role("button", name="Ignore", exact=True).click()
    expect(group.locator("#live-lead").get_by_text("ignored")).to_be_visible()
    comment.get_by_role("button", name="Remove").click()
    group.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(comment).to_have_count(0)


def test_no_table_has_a_scrollbar_where_everything_fits(page, monitor):
    base, app = monitor
    log_in(page, base, app)
    for path in ("/trace/failures", "/trace/failures/all", "/trace/leaks", "/trace/running"):
        page.goto(base + path)
        for region in page.locator(".tr-scroll").all():
            height, content, bar = region.evaluate(
                "e => [e.clientHeight, e.firstElementChild.offsetHeight, getComputedStyle(e).overflowY]"
            )
            assert (content <= height, bar) == (True, "hidden"), path
