"""
The one module that imports Flower.

Flower changes by more than a thousand lines between minor releases, so everything that the
monitor needs from it is named here; ``pyproject.toml`` pins the minor release.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery.events import EventReceiver
from celery.utils.imports import symbol_by_name
from flower import command as flower_command
from flower import urls as flower_urls
from flower.api import BaseApiHandler
from flower.api.tasks import GetQueueLengths, ListTasks, TaskInfo, TaskResult
from flower.api.workers import ListWorkers
from flower.app import Flower
from flower.events import Events
from flower.options import default_options, options
from flower.utils import template as template_functions
from flower.utils.authentication import authenticate as oauth_user_allowed
from flower.views import BaseHandler as FlowerHandler
from flower.views.auth import LoginHandler as FlowerLoginHandler
from flower.views.auth import LogoutHandler as FlowerLogoutHandler
from flower.views.error import NotFoundErrorHandler
from flower.views.monitor import Metrics as FlowerMetrics
from flower.views.tasks import TasksDataTable, TasksView, TaskView
from flower.views.workers import WorkerView
from tornado.options import define
from tornado.web import RequestHandler, StaticFileHandler

from flower_plugin.broker import BrokerLink

__all__ = [
    "READS_BY_POST",
    "SHOWS_VALUES",
    "BaseApiHandler",
    "Flower",
    "FlowerHandler",
    "FlowerLoginHandler",
    "FlowerLogoutHandler",
    "FlowerMetrics",
    "GetQueueLengths",
    "MonitorEvents",
    "StaticFileHandler",
    "apply_environment",
    "define_options",
    "flower_settings",
    "flower_template_folder",
    "login_handler",
    "oauth_user_allowed",
    "options",
    "parse_arguments",
    "print_banner",
    "reserved_template_names",
    "setup_logging",
    "splice",
    "workflow",
]

logger = logging.getLogger("celery_trace.monitor")

#: Flower's own pages and answers that show arguments, results and exceptions of tasks: from the event stream, from
#: the result backend, and of what workers are running.
SHOWS_VALUES = (TasksView, TasksDataTable, TaskView, WorkerView, ListTasks, TaskInfo, TaskResult, ListWorkers)
#: Those whose POST only reads.
READS_BY_POST = (TasksDataTable,)

#: How long the loop takes events in before it looks at its other work, seconds.
SLICE_S = 0.005
#: Events that wait at most; at two thousand a second, what comes within some ten seconds.
MOST_WAITING = 20_000

#: The longest wait between two tries to reach a broker that went away, seconds.
BROKER_RETRY_S = 4.0

_OPTIONS: tuple[tuple[str, Any, type, bool, str], ...] = (
    (
        "trace_roles",
        [],
        str,
        True,
        "who may do what, as user:role,…; roles are look, locals, recreated, live (each includes the ones before); "
        "*:role names everybody else",
    ),
    ("trace_hosts", [], str, True, "further Host names under which the monitor is reached, such as behind a proxy"),
    (
        "trace_trusted_proxies",
        [],
        str,
        True,
        "addresses or networks of the proxies in front of the monitor, whose X-Forwarded-For or X-Real-Ip is believed",
    ),
    ("trace_read_only", False, bool, False, "nobody may change anything, through Flower either, or open a live shell"),
    ("trace_session_hours", 12.0, float, False, "hours after which a login ends"),
)


def define_options() -> None:
    """Add our options to Tornado's global table; twice is harmless."""
    for name, default, kind, multiple, meaning in _OPTIONS:
        if not hasattr(options, name):
            define(name, default=default, type=kind, multiple=multiple, help=meaning)


def apply_environment() -> None:
    """``FLOWER_*`` from the environment, as Flower reads it."""
    flower_command.apply_env_options()


def parse_arguments(program: str, arguments: Sequence[str]) -> None:
    """
    Flower's and our options from the command line and from ``flowerconfig.py``.

    Raises:
        SystemExit: An option is wrong; Tornado has printed why.
    """
    flower_command.apply_options(program, list(arguments))


def flower_settings() -> dict[str, Any]:
    """
    Tornado's settings as Flower derives them from its options.

    ``flower.urls.settings`` is global and ``extract_settings`` prefixes it in place, so that a
    second monitor in one process would be prefixed twice: the original is put back.
    """
    original = dict(flower_urls.settings)
    try:
        flower_command.extract_settings()
        return dict(flower_urls.settings)
    finally:
        flower_urls.settings.clear()
        flower_urls.settings.update(original)


def login_handler(provider: Any) -> type[Any]:
    """
    The handler of ``--auth_provider``, by its dotted name; Flower's "not found" where none is given.

    Raises:
        ValueError: There is no such handler; the text says why.
    """
    try:
        handler = symbol_by_name(provider or NotFoundErrorHandler)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"it can't be imported ({error})") from error
    if not (isinstance(handler, type) and issubclass(handler, RequestHandler)):
        raise ValueError("it is no handler of Tornado's")
    return handler


def setup_logging() -> None:
    """Tornado's access log off unless ``--debug``."""
    flower_command.setup_logging()


def print_banner(app: Any, ssl: bool, port: int | None) -> None:
    """Flower's own lines about address, broker and registered tasks, through its log."""
    flower_command.print_banner(app, ssl, port)


def flower_template_folder() -> str:
    """Where Flower's templates live."""
    return str(flower_urls.settings["template_path"])


def reserved_template_names() -> frozenset[str]:
    """Names that Flower adds to each template, which our pages must not shadow on Flower's own pages."""
    return frozenset(name for name, _ in inspect.getmembers(template_functions, inspect.isfunction))


# --- our entries on Flower's own pages ----------------------------------------------------------------

