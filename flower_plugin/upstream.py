"""
The only module that imports Flower.

Flower changes by more than a thousand lines between minor releases, so all that the monitor needs
from it is imported here; ``pyproject.toml`` pins the minor release.
"""

from __future__ import annotations

import inspect
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from celery import Celery
from celery.events import EventReceiver
from celery.events.state import Task
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
from kombu import Connection, Consumer, Message
from kombu.exceptions import OperationalError
from tornado.ioloop import IOLoop
from tornado.options import define
from tornado.web import RequestHandler, StaticFileHandler

from celery_trace.clock import SystemClock
from celery_trace.model.timelines import TaskEvents
from celery_trace.redaction import Redactor, Scrubber
from flower_plugin.incoming.argument_secrets import ArgumentSecrets
from flower_plugin.incoming.broker import BrokerLink
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

#: Flower's handlers that show arguments, results and exceptions of tasks: from events, the result backend, and running
#: workers.
SHOWS_VALUES = (TasksView, TasksDataTable, TaskView, WorkerView, ListTasks, TaskInfo, TaskResult, ListWorkers)
#: Handlers with a POST that only reads.
READS_BY_POST = (TasksDataTable,)

#: Pause after an unreadable message, seconds, so that a stream of them does not keep the thread busy.
INVALID_PAUSE_S = 0.05

#: The default of Flower's option ``--db``.
NO_DATABASE = "flower"

#: Time slice of the loop for events, seconds.
SLICE_S = 0.005
#: Maximum number of queued events; ten seconds at 2,000 per second.
MOST_WAITING = 20_000

#: Maximum pause between two attempts to reach the broker, seconds.
BROKER_RETRY_S = 4.0

_OPTIONS: tuple[tuple[str, object, type, bool, str], ...] = (
    (
        "trace_roles",
        [],
        str,
        True,
        "roles of users, as user:role,…; roles are look, locals, recreated, live (each includes the previous ones); "
        "*:role for all other users",
    ),
    ("trace_hosts", [], str, True, "additional Host names of the monitor, such as behind a proxy"),
    (
        "trace_trusted_proxies",
        [],
        str,
        True,
        "addresses or networks of trusted proxies in front of the monitor, for X-Forwarded-For and X-Real-Ip",
    ),
    ("trace_read_only", False, bool, False, "allow no changes, also not through Flower, and no live shells"),
    ("trace_session_hours", 12.0, float, False, "hours until a login expires"),
)


def define_options() -> None:
    """Add our options to Tornado's global table. Idempotent."""
    for name, default, kind, multiple, meaning in _OPTIONS:
        if not hasattr(options, name):
            define(name, default=default, type=kind, multiple=multiple, help=meaning)


def apply_environment() -> None:
    """Read ``FLOWER_*`` from the environment, as Flower does."""
    flower_command.apply_env_options()


def parse_arguments(program: str, arguments: Sequence[str]) -> None:
    """
    Read Flower's and our options from the command line and from ``flowerconfig.py``.

    Raises:
        SystemExit: An option is invalid; Tornado has printed the error.
    """
    flower_command.apply_options(program, list(arguments))


def flower_settings() -> dict[str, object]:
    """
    Tornado's settings as Flower derives them from its options.

    ``flower.urls.settings`` is global and ``extract_settings`` adds the prefix in place. The original
    is restored, as a second monitor in one process would get the prefix twice.
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
    The handler of ``--auth_provider``, by its dotted name; Flower's "not found" handler without one.

    Raises:
        ValueError: It can't be used; the text has the reason.
    """
    try:
        handler = symbol_by_name(provider or NotFoundErrorHandler)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"it can't be imported ({error})") from error
    if not (isinstance(handler, type) and issubclass(handler, RequestHandler)):
        raise ValueError("it is not a Tornado handler")
    return handler


def setup_logging() -> None:
    """Tornado's access log off unless ``--debug``."""
    flower_command.setup_logging()


def print_banner(app: Celery, ssl: bool, port: int | None) -> None:
    """Log Flower's lines about address, broker and registered tasks."""
    flower_command.print_banner(app, ssl, port)


def flower_template_folder() -> str:
    """The folder of Flower's templates."""
    return str(flower_urls.settings["template_path"])


def reserved_template_names() -> frozenset[str]:
    """Names that Flower adds to each template; our names must not shadow them."""
    return frozenset(name for name, _ in inspect.getmembers(template_functions, inspect.isfunction))


# --- our parts of Flower's pages ----------------------------------------------------------------

#: By template of Flower: (pattern, text to insert before its match).
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


#: The title of a page: one product has one name.
_TITLE = (r"Flower(?=\{% end %\})", "celery-trace")

