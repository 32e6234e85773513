"""The collaborators of the monitor's handlers and jobs, made once by the application."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from celery import Celery
from msgspec import Struct
from tornado.ioloop import IOLoop

from celery_trace.clock import Clock
from celery_trace.model import RunningView, RunStack
from celery_trace.model.timelines import TaskEvents
from celery_trace.queries import Queries
from celery_trace.redaction import Redactor
from celery_trace.running.client import StackReader
from celery_trace.settings import Settings
from celery_trace.stores import Store
from celery_trace.text.code_owner import project_roots
from flower_plugin import upstream
from flower_plugin.auth.gate import Gatekeeper
from flower_plugin.incoming.broker import BrokerLink, BrokerState
from flower_plugin.incoming.unrecorded import Unrecorded
from flower_plugin.rendering.markup import Paths
from flower_plugin.retries import Retries, RetryOrder
from flower_plugin.store_access import StoreAccess

if TYPE_CHECKING:
    from celery_trace.alerting.engine import AlertEngine

STATIC = Path(__file__).parent / "static"

#: Threads for our blocking calls. A slow store blocks these and no page of Flower's.
THREADS = 12


class MonitorStatus(Struct, frozen=True, kw_only=True):
    """
    The monitor's own state, for pages.

    Attributes:
        child_limit_bytes: Celery's ``worker_max_memory_per_child``; 0 if not set.
        events: Counts of Celery events that are missing on Flower's pages, by reason.
        unrecorded: Workers that can't write their records.
        workflow: The tasks of a workflow in Flower's memory, by the id of its root and the ids of further tasks.
        stack: Reads the stack of a run in progress for a user, with locals. Blocks; raises ``StackUnavailable``.
        retries: The latest order to retry failures of a group, by fingerprint.
    """

    settings: Settings
    broker: BrokerState
    app_name: str = "celery"
    child_limit_bytes: int = 0
    events: Mapping[str, int] = {}
    unrecorded: Sequence[Unrecorded] = ()
    workflow: Callable[..., Sequence[TaskEvents]] = lambda *_: ()
    stack: Callable[[RunningView, str], RunStack | None] = lambda _run, _user: None
    retries: Callable[[str], RetryOrder | None] = lambda _: None


class MonitorContext:
    """
    The collaborators of one monitor.

    Args:
        capp: The Celery app.
        settings: celery-trace's settings.
        access: The store.
        gatekeeper: Authentication and roles.
        link: The state of the broker.
        events: Flower's events.
        loop: Tornado's loop.
        url_prefix: Flower's option ``--url_prefix``.

    Attributes:
        redactor: Redacts values on Flower's pages, by the same names as in traced processes.
        base_url: The prefix of all URLs: ``""`` or ``/prefix``.
        public_address: The monitor's public base URL; set when it listens. Alerts link to it.
    """

    def __init__(
        self,
        *,
        capp: Celery,
        settings: Settings,
        access: StoreAccess,
        gatekeeper: Gatekeeper,
        clock: Clock,
        link: BrokerLink,
        events: upstream.MonitorEvents,
        loop: IOLoop,
        url_prefix: str = "",
    ) -> None:
        self.capp = capp
        self.settings = settings
        self.access = access
        self.gatekeeper = gatekeeper
        self.clock = clock
        self.link = link
        self.events = events
        self.loop = loop
        self.url_prefix = url_prefix
        self.base_url = "/" + url_prefix.strip("/") if url_prefix else ""
        self.redactor = Redactor(settings.redact)
        self.paths = Paths(project_roots(), self.redactor, settings.in_app)
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="trace-monitor")
        self.retries = Retries(capp, access, gatekeeper.audit, clock, self.threads.submit)
        self.public_address = ""

    @property
    def store(self) -> Store:
        """
        The open store.

        Raises:
            StoreUnavailable: The store can't be opened.
        """
        return self.access.store

    @property
    def queries(self) -> Queries:
        """
        The queries of the store.

        Raises:
            StoreUnavailable: The store can't be opened.
        """
        return self.access.queries

    @cached_property
    def engine(self) -> AlertEngine:
        """
        The alert engine.

        Raises:
            StoreUnavailable: The store can't be opened.
        """
        # Apprise takes 36 MB, so a monitor without alerts must not import it.
        from celery_trace.alerting.engine import AlertEngine

        return AlertEngine(self.store, self.queries, self.settings, self.clock, base_url=self.public_address)

    @cached_property
    def stacks(self) -> StackReader:
        """Reads stacks of runs in progress."""
        return StackReader(self.settings, self.capp.connection_for_write, "monitor", self.clock)

    def status(self) -> MonitorStatus:
        """The current state."""
        return MonitorStatus(
            settings=self.settings,
            broker=self.link.state,
            app_name=str(self.capp.main or "celery"),
            # Celery's setting is in KiB.
            child_limit_bytes=(self.capp.conf.worker_max_memory_per_child or 0) * 1024,
            events=self.events.counts,
            unrecorded=self.events.unrecorded.now(),
            workflow=partial(upstream.workflow, self.events),
            stack=lambda run, user: self.stacks.read(run, user=user),
            retries=self.retries.of,
        )

    def asset_url(self, name: str) -> str:
        """The URL of one of our static files; it changes when any of them changes."""
        return f"{self.base_url}/trace/static/{static_version()}/{name}"


@cache
def static_version() -> str:
    """A hash of all our static files; part of their URLs."""
    found = hashlib.blake2b(digest_size=6)
    for path in sorted(path for path in STATIC.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found.update(f"{path.relative_to(STATIC)}\0{len(content)}\0".encode() + content)
    return found.hexdigest()
