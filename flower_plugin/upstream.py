"""
The one module that imports Flower.

Flower changes by more than a thousand lines between minor releases, so everything that the
monitor needs from it is named here; ``pyproject.toml`` pins the minor release.
"""

from __future__ import annotations

import inspect
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from celery import Celery
from celery.events import EventReceiver
from celery.utils.imports import symbol_by_name
from flower import command as flower_command
from flower import urls as flower_urls
from flower.api import BaseApiHandler
from flower.api.tasks import BaseTaskHandler, GetQueueLengths, ListTasks, TaskInfo, TaskResult
from flower.api.workers import ListWorkers
from flower.app import Flower
from flower.events import Events, EventsState
from flower.inspector import Inspector
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
from kombu import Connection
from kombu.exceptions import OperationalError
from tornado.ioloop import IOLoop
from tornado.options import define
from tornado.web import RequestHandler, StaticFileHandler

from celery_trace.clock import SystemClock
from celery_trace.redaction import Redactor, Scrubber
from flower_plugin.incoming.broker import BrokerLink
from flower_plugin.incoming.calls import Calls
from flower_plugin.incoming.events import EventCheck, is_name
from flower_plugin.incoming.redacted import redacted, redacted_mapping, redacted_settings, text_of
from flower_plugin.incoming.unrecorded import UnrecordedWorkers