#: What is different in Flower's templates, its name and links, and inline scripts and styles that our content security
#: policy blocks: (pattern in Flower's template, replacement).
REPLACED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "navbar.html": (
        (
            r"<a class=\"app-brand navbar-brand\" href=\"\{\{ reverse_url\('main'\) \}\}\">",
            '<a class="app-brand navbar-brand" href="{{ handler.application.context.base_url }}/trace">',
        ),
        (r"<span>Flower</span>", "<span>celery-trace</span>"),
        # To Flower's own documentation and source.
        (r'<li class="nav-item">\s*<a class="app-icon-link nav-link" href="https:(?s:.)*?</li>', ""),
    ),
    "base.html": (_TITLE,),
    "broker.html": (_TITLE,),
    "logout.html": (_TITLE,),
    "task.html": (_TITLE,),
    "tasks.html": (_TITLE,),
    "workers.html": (
        _TITLE,
        (
            r"<script[^>]*>\s*var autorefresh = \{\{ autorefresh \}\};\s*</script>",
            '<input type="hidden" id="trace-autorefresh" value="{{ autorefresh }}">',
        ),
    ),
    "worker.html": (_TITLE, (r'<th style="width: 125px;"></th>', '<th class="tr-on-flower-action"></th>')),
}


def splice(name: str, text: str) -> str:
    """
    One of Flower's templates with our parts inserted.

    If an anchor is missing, a warning is logged and the part is left out: a page without our part
    is better than no page.
    """
    for pattern, ours in SPLICES.get(name, ()):
        found = re.search(pattern, text)
        if found is None:
            logger.warning("Flower's %s no longer has %r; our part is left out.", name, pattern)
            continue
        text = text[: found.start()] + ours + text[found.start() :]
    return _replaced(name, text, REPLACED.get(name, ()))


