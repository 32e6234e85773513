"""Tasks that look like leaks and are none: what they keep is replaced, bounded, given back or garbage."""

from __future__ import annotations

import functools
import importlib
import random
import re
import sys
import tempfile
import threading
from collections import OrderedDict, deque
from typing import Any

from tests.corpus.cases import decoy


class Latest:
    value: Any = None
    text = ""


@decoy
def rotating_global(number: int) -> None:
    Latest.value = [bytearray(300_000 + number % 1_000), [[number] for _ in range(50)]]


@decoy
def rotating_text(number: int) -> None:
    Latest.text = f"{number:08d}" * (1_000 + number % 7)


@functools.lru_cache(maxsize=64)
def _small_cache(number: int) -> list[int]:
    return [number] * 200


@decoy
def small_lru_cache(number: int) -> None:
    _small_cache(number)


@functools.lru_cache(maxsize=2_000)
def _large_cache(number: int) -> bytes:
    return b"%08d" % number * 300


@decoy(full_by=2000)
def large_lru_cache(number: int) -> None:
    _large_cache(number)


_recent: deque[bytes] = deque(maxlen=1_500)


@decoy(full_by=1500)
def bounded_deque(number: int) -> None:
    _recent.append(b"%08d" % number * 200)


_lru: OrderedDict[int, bytes] = OrderedDict()


@decoy
def own_cache_with_eviction(number: int) -> None:
    _lru[number] = b"%08d" % number * 400
    while len(_lru) > 60:
        _lru.popitem(last=False)


_few: dict[int, bytes] = {}


@decoy(full_by=400)
def cache_of_few_keys(number: int) -> None:
    key = random.Random(number).randrange(40)
    if key not in _few:
        _few[key] = b"%08d" % number * 500


_MODULES = ("wave", "colorsys", "chunk", "sndhdr", "this_is_no_module", "nturl2path", "tabnanny", "xdrlib")


@decoy(from_zero=True)
def first_run_imports(number: int) -> None:
    if number < len(_MODULES):
        try:
            importlib.import_module(_MODULES[number])
        except ImportError:
            return


_pool: list[bytearray] = []


@decoy
def pool_up_to_a_maximum(number: int) -> None:
    if len(_pool) < 50:
        _pool.append(bytearray(4_000))


_buffer: list[bytes] = []


@decoy
def sawtooth_of_twelve(number: int) -> None:
    _buffer.append(b"%08d" % number * 400)
    if len(_buffer) >= 12:
        _buffer.clear()


_long_buffer: list[list[int]] = []


@decoy
def sawtooth_of_fifty(number: int) -> None:
    _long_buffer.append([number] * 300)
    if len(_long_buffer) >= 50:
        _long_buffer.clear()


@decoy
def interned_words(number: int) -> str:
    return sys.intern(f"a word that comes again {number % 60}" * 20)


class Client:
    instance: Client | None = None

    def __init__(self) -> None:
        self.tables = {index: [index] * 50 for index in range(500)}


@decoy(from_zero=True)
def lazy_singleton(number: int) -> None:
    if number >= 10 and Client.instance is None:
        Client.instance = Client()


_holes: list[Any] = [None] * 200


@decoy(full_by=400)
def fragmentation(number: int) -> None:
    chooser = random.Random(number)
    for _ in range(50):
        _holes[chooser.randrange(200)] = bytes(chooser.randrange(600, 20_000))


@decoy(raises=True)
def only_raises(number: int) -> None:
    numbers = [number] * 20_000
    raise ValueError(f"{len(numbers)} numbers")


@decoy(raises=True)
def raises_with_a_chain(number: int) -> None:
    payload = {index: str(number) * 20 for index in range(500)}
    try:
        payload["missing"]  # type: ignore[index]
    except KeyError as error:
        raise RuntimeError("wrapped") from error


class Parent:
    def __init__(self, number: int) -> None:
        self.values = [number] * 300
        self.children = [Child(self) for _ in range(5)]


class Child:
    def __init__(self, parent: Parent) -> None:
        self.parent = parent


@decoy
def garbage_in_cycles(number: int) -> None:
    Parent(number)


@decoy(full_by=20)
def large_result(number: int) -> list[str]:
    return [f"{number} {index}" for index in range(2_000)]


@decoy
def temporary_files(number: int) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 10_000)


@decoy
def joined_threads(number: int) -> None:
    thread = threading.Thread(target=lambda: [number] * 1_000)
    thread.start()
    thread.join()


@decoy(full_by=600)
def compiled_patterns(number: int) -> None:
    re.compile(f"order {number % 70} (\\d+) [a-f]{{{number % 7 + 1}}}").match("order")


_tasks: dict[int, list[int]] = {}


_parts = [type(f"Part{place}", (), {})() for place in range(12)]


@decoy(full_by=1_500)
def names_that_are_looked_up(number: int) -> None:
    # The interpreter's cache of attributes holds on to each of them until it is full. Unpickling does so, too.
    for part in _parts:
        getattr(part, f"of order {number}", None)


@decoy
def added_and_taken_later(number: int) -> None:
    _tasks[number] = [number] * 500
    _tasks.pop(number - 20, None)


@decoy(full_by=20)
def much_work_and_nothing_kept(number: int) -> int:
    return sum(len(str(index)) for index in range(3_000))