#: For each of Flower's templates: where something of ours goes, as (pattern, what goes in front of its match).
SPLICES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "navbar.html": (
        (r"</ul>", '{% include "trace/nav.html" %}'),
        (r"</ul>\s*</div>\s*</div>\s*</nav>", '{% include "trace/user.html" %}'),
    ),
    "base.html": (
        (r"</head>", '{% include "trace/on_flower_head.html" %}'),
        (r"</body>", '{% include "trace/on_flower_body.html" %}'),
    ),
    "task.html": ((r'<section class="detail-card task-details-card"', '{% include "trace/on_task.html" %}'),),
    "worker.html": ((r'<div class="worker-tabs">', '{% include "trace/on_worker.html" %}'),),
}


def splice(name: str, text: str) -> str:
    """
    One of Flower's templates with our parts in it.

    Where Flower moved the anchor, its page stays as it is and the log says so: a page without our
    entry is better than no page.
    """
    for pattern, ours in SPLICES.get(name, ()):
        found = re.search(pattern, text)
        if found is None:
            logger.warning("Flower's %s has no %r any more; our part is left out of it.", name, pattern)
            continue
        text = text[: found.start()] + ours + text[found.start() :]
    return text


# --- events ------------------------------------------------------------------------------------------


class MonitorEvents(Events):  # type: ignore[misc]
    """
    Flower's event thread, which comes back soon after the broker does.

    Flower doubles its wait without a bound, so after an outage of an hour it looks again an hour
    later; this one waits :data:`BROKER_RETRY_S` at most and tells the pages how the broker is.

    Flower also puts one callback for each event on the loop, and a request waits behind all of them: where events
    come faster than they are taken in, pages took a minute. Here they wait in a queue of their own, and the loop
    takes :data:`SLICE_S` of them at a time between its other work. What does not fit in is counted in ``skipped``.
    """

    def __init__(self, *args: Any, link: BrokerLink, sleep: Callable[[float], None] = time.sleep, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.skipped = 0
        self._waiting: deque[dict[str, Any]] = deque()
        self._taking = False
        self._turn = threading.Lock()
        self._link = link
        self._sleep = sleep
        self._closing = threading.Event()

    def on_event(self, event: dict[str, Any]) -> None:
        """An event has come, in the thread that receives them."""
        with self._turn:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self.skipped += 1
                if self.skipped == 1:
                    logger.warning(
                        "Events come faster than this monitor takes them in; the oldest are skipped, so Flower's own "
                        "pages miss some tasks. Leaks and failures do not depend on events."
                    )
            self._waiting.append(event)
            if self._taking:
                return
            self._taking = True
        self.io_loop.add_callback(self._take)

    def _take(self) -> None:
        """Some of the events that wait, on the loop; the rest in the loop's next round, after what else is due."""
        end_s = time.perf_counter() + SLICE_S
        while True:
            with self._turn:
                if not self._waiting:
                    self._taking = False
                    return
                event = self._waiting.popleft()
            try:
                self.state.event(event)
            except Exception:
                # Such as one without a hostname: anybody on the broker can send what Flower does not expect.
                logger.debug("An event was not understood: %.200r", event, exc_info=True)
            if time.perf_counter() >= end_s:
                break
        self.io_loop.add_callback(self._take)

    def start(self) -> None:
        self.name = "trace-events"
        super().start()

    def stop(self) -> None:
        self._closing.set()
        super().stop()

    def run(self) -> None:
        wait_s = 0.5
        while not self._closing.is_set():
            try:
                with self.capp.connection() as connection:
                    connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=BROKER_RETRY_S)
                    receiver = EventReceiver(connection, handlers={"*": self.on_event}, app=self.capp)
                    self._link.up()
                    wait_s = 0.5
                    self.io_loop.add_callback(self.io_loop.run_in_executor, None, self._wake_workers)
                    receiver.capture(limit=None, timeout=None, wakeup=False)
            except Exception as error:
                # Any driver raises its own kind here, and this thread must outlive them all.
                self._link.down(error)
                self._sleep(wait_s)
                wait_s = min(wait_s * 2, BROKER_RETRY_S)

    def _wake_workers(self) -> None:
        """
        Ask all workers for a sign of life, so that pages show them at once.

        In a thread of its own, not where events are received, as the receiver would by itself: the request is tried
        again without end where the broker goes away just then, and nobody would notice that it has.
        """
        try:
            self.capp.control.broadcast("heartbeat")
        except Exception as error:
            logger.debug("Workers could not be asked for a sign of life: %s", error)


def workflow(events: Any, root_id: str, most: int = 100) -> list[tuple[str, str, str, str, float | None]]:
    """
    The tasks below a root that Flower remembers, the root among them.

    Returns:
        ``(task id, name, state, parent id, seconds since the epoch)``; empty once Flower has forgotten the root.
    """
    tasks = events.state.tasks
    root = tasks.get(root_id)
    found: dict[str, tuple[str, str, str, str, float | None]] = {}
    waiting = [root] if root is not None else []
    while waiting and len(found) < most:
        task = waiting.pop()
        if task.uuid in found:
            continue
        at_s = task.started or task.received or task.timestamp
        parent_id = str(task.parent_id or "")
        found[task.uuid] = (str(task.uuid), str(task.name or ""), str(task.state or ""), parent_id, at_s)
        # Copied at once: the thread of the events adds to it.
        waiting.extend(tuple(task.children))
    return list(found.values())


def environment_flag(name: str) -> str:
    """An environment variable of Flower's, or empty."""
    return os.environ.get(name, "")


def known_option(name: str) -> bool:
    """Whether Flower (or we) define an option of this name."""
    return hasattr(default_options, name)
