"""Tasks that leak into Celery, kombu, logging, asyncio and other libraries, or by how those call them back."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import html.parser
import http.cookies
import io
import linecache
import logging
import queue
import sys
import threading
import warnings
import weakref
from typing import Any

import kombu.pools
from celery import Task

from tests.corpus.app import app, pause
from tests.corpus.cases import leak
from tests.corpus.shelf import PUBLISHER


@leak(2_433, "cache", bind=True)
def attribute_of_the_task(self: Task, number: int) -> None:
    if not hasattr(self, "cache"):
        self.cache = {}
    self.cache[number] = b"%08d" % number * 300  # LEAK attribute_of_the_task


@leak(2_500, "changes", "conf", "_conf", "maps")
def setting_for_each_run(number: int) -> None:
    app.conf[f"order_{number}"] = f"{number:08d}" * 300  # LEAK setting_for_each_run


_chains: list[Any] = []


#: Since Python 3.14 an instance of a subclass of dict has a smaller ``__dict__``.
_SMALL_INSTANCES = sys.version_info >= (3, 14)


@leak(1_840 if _SMALL_INSTANCES else 2_670, "_chains")
def signatures(number: int) -> None:
    _chains.append(pause.s(number).set(countdown=number) | pause.si(number + 1))  # LEAK signatures


@leak(7_680, "connections")
def connection_pools(number: int) -> None:
    kombu.pools.connections[kombu.Connection(f"memory://shop-{number}")]  # LEAK connection_pools


class Parser(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)  # KEPT


_parser = Parser()


@leak(2_240, "texts")
def collected_by_a_parser(number: int) -> None:
    _parser.feed(f"<p>{'<b>'.join(f'{number:08d}' * 25 for _ in range(9))}</p>")  # LEAK collected_by_a_parser


_cookies = http.cookies.SimpleCookie()


@leak(1_180 if _SMALL_INSTANCES else 1_500, "_cookies")
def cookies_of_a_session(number: int) -> None:
    _cookies[f"order{number}"] = f"{number:08d}" * 90  # LEAK cookies_of_a_session


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


_trace = logging.getLogger("corpus.trace")
_trace.propagate = False
_trace.setLevel(logging.INFO)
_kept = Kept()
_trace.addHandler(_kept)


@leak(2_220, "records")
def log_records(number: int) -> None:
    _trace.info("Order %s", f"{number:08d}" * 200)  # LEAK log_records


@leak(2_210, "linecache.cache")
def line_cache(number: int) -> None:
    linecache.cache[f"<order {number}>"] = (2_000, None, [f"{number:08d}" * 250], "")  # LEAK line_cache


@leak(960, "__warningregistry__")
def warnings_registry(number: int) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        warnings.warn(f"{number:08d}" * 100, RuntimeWarning, stacklevel=1)  # LEAK warnings_registry


_backlog: queue.Queue[bytes] = queue.Queue()


@leak(1_633, "_backlog")
def queue_that_nobody_reads(number: int) -> None:
    _backlog.put(b"%08d" % number * 200)  # LEAK queue_that_nobody_reads


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()  # not before the fork, as children would share its descriptors


class Service:
    shutdown: asyncio.Future[None] | None = None
    ready = asyncio.Event()


@leak(1_900, "Service.shutdown")
def callbacks_of_a_future(number: int) -> None:
    Service.shutdown = Service.shutdown or _loop().create_future()
    Service.shutdown.add_done_callback(functools.partial(print, b"%08d" % number * 200))  # LEAK callbacks_of_a_future


@leak(4_056, "Service.ready")
def asyncio_tasks_that_wait(number: int) -> None:
    async def listen() -> None:  # KEPT
        orders = [number] * 500  # LEAK asyncio_tasks_that_wait
        await Service.ready.wait()  # KEPT
        orders.clear()

    async def start() -> None:
        asyncio.ensure_future(listen())  # noqa: RUF006 - the event refers to it # KEPT
        await asyncio.sleep(0)

    _loop().run_until_complete(start())  # KEPT


_streams: list[Any] = []


@leak(4_056, "_streams")
def suspended_coroutines(number: int) -> None:
    async def stream() -> Any:  # KEPT
        rows = [number] * 500  # LEAK suspended_coroutines
        while True:
            yield rows

    walk = stream()  # KEPT
    with contextlib.suppress(StopIteration):
        walk.__anext__().send(None)
    _streams.append(walk)


_current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="")
_tokens: list[contextvars.Token[str]] = []


@leak(1_720, "_tokens")
def context_tokens(number: int) -> None:
    _tokens.append(_current.set(f"{number:08d}" * 200))  # LEAK context_tokens


_trail: contextvars.ContextVar[Any] = contextvars.ContextVar("trail", default=None)


@leak(1_690, "Context", "C code")
def chain_in_a_context(number: int) -> None:
    _trail.set((_trail.get(), f"{number:08d}" * 200))  # LEAK chain_in_a_context


_watchers: list[Any] = []


@leak(1_930, "_watchers")
def weakref_callbacks(number: int) -> None:
    _watchers.append(weakref.ref(app, functools.partial(print, f"{number:08d}" * 200)))  # LEAK weakref_callbacks


@leak(1_649, "subscribers")
def event_subscribers(number: int) -> None:
    document = f"{number:08d}" * 200  # LEAK event_subscribers
    PUBLISHER.subscribe("paid", lambda: document)  # KEPT


class Plugin:
    known: dict[str, type[Plugin]] = {}  # noqa: RUF012 - the leak itself

    def __init_subclass__(cls) -> None:
        cls.known[cls.__name__] = cls  # KEPT


@leak(3_890, "known")
def registry_of_subclasses(number: int) -> None:
    type(f"Plugin{number}", (Plugin,), {"manual": f"{number:08d}" * 200})  # LEAK registry_of_subclasses


_found: list[bytes] = []


@leak(3_233, "_found", by_process=True)
def in_a_thread_of_its_own(number: int) -> None:
    def search() -> None:
        _found.append(b"%08d" % number * 400)  # LEAK in_a_thread_of_its_own

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
