"""Look-alikes: what libraries keep and bound, what only the first runs load, what the next run undoes."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import datetime
import functools
import io
import itertools
import logging
import string
import struct
import urllib.parse
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery.utils.dispatch import Signal

from tests.corpus.cases import decoy

_templates: dict[str, string.Template] = {}


@decoy
def templates_compiled_once(number: int) -> str:
    name = f"mail {number % 25}"
    if name not in _templates:
        _templates[name] = string.Template(f"{name} $number " * 100)
    return _templates[name].substitute(number=number)


@decoy(full_by=600)
def formats_of_struct(number: int) -> int:
    return struct.calcsize(f"{number % 250 + 1}i{number % 3 + 1}d")


@decoy(full_by=300)
def addresses_that_are_parsed(number: int) -> str:
    return urllib.parse.urlsplit(f"http://shop/{number}?{'q' * 500}").path


@decoy
def formats_of_dates(number: int) -> datetime.datetime:
    return datetime.datetime.strptime(f"2026 {number % 12 + 1}", f"%Y{' ' * (number % 9 + 1)}%m")


class Connection:
    def __init__(self) -> None:
        self.buffer = bytearray(8_000)


_free: list[Connection] = []


@decoy(full_by=700)
def pool_that_grows_under_load(number: int) -> None:
    wanted = 1 + (number % 150 == 149) * 7 + number // 40 % 8
    taken = [_free.pop() if _free else Connection() for _ in range(wanted)]
    _free.extend(taken)


@functools.cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4)


@decoy
def thread_pool(number: int) -> int:
    return sum(_executor().map(len, [bytes(2_000)] * 4))


_warm: list[bytes] = []


@decoy
def warming_up_over_sixty_runs(number: int) -> None:
    if len(_warm) < 60:
        _warm.append(b"%08d" % number * 300)


class Tree:
    def __init__(self, depth: int) -> None:
        self.payload = bytes(2_000)
        self.children = [Tree(depth - 1) for _ in range(3)] if depth else []
        for child in self.children:
            child.parent = self  # type: ignore[attr-defined]


@decoy
def garbage_in_large_cycles(number: int) -> None:
    Tree(2)


@decoy
def loggers_by_name(number: int) -> None:
    logging.getLogger(f"corpus.shop.{number % 80}").debug("Order %s", number)


@decoy
def the_same_warnings(number: int) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        warnings.warn(f"{'w' * 600} {number % 20}", RuntimeWarning, stacklevel=1)


_request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="")


@decoy
def context_that_is_reset(number: int) -> None:
    token = _request.set(f"{number:08d}" * 200)
    _request.reset(token)


@decoy(full_by=300)
def event_loop_for_each_run(number: int) -> None:
    async def work() -> int:
        return sum(await asyncio.gather(*(asyncio.sleep(0, part) for part in range(5))))

    asyncio.run(work())


_paid = Signal(providing_args={"number"})


@decoy
def the_same_receiver(number: int) -> None:
    payload = b"%08d" % number * 200
    _paid.disconnect(sender=None, dispatch_uid="hear")
    _paid.connect(lambda **_: payload, weak=False, dispatch_uid="hear")


@decoy
def handler_taken_off_again(number: int) -> None:
    logger, handler = logging.getLogger("corpus.once"), logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)
    logger.debug("Order %s", number)
    logger.removeHandler(handler)


class Last:
    error: BaseException | None = None


@decoy
def the_last_exception(number: int) -> None:
    try:
        raise ValueError([number] * 2_000)
    except ValueError as error:
        Last.error = error


class Session:
    """What is to be done when it ends is told by weak references."""


_session = Session()
_watchers: dict[int, Any] = {}


@decoy
def weak_callbacks_of_late(number: int) -> None:
    _watchers[number] = weakref.ref(_session, functools.partial(print, bytes(1_000)))
    _watchers.pop(number - 30, None)


@decoy
def generators_that_end(number: int) -> int:
    def rows() -> Any:
        yield from ([number] * 50 for _ in range(20))

    return sum(len(row) for row in itertools.islice(rows(), 10))


@decoy
def tokens_of_asyncio_tasks(number: int) -> None:
    async def child() -> str:
        _request.set(f"{number:08d}" * 100)
        await asyncio.sleep(0)
        return _request.get()

    async def work() -> None:
        await asyncio.gather(child(), child())

    asyncio.run(work())
