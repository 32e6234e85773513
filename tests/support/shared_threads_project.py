"""A project whose runs share a thread; some hang, and some are slow and alive."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import Celery

app = Celery("shared_threads_project", broker=os.environ.get("CELERY_BROKER_URL", "memory://"), set_as_current=False)
app.conf.update(
    task_ignore_result=True, broker_connection_retry_on_startup=True, imports=("tests.support.shared_threads_project",)
)

if "CELERY_CUSTOM_WORKER_POOL" in os.environ:
    from celery_aio_pool import patch_celery_tracer

    patch_celery_tracer()

NO_LIMIT = 100_000
KEPT: list[object] = []  # what must not be collected while a task hangs


def connected() -> tuple[socket.socket, socket.socket]:
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    other, _ = server.accept()
    KEPT.extend((server, other))
    return client, other


def task(function: Callable[..., Any]) -> Callable[..., Any]:
    made: Callable[..., Any] = app.task(name=function.__name__.replace("_", ".", 1))(function)
    return made


# --- greenlets


@task
def hangs_sleeps() -> None:
    time.sleep(NO_LIMIT)


@task
def hangs_receives() -> None:
    connected()[0].recv(1)


@task
def hangs_waits_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


@task
def hangs_waits_for_an_item() -> None:
    items: queue.Queue[int] = queue.Queue()
    items.get()


@task
def alive_polls(seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        time.sleep(0.5)


@task
def alive_receives(seconds: float) -> None:
    client, other = connected()
    ends_at = time.monotonic() + seconds

    def send() -> None:
        while time.monotonic() < ends_at:
            other.send(b"x")
            time.sleep(0.5)
        other.close()

    threading.Thread(target=send).start()
    while client.recv(1):
        pass


@task
def alive_computes(seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    total = 0
    while time.monotonic() < ends_at:
        for _ in range(50):  # longer than the interpreter's switch interval, so that samples see it
            total += sum(range(50_000))
        time.sleep(0.01)


@task
def keeps_the_thread(seconds: float) -> None:
    if "gevent" in sys.modules:
        from gevent.monkey import get_original

        blocks = get_original("time", "sleep")
    else:
        from eventlet.patcher import original

        blocks = original("time").sleep
    blocks(seconds)  # KEEPS


# --- coroutines


async def _waits(event: asyncio.Event) -> None:
    await event.wait()  # INNER


async def _polls(seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        await asyncio.sleep(0.5)


@task
async def hangs_async_sleep() -> None:
    await asyncio.sleep(NO_LIMIT)


@task
async def hangs_async_gather() -> None:
    await asyncio.gather(_waits(asyncio.Event()), _waits(asyncio.Event()))


@task
async def hangs_async_stream() -> None:
    client, _ = connected()
    reader, _writer = await asyncio.open_connection(sock=client)
    await reader.read(1)


@task
async def hangs_async_thread() -> None:
    await asyncio.to_thread(time.sleep, 60)


@task
async def alive_async_polls(seconds: float) -> None:
    await _polls(seconds)


@task
async def alive_async_group(seconds: float) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_polls(seconds))
        group.create_task(_polls(seconds / 2))


@task
async def alive_async_thread(seconds: float) -> None:
    def polls() -> None:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            time.sleep(0.5)

    await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, polls))
