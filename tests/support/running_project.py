"""A project whose tasks do not come to an end, each in another way."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time

from celery import Celery

app = Celery("running_project", broker=os.environ.get("CELERY_BROKER_URL", "memory://"), set_as_current=False)
app.conf.update(
    task_ignore_result=True, broker_connection_retry_on_startup=True, imports=("tests.support.running_project",)
)

if "CELERY_CUSTOM_WORKER_POOL" in os.environ:
    from celery_aio_pool import patch_celery_tracer

    patch_celery_tracer()  # as its manual asks a project to


@app.task(name="running.lock")
def lock(order: int, password: str) -> None:
    waiting_for = "orders"
    threading.Event().wait(150)  # LOCK
    del waiting_for, order, password


@app.task(name="running.regex")
def regex(order: int, password: str) -> None:
    re.match(r"(a+)+$", "a" * 32 + "b")  # REGEX: holds the interpreter's lock
    del order, password


@app.task(name="running.sleep")
def sleep(order: int, password: str) -> None:
    waiting_for = "orders"
    time.sleep(150)  # SLEEP
    del waiting_for, order, password


@app.task(name="running.await")
def awaits(order: int, password: str) -> None:
    async def inner(api_key: str) -> None:
        waiting_for = "orders"
        await asyncio.sleep(150)  # AWAIT
        del waiting_for, api_key

    async def outer() -> None:
        await asyncio.gather(asyncio.create_task(inner("sk-live-0123456789abcdef")))

    asyncio.run(outer())
    del order, password


@app.task(name="running.coroutine")
async def coroutine(order: int, password: str) -> None:
    async def inner(api_key: str) -> None:
        waiting_for = "orders"
        await asyncio.sleep(150)  # COROUTINE
        del waiting_for, api_key

    await inner("sk-live-0123456789abcdef")
    del order, password


@app.task(name="running.done")
def done() -> None:
    """Ends at once."""
