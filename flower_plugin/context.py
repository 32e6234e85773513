"""What the monitor's handlers and jobs need: made once by the application, handed to whoever asks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from celery import Celery
from msgspec import Struct
from tornado.ioloop import IOLoop

from celery_trace.clock import Clock
from celery_trace.queries import Queries
from celery_trace.redaction import Redactor
from celery_trace.settings import Settings
from celery_trace.stores import Store
from celery_trace.text.code_owner import project_roots
from flower_plugin import upstream
from flower_plugin.auth.gate import Gatekeeper
from flower_plugin.incoming.broker import BrokerLink, BrokerState
from flower_plugin.incoming.unrecorded import Unrecorded
from flower_plugin.rendering.wording import Paths
from flower_plugin.store_access import StoreAccess

if TYPE_CHECKING:
    from celery_trace.alerting.engine import AlertEngine

STATIC = Path(__file__).parent / "static"

#: Threads for everything of ours that blocks. A slow store holds these and no page of Flower's.
THREADS = 12


class MonitorStatus(Struct, frozen=True, kw_only=True):
    """
    What pages show of the monitor itself.

    Attributes:
        child_limit_bytes: Celery's ``worker_max_memory_per_child``; 0 where there is none.
        events: Celery's events that Flower's pages miss, by what became of them.
        unrecorded: Workers that can't write their records.
        workflow: The tasks that Flower remembers of a workflow, by the id of its root.
    """

    settings: Settings
    broker: BrokerState
    app_name: str = "celery"
    child_limit_bytes: int = 0
    events: Mapping[str, int] = {}
    unrecorded: Sequence[Unrecorded] = ()
    workflow: Callable[[str], Sequence[upstream.RememberedTask]] = lambda _: ()


class MonitorContext:
    """
    The collaborators of one monitor.

    Args:
        capp: The Celery app.
        settings: celery-trace's.
        access: The store.
        gatekeeper: Who may come in.
        link: The state of the broker.
        events: Flower's events.
        loop: Tornado's loop.
        url_prefix: Flower's option of that name.

    Attributes:
        redactor: Decides what Flower's pages and answers show, by the same names as in traced processes.
        base_url: In front of every address of ours: ``""`` or ``/prefix``.
        public_address: Where people reach the monitor, with the prefix; known when it listens. Alerts link to it.
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
        self.public_address = ""

    @property
    def store(self) -> Store:
        """
        The open store.

        Raises:
            StoreUnavailable: It can't be opened now.
        """
        return self.access.store

    @property
    def queries(self) -> Queries:
        """
        What reads it.

        Raises:
            StoreUnavailable: It can't be opened now.
        """
        return self.access.queries

    @cached_property
    def engine(self) -> AlertEngine:
        """
        The alert engine.

        Raises:
            StoreUnavailable: There is no store to evaluate.
        """
        # Apprise takes 36 MB once used, so a monitor that never alerts must not import it at its start.
        from celery_trace.alerting.engine import AlertEngine

        return AlertEngine(self.store, self.queries, self.settings, self.clock, base_url=self.public_address)

    def status(self) -> MonitorStatus:
        """The monitor as pages show it now."""
        return MonitorStatus(
            settings=self.settings,
            broker=self.link.state,
            app_name=str(self.capp.main or "celery"),
            # Celery counts it in KiB.
            child_limit_bytes=(self.capp.conf.worker_max_memory_per_child or 0) * 1024,
            events=self.events.counts,
            unrecorded=self.events.unrecorded.now(),
            workflow=lambda root_id: upstream.workflow(self.events, root_id),
        )

    def asset_url(self, name: str) -> str:
        """The address of one of our static files; changes when any of them does."""
        return f"{self.base_url}/trace/static/{static_version()}/{name}"


@cache
def static_version() -> str:
    """The version of all our static files; part of their addresses."""
    found = hashlib.blake2b(digest_size=6)
    for path in sorted(path for path in STATIC.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found.update(f"{path.relative_to(STATIC)}\0{len(content)}\0".encode() + content)
    return found.hexdigest()