def _replaced(name: str, text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for pattern, ours in pairs:
        text, number = re.subn(pattern, lambda match, ours=ours: match.expand(ours), text)  # type: ignore[misc]
        if not number:
            logger.warning("Flower's %s no longer has %r, which should be replaced with %r.", name, pattern, ours)
    return text


#: Places where Flower's script makes markup or URLs from unescaped values: (pattern, replacement).
#: DataTables writes the result of a column's ``render`` to ``innerHTML``, also the result for a search.
SCRIPT_FIXES: tuple[tuple[str, str], ...] = (
    # A list or an object was passed through, and its items became markup when converted to text.
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
    # An id or a name with a slash is a different URL: a button would act on something else.
    (
        r"(url_prefix\(\) \+ '/api/[a-z/-]+/' \+) (workername|taskname|taskid),",
        r"\1 encodeURIComponent(\2),",
    ),
    (r"show_alert\(\$\(data\.responseText\)\.text\(\), ", "show_alert(data.responseText, "),
    # Flower's template sets it in an inline script.
    (r"if \(autorefresh !== 0\)", "if ($('#trace-autorefresh').val() !== '0')"),
)


@cache
def fixed_script(path: str) -> bytes | None:
    """The replacement for one of Flower's static files; None if it is served unchanged."""
    if Path(path) != Path(flower_urls.settings["static_path"]) / "js" / "flower.js":
        return None
    return _replaced("flower.js", Path(path).read_text(encoding="utf-8"), SCRIPT_FIXES).encode()


# --- events ------------------------------------------------------------------------------------------


class CheckedReceiver(EventReceiver):  # type: ignore[misc]
    """
    Receives events from the broker, whoever published them.

    Celery's receiver trusts the clock and the time of an event, and a malformed one ends the connection.
    """

    #: kombu would retry forever, and the loss of the broker would go unnoticed.
    connect_max_retries = 1

    def __init__(
        self, connection: Connection, *, check: EventCheck, take: Callable[[dict[str, object]], None], app: Celery
    ) -> None:
        super().__init__(connection, handlers={"*": take}, app=app)
        self._check = check

    def get_consumers(self, consumer: type[Consumer], channel: object) -> list[Consumer]:  # noqa: ARG002
        return [consumer(queues=[self.queue], callbacks=[self.receive], no_ack=True, accept=self.accept)]

    def receive(self, body: object, message: object = None) -> None:  # noqa: ARG002
        """One message: an event or a list of events."""
        for event in body if isinstance(body, list) else [body]:
            checked = self._check.checked(event)
            if checked is not None:
                self.process(*self.event_from_message(checked))

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Count an undecodable message. It needs no acknowledgement."""
        self._check.refuse(f"it can't be decoded ({type(exc).__name__}, {message.content_type!s:.60})")


class MonitorState(EventsState):  # type: ignore[misc]
    """Flower's memory of tasks and workers, without entries of workers that have long been gone."""

    def event(self, event: dict[str, object]) -> None:
        super().event(event)
        # Celery evicts the worker that has been silent longest, but its counters and series would stay forever.
        if len(self.counter) > 2 * self.max_workers_in_memory:
            gone = {name for name in self.counter if name not in self.workers}
            self.metrics.remove_workers(gone)
            for name in gone:
                del self.counter[name]
                self.tasks_by_worker.pop(name, None)

    def _index_task(self, task: object, evicted: object) -> None:
        try:
            super()._index_task(task, evicted)
        except Exception:
            # Flower evaluates the keyword arguments as Python literals, which may raise anything: {[]: 1}, "-" * 9000,
            # a number too long to print. The task is indexed without them.
            bare = {name: getattr(task, name) for name in ("uuid", "name", "state", "worker", "args", "result")}
            self.search_engine.upsert(SimpleNamespace(**bare, kwargs=None))


class MonitorEvents(Events):  # type: ignore[misc]
    """
    Flower's event thread, with a bounded backoff and a bounded queue.

    Flower doubles its backoff without a limit, so after an outage of an hour it retries an hour later. This one waits
    at most :data:`BROKER_RETRY_S` and reports the state of the broker to the pages.

    Flower also adds one loop callback per event, and requests wait behind all of them: at high event rates pages took a
    minute. Here events wait in a queue, and the loop processes them in slices of :data:`SLICE_S`. Events that exceed
    the queue are dropped and counted in ``skipped``.

    ``check`` validates and redacts each event before it is queued. Nothing is written to a file: Flower's
    ``--persistent`` would pickle its memory.
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
        self.failed = 0
        self.unrecorded = UnrecordedWorkers(SystemClock())
        self._waiting: deque[dict[str, object]] = deque()
        self._draining = False
        self._turn = threading.Lock()
        self._link = link
        self._sleep = sleep
        self._closing = threading.Event()

    @property
    def counts(self) -> dict[str, int]:
        """Events that are missing on Flower's pages, by the label that metrics use."""
        return {
            "skipped": self.skipped,
            "refused": self.check.refused + self.failed,
            "field_left_out": self.check.fields_left_out,
        }

    def receiver(self, connection: Connection) -> CheckedReceiver:
        """A receiver of events over a connection."""
        return CheckedReceiver(connection, check=self.check, take=self.on_event, app=self.capp)

    def on_event(self, event: dict[str, object]) -> None:
        """Queue a checked event, in the receiving thread."""
        self.unrecorded.receive(event)
        with self._turn:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self.skipped += 1
                if self.skipped == 1:
                    logger.warning(
                        "Events arrive faster than this monitor can process them. The oldest are skipped, so Flower's "
                        "own pages miss some tasks. Leaks and failures do not depend on events."
                    )
            self._waiting.append(event)
            if self._draining:
                return
            self._draining = True
        self.io_loop.add_callback(self._drain)

    def _drain(self) -> None:
        """Process one slice of the queued events on the loop; the rest in its next rounds, after other callbacks."""
        end_s = time.perf_counter() + SLICE_S
        while True:
            with self._turn:
                if not self._waiting:
                    self._draining = False
                    return
                event = self._waiting.popleft()
            try:
                self.state.event(event)
            except Exception:
                # A checked event has all that Flower needs, but no event may block the others.
                self.failed += 1
                logger.debug("An event could not be processed: %.200r", event, exc_info=True)
            if time.perf_counter() >= end_s:
                break
        self.io_loop.add_callback(self._drain)

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
                # Each driver raises its own exceptions, and this thread must survive them all.
                self._link.down(error)
                self._sleep(wait_s)
                wait_s = min(wait_s * 2, BROKER_RETRY_S)

    def _capture(self, receiver: CheckedReceiver, connection: Connection) -> None:
        """
        Receive until the connection is lost.

        A malformed message also ends kombu's loop before it is decoded, as transports such as Redis put an envelope
        around it. The broker is still available then, so receiving continues on the next connection.
        """
        errors = (*connection.connection_errors, *connection.channel_errors, OperationalError)
        # For Redis kombu includes the KeyError of a malformed envelope.
        gone = tuple(kind for kind in errors if not issubclass(kind, LookupError))
        while not self._closing.is_set():
            try:
                receiver.capture(limit=None, timeout=None, wakeup=False)
                return
            except gone:
                raise
            except Exception as error:
                self.check.refuse(f"unreadable message ({type(error).__name__}: {error!s:.100})")
                self._sleep(INVALID_PAUSE_S)

    def _wake_workers(self) -> None:
        """
        Ask all workers for a heartbeat, so that pages show them at once.

        This runs in its own thread, not in the receiver's: kombu would retry the request forever if the broker is lost
        at that moment, and the loss would go unnoticed.
        """
        try:
            self.capp.control.broadcast("heartbeat")
        except Exception as error:
            logger.debug("Could not ask workers for a heartbeat: %s", error)


# --- replies of workers and result backends -----------------------------------------------------------


class MonitorInspector(Inspector):  # type: ignore[misc]
    """Flower's inspector, with redacted and validated replies."""

    def __init__(
        self, io_loop: IOLoop, capp: Celery, timeout_s: float, redactor: Redactor, calls: ArgumentSecrets
    ) -> None:
        super().__init__(io_loop, capp, timeout_s)
        self._redactor = redactor
        self._calls = calls

    def _inspect(self, method: str, workername: str | None) -> None:
        """Send one inspect command, in a thread: redacting thousands of tasks takes a while."""
        inspect = self.capp.control.inspect(timeout=self.timeout, destination=[workername] if workername else None)
        try:
            answers = inspect.active(safe=True) if method == "active" else getattr(inspect, method)()
        except Exception as error:
            if not self._is_connection_error(error):
                raise
            answers = None
        if answers is None:
            logger.warning("No worker replied to %s", method)
            return
        for name, answer in answers.items():
            if answer is not None:
                self.keep(name, method, answer)

    def keep(self, name: str, method: str, answer: object) -> None:
        """Hand a worker's reply to Flower's pages, in the loop's next round."""
        if not is_name(name):
            logger.warning("Reply to %s with an invalid worker name: %.100r", method, name)
            return
        try:
            shown = _inspected(method, answer, self._redactor, self._calls)
        except _InvalidReply as error:
            logger.warning("The reply of %s to %s is invalid: %s", name, method, error)
            return
        self.io_loop.add_callback(self._on_update, name, method, shown)


class _InvalidReply(Exception):
    """A reply that does not have the form of Celery's."""


def _inspected(method: str, response: object, redactor: Redactor, calls: ArgumentSecrets) -> object:
    """
    A reply to an inspect command, redacted.

    Raises:
        _InvalidReply: It does not have the form that Flower's worker page expects.
    """
    if not isinstance(response, dict if method in {"stats", "conf"} else list):
        raise _InvalidReply(f"it is of type {type(response).__name__}")
    if isinstance(response, dict):
        return (
            redacted_settings(response, redactor) if method == "conf" else _stats(redacted_mapping(response, redactor))
        )
    # Each item may be as large as a value can be.
    shown = [redacted(one, redactor, _secrets_of(one, calls)) for one in response]
    if method in {"registered", "revoked"}:
        return [one for one in shown if isinstance(one, str) and one]
    return [_TASKS[method](one) for one in shown if isinstance(one, dict)]


def _secrets_of(task: object, calls: ArgumentSecrets) -> Scrubber | None:
    """A scrubber of the secrets in the arguments of a task."""
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
    """Mixed into Flower's handlers that return results of the result backend."""

    def safe_result(self, result: object) -> object:
        """A result as JSON, without secrets."""
        return redacted(result, self.application.context.redactor)

    def update_response_result(self, response: dict[str, object], result: object) -> None:
        """Redact the traceback of a failed task too."""
        super().update_response_result(response, result)
        if response.get("traceback") is not None:
            response["traceback"] = text_of(str(response["traceback"]), self.application.context.redactor)


def workflow(events: Events, root_id: str, task_ids: Iterable[str] = ()) -> list[TaskEvents]:
    """
    The tasks of a workflow in Flower's memory.

    Args:
        root_id: The id of its root, or of another of its tasks.
        task_ids: Further tasks; those with the same root as one of them are included too. Celery does not know that a
            web request has sent several workflows.
    """
    remembered = events.state.tasks.data
    ids = {id for id in (root_id, *task_ids) if id}
    roots = ids | {str(task.root_id) for id in ids if (task := remembered.get(id)) is not None and task.root_id}
    # The loop adds to it meanwhile. The copy is one call in C, so the interpreter does not switch threads.
    copied = list(remembered.values())
    return [_task_events(task) for task in copied if task.root_id in roots or task.uuid in ids]


def _task_events(task: Task) -> TaskEvents:
    ended = {"SUCCESS": task.succeeded, "FAILURE": task.failed, "RETRY": task.retried, "REVOKED": task.revoked,
             "REJECTED": task.rejected}  # fmt: skip
    state = str(task.state or "")
    return TaskEvents(
        task_id=str(task.uuid),
        name=str(task.name or ""),
        state=state,
        root_id=str(task.root_id or ""),
        parent_id=str(task.parent_id or ""),
        worker=str(task.worker.hostname) if task.worker is not None else "",
        queue=str(getattr(task, "queue", None) or task.routing_key or ""),
        retries=task.retries or 0,
        sent_s=task.sent,
        received_s=task.received,
        started_s=task.started,
        ended_s=ended.get(state),
        at_s=task.started or task.received or task.timestamp,
    )


def known_option(name: str) -> bool:
    """Whether Flower or the monitor defines an option of this name."""
    return hasattr(default_options, name)
