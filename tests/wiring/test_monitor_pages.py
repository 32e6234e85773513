"""What every page has: a module that declares it, a template, an address, and one lit entry of the navigation."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from flower_plugin import pages
from flower_plugin.auth.roles import User, UserRole
from flower_plugin.pages.page import MonitorPage, NavPlace
from flower_plugin.pages.registry import PAGES, navigation
from flower_plugin.rendering.templating import FOLDER

ENTRIES = [page for page in PAGES if page.place]


def test_every_page_that_a_module_declares_is_registered():
    declared = [
        value
        for found in pkgutil.iter_modules(pages.__path__)
        if found.name != "registry"
        for value in vars(importlib.import_module(f"flower_plugin.pages.{found.name}")).values()
        if isinstance(value, MonitorPage)
    ]
    assert declared
    assert {page.name for page in declared} == {page.name for page in PAGES}


def test_names_and_addresses_are_unique():
    assert len({page.name for page in PAGES}) == len(PAGES)
    assert len({page.path for page in PAGES}) == len(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_a_template_a_role_and_one_lit_entry(page):
    assert (FOLDER / page.template).is_file()
    assert UserRole.LOOK <= page.role <= UserRole.LIVE
    (entry,) = [one for one in ENTRIES if one.tab == page.tab]
    assert entry.role <= page.role, "whoever may open the page sees the entry that is lit"


@pytest.mark.parametrize("page", ENTRIES, ids=lambda page: page.name)
def test_an_entry_leads_to_an_address_without_groups(page):
    assert "(" not in page.address
    assert page.title


def test_the_navigation_is_what_it_was():
    assert [page.title for page in navigation(NavPlace.BAR, None)] == [
        "Overview",
        "Running",
        "Leaks",
        "Failures",
        "Memory",
        "Queues",
        "Alerts",
    ]
    assert [page.title for page in navigation(NavPlace.MORE, None)] == ["Runs", "Profiles", "Shells", "Statistics"]


def test_nobody_is_offered_a_page_that_they_may_not_open():
    looks = User("lou", UserRole.LOOK, "session")
    assert [page.title for page in navigation(NavPlace.MORE, looks)] == ["Runs", "Statistics"]
    assert len(navigation(NavPlace.BAR, looks)) == 7
