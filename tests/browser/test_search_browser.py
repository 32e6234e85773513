"""Searching, the command palette, keys, saved views and a selection of groups, in a real browser by keyboard."""

import pytest
from playwright.sync_api import expect

from tests.browser.test_monitor_browser import filled, log_in, violations
from tests.support.monitor_app import make_monitor, serving

pytest_plugins = ["tests.support.fixtures_browser"]


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    settings = filled(folder)
    with serving(lambda: make_monitor(folder, settings=settings)) as found:
        yield found


@pytest.fixture
def failures(page, monitor):
    base, app = monitor
    log_in(page, base, app)
    page.goto(f"{base}/trace/failures/all")
    return page


def test_a_search_is_written_with_completions_and_lives_in_the_address(failures):
    failures.keyboard.press("/")
    field = failures.get_by_role("combobox", name="Search")
    expect(field).to_be_focused()
    failures.keyboard.type("exc")
    expect(failures.get_by_role("option", name="exception:")).to_be_visible()
    failures.keyboard.press("ArrowDown")
    failures.keyboard.press("Enter")
    expect(field).to_have_value("exception:")
    failures.keyboard.type("zero")
    expect(failures.get_by_role("option", name="exception:ZeroDivisionError")).to_be_visible()
    assert violations(failures) == []
    failures.keyboard.press("ArrowDown")
    failures.keyboard.press("Tab")
    expect(field).to_have_value("exception:ZeroDivisionError ")
    failures.keyboard.type("outcome:failed")
    failures.keyboard.press("Escape")
    failures.keyboard.press("Enter")
    failures.wait_for_url("**q=exception%3AZeroDivisionError+outcome%3Afailed")
    expect(field).to_have_value("exception:ZeroDivisionError outcome:failed")
    texts = failures.locator("tbody tr").all_inner_texts()
    assert texts
    assert all("ZeroDivisionError" in text and "failed" in text for text in texts)


def test_a_search_that_is_not_understood_says_why(failures, monitor):
    failures.goto(f"{monitor[0]}/trace/failures/all?q=tsak:x")
    expect(failures.get_by_role("alert")).to_contain_text("Did you mean task?")
    expect(failures.get_by_role("combobox", name="Search")).to_have_attribute("aria-invalid", "true")
    assert violations(failures) == []


def test_a_view_is_saved_used_and_removed(failures, monitor):
    failures.goto(f"{monitor[0]}/trace/failures/all?q=outcome:time_limit")
    failures.get_by_role("button", name="Save view").click()
    failures.get_by_label("Title").fill("Too <b>slow</b>")
    failures.keyboard.press("Enter")
    view = failures.get_by_role("link", name="Too <b>slow</b>")
    expect(view).to_be_visible()
    failures.goto(f"{monitor[0]}/trace/failures/all")
    view.click()
    expect(failures.get_by_role("combobox", name="Search")).to_have_value("outcome:time_limit")
    failures.get_by_role("button", name="Remove the view").click()
    failures.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    expect(view).to_have_count(0)


def test_the_palette_opens_pages_and_searches(failures, monitor):
    failures.keyboard.press("Control+k")
    field = failures.get_by_role("combobox", name="Command or page")
    expect(field).to_be_focused()
    assert violations(failures) == []
    failures.keyboard.type("queu")
    failures.keyboard.press("Enter")
    failures.wait_for_url("**/trace/queues")
    failures.keyboard.press("Control+k")
    failures.keyboard.type("exception:Card*")
    expect(failures.get_by_role("option", name="Search failures")).to_be_visible()
    failures.keyboard.press("Enter")
    failures.wait_for_url("**/trace/failures/all?q=exception%3ACard*")
    expect(failures.locator("tbody tr").first).to_contain_text("CardDeclined")
    failures.keyboard.press("Control+k")
    failures.keyboard.press("Escape")
    expect(failures.get_by_role("dialog")).to_have_count(0)


def test_keys_are_listed_and_do_nothing_while_one_types(failures):
    failures.keyboard.press("?")
    dialog = failures.get_by_role("dialog", name="Keys")
    expect(dialog).to_contain_text("Command palette")
    failures.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    field = failures.get_by_role("combobox", name="Search")
    field.fill("")
    field.press_sequentially("/?n")
    expect(field).to_have_value("/?n")
    expect(failures.get_by_role("dialog")).to_have_count(0)


def test_keys_go_through_the_failures_of_a_group(failures, monitor):
    failures.goto(f"{monitor[0]}/trace/failures/groups/group-0")
    failures.get_by_role("link", name="Latest failure").click()
    failures.wait_for_url("**/trace/failures/*")
    newest = failures.url
    failures.keyboard.press("p")
    expect(failures).not_to_have_url(newest)
    failures.keyboard.press("n")
    expect(failures).to_have_url(newest)


def test_selected_groups_are_resolved_together(failures, monitor):
    failures.goto(f"{monitor[0]}/trace/failures")
    resolve = failures.get_by_role("button", name="Resolve")
    expect(resolve).to_be_disabled()
    boxes = failures.get_by_label("Select this group")
    boxes.nth(0).check()
    boxes.nth(1).check()
    expect(resolve).to_have_text("Resolve 2")
    resolve.click()
    expect(failures.locator("tbody").get_by_text("resolved")).to_have_count(2)
