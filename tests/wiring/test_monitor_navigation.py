"""The navigation on our pages and on Flower's comes from what pages declare."""

from __future__ import annotations

import re

import pytest

from flower_plugin.auth.roles import UserRole
from flower_plugin.pages.page import NavPlace
from flower_plugin.pages.registry import PAGES, navigation
from tests.support.monitor_app import PASSWORD, Client, make_monitor, serving


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("navigation")
    pairs, roles = (f"ada:{PASSWORD}", f"lou:{PASSWORD}"), ("lou:look", "*:live")
    with serving(lambda: make_monitor(folder, pairs=pairs, roles=roles, url_prefix="pre")) as found:
        yield found


def client(monitor, name):
    found = Client(monitor[0])
    found.log_in(name=name, prefix="/pre")
    return found


def entries(text):
    """(address, label, whether it is lit) of our entries, in order."""
    links = re.findall(r'<a class="(?:nav-link|dropdown-item)([^"]*)" href="/pre(/trace[^"]*)"[^>]*>([^<]+)</a>', text)
    return [(address, label, "active" in more) for more, address, label in links]


@pytest.mark.parametrize("address", ["/trace", "/workers", "/tasks", "/broker"])
def test_every_page_has_all_entries_flowers_too(monitor, address):
    declared = [*navigation(NavPlace.BAR, None), *navigation(NavPlace.MORE, None)]
    found = entries(client(monitor, "ada").get(f"/pre{address}").text)
    assert [(address, label) for address, label, _ in found] == [(page.address, page.title) for page in declared]


@pytest.mark.parametrize("address", ["/trace", "/workers", "/tasks", "/broker"])
def test_every_page_has_our_name_and_its_logo_opens_the_overview(monitor, address):
    text = client(monitor, "ada").get(f"/pre{address}").text
    (logo,) = re.findall(r'<a class="app-brand[^"]*" href="([^"]*)">', text)
    assert logo == "/pre/trace"
    assert re.search(r"<title>[^<]*celery-trace</title>", text)
    assert not re.search(r"<(?:span|title)>[^<]*Flower</(?:span|title)>", text)
    assert "github.com/mher/flower" not in text


@pytest.mark.parametrize("page", [page for page in PAGES if page.place], ids=lambda page: page.name)
def test_an_entry_opens_its_page_and_is_lit_there(monitor, page):
    answer = client(monitor, "ada").get(f"/pre{page.address}")
    assert answer.status == 200
    assert [address for address, _, lit in entries(answer.text) if lit] == [page.address]
    assert ('dropdown-toggle active"' in answer.text) == (page.place == NavPlace.MORE)


def test_what_somebody_may_not_open_is_not_offered(monitor):
    labels = [label for _, label, _ in entries(client(monitor, "lou").get("/pre/trace").text)]
    assert "Leaks" in labels
    assert "Shells" not in labels
    assert "Profiles" not in labels


def test_a_refusal_has_the_navigation_too(monitor):
    answer = client(monitor, "lou").get("/pre/trace/shells")
    assert answer.status == 403
    assert ("/trace/leaks", "Leaks", False) in entries(answer.text)


@pytest.mark.parametrize("page", [page for page in PAGES if page.role > UserRole.LOOK], ids=lambda page: page.name)
def test_a_page_is_closed_below_its_role(monitor, page):
    address = page.path.replace("([^/]+)", "x")
    assert "(" not in address
    assert client(monitor, "lou").get(f"/pre{address}").status == 403
    assert client(monitor, "ada").get(f"/pre{address}").status in (200, 404)
