"""A real Chromium, Debian's, driven by Playwright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support import leftovers, requirements

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: Chromium's own errands would knock on the network at every start.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """
    The browser.

    For one module: while Playwright's synchronous driver runs, no other test may run an event loop in this thread.
    """
    from playwright.sync_api import sync_playwright

    path = requirements.program("chromium", package="chromium")
    with ExitStack() as stack:
        with leftovers.whose_processes_outlive_tests():
            playwright = stack.enter_context(sync_playwright())
            browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page in a fresh profile; a script that throws on it fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(30_000)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert not errors, f"scripts failed on the page: {errors}"