__all__ = [
    "NO_DATABASE",
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
    "MonitorInspector",
    "RedactedResults",
    "RememberedTask",
    "StaticFileHandler",
    "apply_environment",
    "define_options",
    "fixed_script",
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

#: The wait after a message that can't be read, seconds: should each fail alike, the thread is no burden.
RUBBISH_S = 0.05

#: What Flower's option ``--db`` holds where nobody gave it.
NO_DATABASE = "flower"

#: How long the loop takes events in before it looks at its other work, seconds.
SLICE_S = 0.005
#: Events that wait at most; at two thousand a second, what comes within some ten seconds.
MOST_WAITING = 20_000

#: The longest wait between two tries to reach a broker that went away, seconds.
BROKER_RETRY_S = 4.0

_OPTIONS: tuple[tuple[str, object, type, bool, str], ...] = (
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


def flower_settings() -> dict[str, object]:
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


def login_handler(provider: object) -> type[RequestHandler]:
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


def print_banner(app: Celery, ssl: bool, port: int | None) -> None:
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


#: What our pages' policy does not let run or apply: (in Flower's template, what stands there instead).
REPLACED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "workers.html": (
        (
            r"<script[^>]*>\s*var autorefresh = \{\{ autorefresh \}\};\s*</script>",
            '<input type="hidden" id="trace-autorefresh" value="{{ autorefresh }}">',
        ),
    ),
    "worker.html": ((r'<th style="width: 125px;"></th>', '<th class="tr-on-flower-action"></th>'),),
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
    return _replaced(name, text, REPLACED.get(name, ()))


def _replaced(name: str, text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for pattern, ours in pairs:
        text, number = re.subn(pattern, lambda match, ours=ours: match.expand(ours), text)  # type: ignore[misc]
        if not number:
            logger.warning("Flower's %s no longer has %r, which should become %r.", name, pattern, ours)
    return text


#: Where Flower's script makes markup or an address of a value as it came: (what stands there, what it must be).
#: DataTables writes what a column's ``render`` returns to ``innerHTML``, and what it returns for a search as well.
SCRIPT_FIXES: tuple[tuple[str, str], ...] = (
    # A list or an object passed as it was, and its items are markup once it is text.
    (
        r"return typeof d === 'string' \?\s*d\.replace(.+) :\s*d;",
        r"return d === null || d === undefined ? '' : String(d).replace\1;",
    ),
    (r"var count = data \|\| 0;", "var count = Number(data) || 0;"),
    (
        r"return type === 'display' \? workerNameLink\(data\) : data;",
        "return type === 'display' ? workerNameLink(data) : htmlEscapeEntities(data);",
    ),
    (r"return data\.join\(' '\);", "return htmlEscapeEntities(data.join(' '));"),
    # An id or a name with a slash in it is another address: a button for one task would do something else.
    (
        r"(url_prefix\(\) \+ '/api/[a-z/-]+/' \+) (workername|taskname|taskid),",
        r"\1 encodeURIComponent(\2),",
    ),
    (r"show_alert\(\$\(data\.responseText\)\.text\(\), ", "show_alert(data.responseText, "),
    # The template said it in an inline script.
    (r"if \(autorefresh !== 0\)", "if ($('#trace-autorefresh').val() !== '0')"),
)


@cache
def fixed_script(path: str) -> bytes | None:
    """What to serve in the place of one of Flower's static files; None where it is served as it is."""
    if Path(path) != Path(flower_urls.settings["static_path"]) / "js" / "flower.js":
        return None
    return _replaced("flower.js", Path(path).read_text(encoding="utf-8"), SCRIPT_FIXES).encode()


# --- events ------------------------------------------------------------------------------------------


class CheckedReceiver(EventReceiver):  # type: ignore[misc]
    """
    Takes in what comes on the broker, whoever published it.

    Celery's own reads the clock and the time of an event as they came, and one that is ill-formed ends the connection.
    """

    #: kombu would try without end to connect again, and nobody would be told that the broker is gone.
    connect_max_retries = 1

    def __init__(
        self, connection: Connection, *, check: EventCheck, take: Callable[[dict[str, object]], None], app: Celery
    ) -> None:
        super().__init__(connection, handlers={"*": take}, app=app)
        self._check = check

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:  # noqa: ARG002
        return [consumer(queues=[self.queue], callbacks=[self.receive], no_ack=True, accept=self.accept)]

    def receive(self, body: object, message: object = None) -> None:  # noqa: ARG002
        """One message: an event, or a list of them."""
        for event in body if isinstance(body, list) else [body]:
            checked = self._check.checked(event)
            if checked is not None:
                self.process(*self.event_from_message(checked))

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """What can't be read. It was delivered without a need to acknowledge."""
        self._check.refuse(f"it can't be decoded ({type(exc).__name__}, {message.content_type!s:.60})")


class MonitorState(EventsState):  # type: ignore[misc]
    """Flower's memory of tasks and workers, where names of workers that nobody has seen for long take no room."""

    def event(self, event: dict[str, object]) -> None:
        super().event(event)
        # Celery forgets the worker that was silent for longest; its counters and series would stay for ever.
        if len(self.counter) > 2 * self.max_workers_in_memory:
            gone = {name for name in self.counter if name not in self.workers}
            self.metrics.remove_workers(gone)
            for name in gone:
                del self.counter[name]
                self.tasks_by_worker.pop(name, None)

    def _index_task(self, task: Any, evicted: Any) -> None:
        try:
            super()._index_task(task, evicted)
        except Exception:
            # Flower reads the keyword arguments as Python, which may raise anything: {[]: 1}, "-" * 9000, a number too
            # long to be printed. The task is found by everything else, then.
            bare = {name: getattr(task, name) for name in ("uuid", "name", "state", "worker", "args", "result")}
            self.search_engine.upsert(SimpleNamespace(**bare, kwargs=None))


class MonitorEvents(Events):  # type: ignore[misc]
    """
    Flower's event thread, which comes back soon after the broker does.

    Flower doubles its wait without a bound, so after an outage of an hour it looks again an hour
    later; this one waits :data:`BROKER_RETRY_S` at most and tells the pages how the broker is.

    Flower also puts one callback for each event on the loop, and a request waits behind all of them: where events
    come faster than they are taken in, pages took a minute. Here they wait in a queue of their own, and the loop
    takes :data:`SLICE_S` of them at a time between its other work. What does not fit in is counted in ``skipped``.

    Each event is checked and redacted by ``check`` before it waits. Nothing is written to a file: Flower's
    ``--persistent`` keeps its memory as a pickle.
    """

    def __init__(
        self,
        capp: Celery,
        io_loop: IOLoop,
        *,
        link: BrokerLink,
        check: EventCheck,
        max_tasks_in_memory: int,
        max_workers_in_memory: int = 5000,
        enable_events: bool = True,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(capp, io_loop, enable_events=enable_events, max_tasks_in_memory=max_tasks_in_memory)
        self.state = MonitorState(max_tasks_in_memory=max_tasks_in_memory, max_workers_in_memory=max_workers_in_memory)
        self.check = check
        self.skipped = 0
        self.not_understood = 0
        self.unrecorded = UnrecordedWorkers(SystemClock())
        self._waiting: deque[dict[str, object]] = deque()
        self._taking = False
        self._turn = threading.Lock()
        self._link = link
        self._sleep = sleep
        self._closing = threading.Event()

    @property
    def counts(self) -> dict[str, int]:
        """What became of events that Flower's pages miss, by a word that metrics use as a label."""
        return {
            "skipped": self.skipped,
            "refused": self.check.refused + self.not_understood,
            "field_left_out": self.check.fields_left_out,
        }

    def receiver(self, connection: Connection) -> CheckedReceiver:
        """What receives events over a connection."""
        return CheckedReceiver(connection, check=self.check, take=self.on_event, app=self.capp)

    def on_event(self, event: dict[str, object]) -> None:
        """A checked event has come, in the thread that receives them."""
        self.unrecorded.heard(event)
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
                # A checked event has what Flower needs, but one event must not hold up the others whatever it is.
                self.not_understood += 1
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
                    receiver = self.receiver(connection)
                    self._link.up()
                    wait_s = 0.5
                    self.io_loop.add_callback(self.io_loop.run_in_executor, None, self._wake_workers)
                    self._capture(receiver, connection)
            except Exception as error:
                # Any driver raises its own kind here, and this thread must outlive them all.
                self._link.down(error)
                self._sleep(wait_s)
                wait_s = min(wait_s * 2, BROKER_RETRY_S)

    def _capture(self, receiver: CheckedReceiver, connection: Connection) -> None:
        """
        Receive until the connection is gone.

        A message that is none ends kombu's loop as well, long before it is decoded: the envelope that transports such
        as Redis put around it has to be right too. The broker is there all the same, so go on over the next connection.
        """
        errors = (*connection.connection_errors, *connection.channel_errors, OperationalError)
        # For Redis kombu counts the KeyError among them that an odd envelope raises.
        gone = tuple(kind for kind in errors if not issubclass(kind, LookupError))
        while not self._closing.is_set():
            try:
                receiver.capture(limit=None, timeout=None, wakeup=False)
                return
            except gone:
                raise
            except Exception as error:
                self.check.refuse(f"its message can't be read ({type(error).__name__}: {error!s:.100})")
                self._sleep(RUBBISH_S)

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


# --- what workers and result backends answer -----------------------------------------------------------


class MonitorInspector(Inspector):  # type: ignore[misc]
    """Flower's inspection of workers, which keeps their answers redacted and in the shape that its pages expect."""

    def __init__(self, io_loop: IOLoop, capp: Celery, timeout_s: float, redactor: Redactor, calls: Calls) -> None:
        super().__init__(io_loop, capp, timeout_s)
        self._redactor = redactor
        self._calls = calls

    def _inspect(self, method: str, workername: str | None) -> None:
        """Ask one command, in a thread: thousands of tasks take a while to redact."""
        inspect = self.capp.control.inspect(timeout=self.timeout, destination=[workername] if workername else None)
        try:
            answers = inspect.active(safe=True) if method == "active" else getattr(inspect, method)()
        except Exception as error:
            if not self._is_connection_error(error):
                raise
            answers = None
        if answers is None:
            logger.warning("No worker answered to %s", method)
            return
        for name, answer in answers.items():
            if answer is not None:
                self.keep(name, method, answer)

    def keep(self, name: str, method: str, answer: object) -> None:
        """Put what a worker answered onto Flower's pages, in the loop's next round."""
        if not is_name(name):
            logger.warning("Something answered to %s that no worker is called: %.100r", method, name)
            return
        try:
            shown = _inspected(method, answer, self._redactor, self._calls)
        except _NoAnswer as error:
            logger.warning("What %s answered to %s can't be shown: %s", name, method, error)
            return
        self.io_loop.add_callback(self._on_update, name, method, shown)


class _NoAnswer(Exception):
    """A worker's answer that none of Celery's has given."""


def _inspected(method: str, response: object, redactor: Redactor, calls: Calls) -> object:
    """
    An answer to an inspect command, redacted.

    Raises:
        _NoAnswer: It has not the shape that Flower's page of a worker takes for granted.
    """
    if not isinstance(response, dict if method in {"stats", "conf"} else list):
        raise _NoAnswer(f"it is of type {type(response).__name__}")
    if isinstance(response, dict):
        return (
            redacted_settings(response, redactor) if method == "conf" else _stats(redacted_mapping(response, redactor))
        )
    # Each may be as large as a value can be.
    shown = [redacted(one, redactor, _secrets_of(one, calls)) for one in response]
    if method in {"registered", "revoked"}:
        return [one for one in shown if isinstance(one, str) and one]
    return [_TASKS[method](one) for one in shown if isinstance(one, dict)]


def _secrets_of(task: object, calls: Calls) -> Scrubber | None:
    """Those in the arguments of a task that a worker has."""
    request = task.get("request", task) if isinstance(task, dict) else None
    if not isinstance(request, dict) or not isinstance(request.get("name"), str):
        return None
    return calls.scrubber(request["name"], request.get("args"), request.get("kwargs"))


def _stats(stats: dict[str, object]) -> dict[str, object]:
    for name in ("total", "pool", "broker", "autoscaler"):
        if not isinstance(stats.get(name, {}), dict):
            del stats[name]
    consumer = stats.get("consumer")
    if consumer is not None and not (isinstance(consumer, dict) and isinstance(consumer.get("broker"), dict)):
        del stats["consumer"]
    stats.setdefault("broker", {})
    total = stats.get("total")
    totals = total.items() if isinstance(total, dict) else ()
    stats["total"] = {name: number for name, number in totals if isinstance(number, int)}
    if not isinstance(stats.get("uptime", 0), int | float):
        del stats["uptime"]
    usage = stats.get("rusage")
    if isinstance(usage, dict):
        for name in ("utime", "stime"):
            if not isinstance(usage.get(name, 0), int | float):
                del usage[name]
    return stats


def _request(task: dict[str, object]) -> dict[str, object]:
    wanted = {"name": "", "id": "", "acknowledged": None, "worker_pid": None, "args": "", "kwargs": ""}
    return {**wanted, **task, "id": str(task.get("id") or "?"), "name": str(task.get("name") or "")}


def _scheduled(task: dict[str, object]) -> dict[str, object]:
    request = task.get("request")
    return {**task, "request": _request(request if isinstance(request, dict) else {})}


def _queue(queue: dict[str, object]) -> dict[str, object]:
    wanted = ("exclusive", "exchange", "durable", "routing_key", "no_ack", "alias", "queue_arguments",
              "binding_arguments", "auto_delete")  # fmt: skip
    return {**dict.fromkeys(wanted), **queue, "name": str(queue.get("name") or "")}


_TASKS: Mapping[str, Callable[[dict[str, object]], dict[str, object]]] = {
    "active_queues": _queue,
    "scheduled": _scheduled,
    "active": _request,
    "reserved": _request,
}


class RedactedResults(BaseTaskHandler):  # type: ignore[misc]
    """Mixed in front of Flower's handlers that answer with what the result backend holds."""

    def safe_result(self, result: object) -> object:
        """As JSON, without secrets."""
        return redacted(result, self.application.context.redactor)

    def update_response_result(self, response: dict[str, object], result: object) -> None:
        """A traceback is there where the task failed."""
        super().update_response_result(response, result)
        if response.get("traceback") is not None:
            response["traceback"] = text_of(str(response["traceback"]), self.application.context.redactor)


class RememberedTask(NamedTuple):
    """A task of a workflow that Flower remembers. ``at_s`` is seconds since the epoch."""

    task_id: str
    name: str
    state: str
    parent_id: str
    at_s: float | None


def workflow(events: Events, root_id: str, most: int = 100) -> list[RememberedTask]:
    """The tasks below a root that Flower remembers, the root among them; none once Flower has forgotten the root."""
    tasks = events.state.tasks
    root = tasks.get(root_id)
    found: dict[str, RememberedTask] = {}
    waiting = [root] if root is not None else []
    while waiting and len(found) < most:
        task = waiting.pop()
        if task.uuid in found:
            continue
        at_s = task.started or task.received or task.timestamp
        parent_id = str(task.parent_id or "")
        found[task.uuid] = RememberedTask(str(task.uuid), str(task.name or ""), str(task.state or ""), parent_id, at_s)
        # Copied at once: the thread of the events adds to it.
        waiting.extend(tuple(task.children))
    return list(found.values())


def known_option(name: str) -> bool:
    """Whether Flower (or we) define an option of this name."""
    return hasattr(default_options, name)
