"""Look-alikes: buffers, queues and windows that are emptied, turn over or go up and down."""

from __future__ import annotations

import collections
import heapq
import io
import logging.handlers
import sqlite3
from typing import Any

from tests.corpus.cases import decoy


def _flushing(runs: int) -> Any:
    """A task that keeps what it got until there is enough of it."""
    buffer: list[bytes] = []

    def buffered(number: int) -> None:
        buffer.append(b"%08d" % number * 150)
        if len(buffer) >= runs:
            buffer.clear()

    buffered.__name__ = f"flushed_every_{runs}_runs"
    return decoy(buffered, full_by=2 * runs)


flushed_every_20_runs = _flushing(20)
flushed_every_100_runs = _flushing(100)
flushed_every_150_runs = _flushing(150)

_batch: list[bytes] = []


@decoy
def flushed_by_size(number: int) -> None:
    _batch.append(bytes(1_000 + number % 9 * 500))
    if sum(map(len, _batch)) > 150_000:
        _batch.clear()


_by_tenant: collections.defaultdict[int, list[bytes]] = collections.defaultdict(list)


@decoy(full_by=300)
def batches_by_tenant(number: int) -> None:
    rows = _by_tenant[number * 7 % 10]
    rows.append(b"%08d" % number * 150)
    if len(rows) >= 10:
        rows.clear()


_backlog: collections.deque[bytes] = collections.deque()


@decoy
def steady_backlog(number: int) -> None:
    _backlog.append(b"%08d" % number * 150)
    while len(_backlog) > 70:
        _backlog.popleft()


_doubled: list[bytes] = []


@decoy
def doubles_and_clears(number: int) -> None:
    _doubled.extend(bytes(2_000) for _ in range(max(1, len(_doubled))))
    if len(_doubled) >= 256:
        _doubled.clear()


_retries: dict[int, tuple[int, bytes]] = {}


@decoy
def retry_buffer(number: int) -> None:
    _retries[number] = (0, b"%08d" % number * 200)
    for key, (attempts, payload) in list(_retries.items()):
        if attempts == 25:
            del _retries[key]
        else:
            _retries[key] = (attempts + 1, payload)


_window: collections.deque[tuple[int, bytes]] = collections.deque()


@decoy
def sliding_window(number: int) -> None:
    _window.append((number, b"%08d" % number * 150))
    while _window[0][0] < number - 45:
        _window.popleft()


_days: dict[int, list[int]] = {}


@decoy(full_by=300)
def statistics_by_day(number: int) -> None:
    day = number // 40
    _days.setdefault(day, []).append(number)
    _days[day].extend([number] * 40)
    for past in [one for one in _days if one < day - 2]:
        del _days[past]


_tide: list[bytes] = []


@decoy(full_by=300)
def up_and_down(number: int) -> None:
    if number % 120 < 60:
        _tide.append(b"%08d" % number * 150)
    elif _tide:
        _tide.pop()


class _Nowhere(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        pass


_log = logging.getLogger("corpus.buffered")
_log.propagate = False
_log.setLevel(logging.INFO)
_log.addHandler(logging.handlers.MemoryHandler(100, target=_Nowhere()))


@decoy(full_by=200)
def logging_in_batches(number: int) -> None:
    _log.info("Order %s", f"{number:08d}" * 100)


_text = io.StringIO()


@decoy
def text_buffer(number: int) -> None:
    _text.write(f"{number:08d}" * 150)
    if _text.tell() > 60_000:
        _text.seek(0)
        _text.truncate()


class Table:
    connection: sqlite3.Connection | None = None


@decoy(full_by=300)
def trimmed_table(number: int) -> None:
    if Table.connection is None:
        Table.connection = sqlite3.connect(":memory:", check_same_thread=False)
        Table.connection.execute("create table orders (id integer primary key, document text)")
    Table.connection.execute("insert or replace into orders values (?, ?)", (number, f"{number:08d}" * 50))
    Table.connection.execute("delete from orders where id < ?", (number - 100,))


_best: list[tuple[int, bytes]] = []


@decoy(full_by=2_000)
def best_hundred(number: int) -> None:
    entry = (number * 7_919 % 10_007, b"%08d" % number * 150)
    (heapq.heappush if len(_best) < 100 else heapq.heappushpop)(_best, entry)


_ring: list[bytes | None] = [None] * 130


@decoy(full_by=140)
def ring_buffer(number: int) -> None:
    _ring[number % len(_ring)] = b"%08d" % number * 150


class Buffers:
    front: list[bytes] = []  # noqa: RUF012
    back: list[bytes] = []  # noqa: RUF012


@decoy
def double_buffer(number: int) -> None:
    Buffers.front.append(b"%08d" % number * 150)
    if len(Buffers.front) >= 35:
        Buffers.front, Buffers.back = [], Buffers.front


_durations: collections.deque[float] = collections.deque(maxlen=2_000)


@decoy(full_by=150)
def durations_of_late(number: int) -> None:
    _durations.extend(number / part for part in range(1, 31))


_filter = bytearray(50_000)


@decoy
def bloom_filter(number: int) -> None:
    for seed in (7, 31, 127):
        _filter[number * seed % len(_filter)] = 1
