"""
The collector's program, ``python -m celery_trace.collector``.

It reads its settings as JSON from standard input, so that no password appears in a command line or an environment. It
ends after a last round when its parent is gone or on SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from celery_trace.clock import Clock, SystemClock
from celery_trace.collector.maintenance import Maintenance
from celery_trace.collector.priority import lower_priority, relax_garbage_collection
from celery_trace.collector.process import ANOTHER_ONE, CollectorJob
from celery_trace.collector.rounds import AnotherCollector, Collector
from celery_trace.control.audit import AuditLog
from celery_trace.control.signing import load_key
from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.redaction import Redactor
from celery_trace.running.stalls import Stalls
from celery_trace.settings import Settings
from celery_trace.spool import unrecorded
from celery_trace.text.code_owner import CodeOwner, project_roots
from celery_trace.transports import BrokerOptions, Transport

if TYPE_CHECKING:
    import kombu

    from celery_trace.control.channel import Connect
    from celery_trace.running.listener import StackListener

logger = logging.getLogger("celery_trace.collector")


def make_transport(settings: Settings, broker: BrokerOptions | None = None) -> Transport:
    """The transport of these settings; ``broker`` has kombu's connection options."""
    if settings.transport == "broker":
        from celery_trace.transports.broker import BrokerTransport, connect

        return BrokerTransport(lambda: connect(broker or {}))
    from celery_trace.stores import open_store
    from celery_trace.transports.direct import DirectTransport

    maintenance = Maintenance(settings, SystemClock())
    return DirectTransport(lambda: open_store(settings), maintenance.after_records, maintenance.after_round)


def stalls_of(settings: Settings) -> Stalls:
    """The judge of runs that make no progress, with these settings."""
    return Stalls(
        settings.stuck_seconds, CodeOwner(settings.in_app, project_roots()), redactor=Redactor(settings.redact)
    )


def main() -> int:
    """Run until the parent is gone or SIGTERM arrives."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=CollectorJob)
    settings, parent = job.settings, job.parent
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if settings.store_url.startswith("django"):
        prepare_django(job.django)

    def should_end() -> bool:
        return ended.is_set() or (parent != 0 and os.getppid() != parent)

    clock = SystemClock()
    try:
        collector = Collector(
            settings.spool_folder,
            make_transport(settings, job.broker),
            clock,
            redact=settings.redact,
            stalls=stalls_of(settings),
            listen=listening(settings, _connect_to(job.broker), clock),
        )
    except AnotherCollector as other:
        logger.info("%s", other)
        return ANOTHER_ONE
    except OSError as error:
        logger.error("Can't collect %s: %s. %s", settings.spool_folder, error, unrecorded.advice(error))
        return 1
    relax_garbage_collection()
    if parent:  # after the imports: a starting worker waits for the store
        lower_priority()
    try:
        collector.run(should_end, ended.wait)
    except AnotherCollector as other:  # the folder was removed, and another collector took the new one
        logger.info("%s", other)
        return ANOTHER_ONE
    finally:
        collector.close()
    return 0


def _connect_to(broker: BrokerOptions) -> Connect | None:
    """Opens connections to the broker; None if there is none that other processes can reach."""
    if not broker or str(broker.get("hostname", "")).startswith("memory:"):
        return None

    def connect() -> kombu.Connection:
        from celery_trace.transports import broker as transport  # kombu takes 10 MB

        return transport.connect(broker)

    return connect


def listening(settings: Settings, connect: Connect | None, clock: Clock) -> Callable[[], StackListener] | None:
    """Makes what takes requests for stacks from the broker; None if they are not taken."""
    if connect is None or settings.shell == "off":
        return None

    def listen() -> StackListener:
        from celery_trace.running.listener import StackListener

        audit = AuditLog(settings.folder, "worker", clock)
        source = SourceLines(Redactor(settings.redact))
        return StackListener(settings.spool_folder, load_key(settings), connect, clock, audit, source)

    return listen


def prepare_django(settings_module: str) -> None:
    """Let ``trace_store = "django"`` find Django's settings, as in the process that started the collector."""
    if settings_module:
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", settings_module)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
