"""
Tasks that leak, each in a way of its own: what holds the memory differs most.

``@leak(bytes, holder)`` tells what a run keeps at the marked lines, and where; see :mod:`tests.corpus.cases`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
import logging
import mmap
import os
import random
import sqlite3
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from celery.utils.dispatch import Signal

from tests.corpus.app import app
from tests.corpus.cases import leak


class Order:
    def __init__(self, number: int, size: int = 1_000) -> None:
        self.number = number
        self.document = f"{number:08d}" * (size // 8)  # LEAK handlers


_by_id: dict[int, bytes] = {}


@leak(1_080, "_by_id")
def one_kilobyte(number: int) -> None:
    _by_id[number] = b"%08d" % number * 125  # LEAK one_kilobyte


_rows: list[bytearray] = []


@leak(100_057, "_rows")
def hundred_kilobytes(number: int) -> None:
    _rows.append(bytearray(100_000))  # LEAK hundred_kilobytes


_small: list[str] = []


@leak(1_440, "_small")
def small_texts(number: int) -> None:
    for part in range(16):
        _small.append(f"{number:016d}{part:017d}")  # LEAK small_texts


_groups: defaultdict[str, list[list[int]]] = defaultdict(list)


@leak(4_056, "_groups")
def rows_by_group(number: int) -> None:
    _groups[f"group {number % 3}"].append([number] * 500)  # LEAK rows_by_group


_seen: set[str] = set()


@leak(2_049, "_seen")
def set_of_texts(number: int) -> None:
    _seen.add(f"{number:08d}" * 250)  # LEAK set_of_texts


class Prices:
    @functools.cache  # noqa: B019 - the leak itself
    def of(self, number: int) -> list[int]:
        return [number] * 400  # LEAK cache_on_a_method


@leak(3_256, "Prices.of")
def cache_on_a_method(number: int) -> None:
    Prices().of(number)  # KEPT


class Bus:
    handlers: ClassVar[list[Callable[[], Any]]] = []


@leak(1_049, "Bus.handlers")
def handlers(number: int) -> None:
    order = Order(number)  # KEPT
    Bus.handlers.append(lambda: order)  # KEPT


_ready = Signal(providing_args={"number"})


@leak(5_033, "_ready.receivers")
def signal_receivers(number: int) -> None:
    payload = b"%08d" % number * 625  # LEAK signal_receivers

    def hear(**_: Any) -> bytes:  # KEPT
        return payload

    _ready.connect(hear, weak=False, dispatch_uid=f"hear {number}")  # KEPT


def _counter(_counters: list[Any] = []) -> list[Any]:  # noqa: B006 - the leak itself
    return _counters


@leak(8_056, "_counter")
def default_argument(number: int) -> None:
    _counter().append([number] * 1_000)  # LEAK default_argument


_graveyard: list[Any] = []


class Undead:
    def __init__(self, number: int) -> None:
        self.me = self
        self.payload = [number] * 300  # LEAK cycle_with_del

    def __del__(self) -> None:
        _graveyard.append(self.payload)


@leak(2_456, "_graveyard")
def cycle_with_del(number: int) -> None:
    Undead(number)


_local = threading.local()


@leak(6_033, "items")
def thread_local(number: int) -> None:
    if not hasattr(_local, "items"):
        _local.items = []
    _local.items.append(b"%08d" % number * 750)  # LEAK thread_local


_never = threading.Event()


@leak(None, "_active", "Thread", "threading", native="threads")
def never_joined_threads(number: int) -> None:
    threading.Thread(target=_never.wait, args=(7_200,), daemon=True).start()  # KEPT


_failures: list[BaseException] = []


@leak(16_056, "_failures")
def kept_exceptions(number: int) -> None:
    def fail() -> None:  # KEPT
        numbers = [number] * 2_000  # LEAK kept_exceptions
        raise ValueError(len(numbers))  # KEPT

    try:
        fail()  # KEPT
    except ValueError as error:
        _failures.append(error)


_engines: list[Any] = []


@leak(None, "_engines", native="malloc")
def connection_per_call(number: int) -> None:
    connection = sqlite3.connect(":memory:")  # KEPT
    connection.execute("create table orders (id integer, document text)")  # KEPT
    connection.execute("insert into orders values (1, ?)", ("x" * 20_000,))  # KEPT
    _engines.append(connection)


_queries: deque[dict[str, str]] = deque()


@leak(4_070, "_queries")
def query_log(number: int) -> None:
    for part in range(10):
        sql = f"SELECT * FROM orders WHERE id = {number} AND part = {part} AND note = '{'n' * 99}'"  # LEAK query_log
        _queries.append({"sql": sql, "time": "0.001"})  # LEAK query_log


_paused: list[Iterator[int]] = []


@leak(4_056, "_paused")
def paused_generators(number: int) -> None:
    def count() -> Iterator[int]:  # KEPT
        numbers = [number] * 500  # LEAK paused_generators
        yield from numbers  # KEPT

    walk = count()  # KEPT
    next(walk)
    _paused.append(walk)


_documents: list[Any] = []


@leak(None, "_documents")
def allocated_in_a_library(number: int) -> None:
    _documents.append(json.loads(f'{{"rows": [{number}, "{"y" * 3000}"]}}'))  # LEAK allocated_in_a_library


class Node:
    def __init__(self, number: int, rest: Any) -> None:
        self.rest = rest
        self.values = [number] * 200  # LEAK linked_list


class Chain:
    head: Any = None


@leak(1_656, "Chain.head")
def linked_list(number: int) -> None:
    Chain.head = Node(number, Chain.head)  # KEPT


@leak(5_330, "finalize._registry")
def finalizers(number: int) -> None:
    weakref.finalize(app, len, b"%08d" % number * 625)  # LEAK finalizers


@leak(3_030, "handlers")
def logging_handlers(number: int) -> None:
    handler = logging.NullHandler()  # KEPT
    handler.payload = b"%08d" % number * 375  # type: ignore[attr-defined] # LEAK logging_handlers
    logging.getLogger("corpus.noise").addHandler(handler)


@leak(2_033, "C code", "running frame")
def registered_at_exit(number: int) -> None:
    atexit.register(len, b"%08d" % number * 250)  # LEAK registered_at_exit


_rare: list[bytes] = []


@leak(2_003, "_rare")
def one_run_in_ten(number: int) -> None:
    if number % 10 == 7:
        _rare.append(b"%08d" % number * 2_500)  # LEAK one_run_in_ten


class Settings:
    latest: Any = None
    history: ClassVar[list[str]] = []


@leak(1_049, "Settings.history")
def beside_a_rotating_value(number: int) -> None:
    Settings.latest = [bytearray(1_000_000 + number), [number] * 1_000]
    Settings.history.append(f"{number:08d}" * 125)  # LEAK beside_a_rotating_value


_mixed: list[bytes] = []


@leak(10_033, "_mixed")
def of_any_size(number: int) -> None:
    _mixed.append(bytes(random.Random(number).randrange(9_000, 11_000)))  # LEAK of_any_size


_malloc = ctypes.CDLL(None).malloc
_malloc.restype = ctypes.c_void_p


@leak(None, native="malloc")
def c_memory(number: int) -> None:
    _malloc(60_000)


_mapped: list[mmap.mmap] = []


@leak(None, native="malloc")
def mappings(number: int) -> None:
    _mapped.append(mmap.mmap(-1, 64 * 1024))  # KEPT


@leak(None, native="fds")
def descriptors(number: int) -> None:
    with contextlib.suppress(OSError):
        os.open("/dev/null", os.O_RDONLY)
