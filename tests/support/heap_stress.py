"""
A program that does at once what could upset the heap sampler; ends with 0 if all of it went well.

    python -m tests.support.heap_stress SECONDS
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

from celery_trace.heap.picks import UNTAGGED
from celery_trace.heap.sampler import Sampler

SAMPLER = Sampler()
DEADLINE_S = time.monotonic() + float(sys.argv[1])


class Node:
    """Garbage in a cycle, whose end raises and allocates."""

    def __init__(self) -> None:
        self.itself = self
        self.data = bytearray(300)

    def __del__(self) -> None:
        try:
            raise ValueError([0] * 20)
        except ValueError:
            self.late = {"made": "late"}


def collects(_: random.Random) -> None:
    SAMPLER.run(3)
    for _ in range(40):
        Node()
    SAMPLER.restore(UNTAGGED)


def resizes(rng: random.Random) -> None:
    grown: list[int] = []
    buffer, text = bytearray(), ""
    for index in range(400):
        grown.append(index)
        buffer.extend(b"x" * rng.randrange(200))
        text += "y"
        if index % 50 == 0:
            del grown[: len(grown) // 2]
            del buffer[: len(buffer) // 2]


def makes_code(_: random.Random) -> None:
    """A code object that ends within its own frame, and whose weak reference then calls back."""
    space: dict[str, Any] = {"weakref": weakref}
    source = "def made():\n return [object() for _ in range(50)]\n"
    source += "watch = weakref.ref(made.__code__, lambda _: [bytearray(9) for _ in range(50)])\nmade()"
    exec(compile(source, "<made>", "exec"), space)
    space.clear()


def generates(_: random.Random) -> None:
    def numbers() -> Any:
        for index in range(50):
            yield bytes(index * 10)

    async def coroutine() -> list[bytes]:
        return list(numbers())

    running = coroutine()
    with contextlib.suppress(StopIteration):
        running.send(None)
    suspended = numbers()
    next(suspended)
    suspended.close()


def recurses(_: random.Random) -> None:
    def deeper(depth: int) -> int:
        return deeper(depth + 1)

    with contextlib.suppress(RecursionError):
        deeper(0)


def begins_threads(rng: random.Random) -> None:
    def body() -> None:
        before = SAMPLER.run(rng.randrange(1, 9))
        kept = [bytes(700) for _ in range(30)]
        if kept and rng.random() < 0.5:
            SAMPLER.restore(before)

    threads = [threading.Thread(target=body) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def takes_much(rng: random.Random) -> None:
    kept = [bytearray(rng.randrange(513, 200_000)) for _ in range(5)]
    kept.append(bytearray(os.urandom(60_000)))


def looks(rng: random.Random) -> None:
    picks = list(SAMPLER.picks())
    SAMPLER.stack(rng.randrange(100))
    SAMPLER.sweep()
    SAMPLER.stats()
    SAMPLER.cost_s()
    SAMPLER.is_on()
    gc.collect()
    if rng.random() < 0.2:
        SAMPLER.referrers([(pick.address, pick.size) for pick in picks], 3)
    time.sleep(0.01)


def switches(rng: random.Random) -> None:
    if tracemalloc.is_tracing():
        tracemalloc.stop()
    else:
        tracemalloc.start(rng.randrange(1, 4))
    if rng.random() < 0.3:
        SAMPLER.stop()
    time.sleep(0.003)
    SAMPLER.start(rng.choice([64, 1000, 30_000]))
    time.sleep(0.003)


def forks(_: random.Random) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            began_off = not SAMPLER.is_on() and not list(SAMPLER.picks())
            SAMPLER.start(500)
            SAMPLER.run(5)
            kept = [bytearray(600) for _ in range(200)]
            gc.collect()
            seen = [pick for pick in SAMPLER.picks() if pick.tag == 5]
            code = 0 if kept and began_off and seen else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    time.sleep(0.01)


def starts_processes(_: random.Random) -> None:
    subprocess.run(["true"], check=True)
    time.sleep(0.02)


def main() -> int:
    faulthandler.enable()
    done: dict[str, int] = {}
    failures: list[str] = []
    work: list[Callable[[random.Random], None]] = [
        collects,
        resizes,
        makes_code,
        generates,
        recurses,
        begins_threads,
        takes_much,
        looks,
        switches,
        forks,
        starts_processes,
    ]

    def repeat(call: Callable[[random.Random], None]) -> None:
        try:
            while time.monotonic() < DEADLINE_S or call.__name__ not in done:
                call(random.Random(done.get(call.__name__, 0)))
                done[call.__name__] = done.get(call.__name__, 0) + 1
        except BaseException as error:
            failures.append(f"{call.__name__}: {error!r}")

    gc.callbacks.append(SAMPLER.note_collection)
    SAMPLER.start(500)
    threads = [threading.Thread(target=repeat, args=(call,)) for call in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(done, SAMPLER.stats(), failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
