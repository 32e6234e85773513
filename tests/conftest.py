"""
What holds for every test: its tier comes from its folder, it has a limit of time, and it leaves nothing behind.

Fixtures that several tiers share stand in ``tests/support/fixtures_*.py`` by subject.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from celery_trace.guard import own_errors
from tests.support import leftovers

pytest_plugins = [
    "tests.support.fixtures_broker",
    "tests.support.fixtures_worker",
    "tests.support.fixtures_browser",
    "tests.support.fixtures_pool",
    "tests.support.fixtures_services",
]

HERE = Path(__file__).parent

# How long an example takes says how busy the machine is; the first text of all waits for a table of Unicode.
# What guards secrets and signatures says itself that it tries more examples than these.
hypothesis.settings.register_profile(
    "ours", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], max_examples=50
)
hypothesis.settings.load_profile("ours")

#: Tier (the folder's name) and the seconds after which one of its tests counts as hung. The order is that of a
#: run: what is fast and says most comes first; within a tier the order is random.
TIERS = {"unit": 60, "wiring": 120, "worker": 300, "services": 300, "browser": 420}

#: What begins first: the heap's tests, as each pass over a heap takes longer the more tests have filled it, and the
#: files that take longest, so that no process ends with one of them alone.
BEGINS_FIRST = re.compile(
    r"test_(heap_|corpus|store_|fault_|django_site|monitor_command|monitor_browser|running|warm_shutdown|cli_processes"
    r"|memory_|stuck_runs|leaks_corpus|demo|transport_broker|brokers|end_to_end)"
)

#: Tiers that start processes; after their tests the whole machine is searched for what they left.
STARTS_PROCESSES = {"worker", "services", "browser"}

# A developer's own settings have no say in the tests.
for name in list(os.environ):
    if name.startswith(("CELERY_", "DJANGO_", "FLOWER_")):
        del os.environ[name]
leftovers.mark_environment()
# A run that a shell started in the background ignores SIGINT, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# `make fallback` runs some tests as where no extension module can be built.
if os.environ.get("TESTS_WITHOUT_EXTENSION"):
    for module in (
        "heap._sampler",
        "heap._referrers",
        "process._open_runs",
        "process._thread_state",
        "runtime._messages",
    ):
        sys.modules[f"celery_trace.{module}"] = None  # type: ignore[assignment]


def _tier(path: Path) -> str:
    parts = path.relative_to(HERE).parts if path.is_relative_to(HERE) else ()
    return parts[0] if parts and parts[0] in TIERS else ""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = _tier(item.path)
        if not tier:
            raise pytest.UsageError(f"{item.nodeid} is in no tier; put it in one of tests/{{{','.join(TIERS)}}}/")
        item.add_marker(tier)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIERS[tier]))
    order = list(TIERS)

    def place(item: pytest.Item) -> tuple[bool, bool, bool, int]:
        tier = _tier(item.path)
        computes = tier not in STARTS_PROCESSES
        begins_first = bool(BEGINS_FIRST.match(item.path.name))
        # What waits can begin in any order: the long files of all its tiers come first.
        return not computes, computes and tier != "unit", not begins_first, order.index(tier)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def begins_from_nothing() -> None:
    """What a process counts and how it logs is not what an earlier test left: own errors, levels, disabled loggers."""
    own_errors.clear()
    logging.root.setLevel(logging.WARNING)  # Celery and Flower set up logging for a process of their own
    # A logging configuration (Django's, Celery's) may disable every logger that exists; ours speak again.
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] in {"celery_trace", "flower_plugin", "django_bridge"} and isinstance(
            logger, logging.Logger
        ):
            logger.disabled = False
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test ends with tracemalloc off, and without a receiver, a thread of ours or a process that it started."""
    before = leftovers.Census(thorough=_tier(request.node.path) in STARTS_PROCESSES)
    yield
    faults = before.left_behind()
    if faults:
        pytest.fail("The test left something behind: " + "; ".join(faults), pytrace=False)
