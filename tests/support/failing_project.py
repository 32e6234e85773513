"""A project whose tasks fail in every way that Celery knows."""

from __future__ import annotations

from pathlib import Path

MODULE = '''
import ctypes
import logging
import os
import resource
import signal
import sys
import threading
import time

from celery import Celery, Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

app = Celery("failing")
app.conf.update(
    result_backend=os.environ.get("FAILING_RESULTS", os.environ["CELERY_BROKER_URL"]),
    result_backend_transport_options={"retry_policy": {"timeout": 1.0, "max_retries": 1}},
    broker_connection_retry_on_startup=True,
)


class Awkward(Exception):
    """Can't be pickled: it holds a lock."""

    def __init__(self, lock):
        super().__init__(lock)
        self.lock = lock


class BadStart(Task):
    def before_start(self, task_id, args, kwargs):
        level = 7
        raise RuntimeError(f"can't start at level {level}")


class BadEnd(Task):
    def on_failure(self, exc, task_id, args, kwargs, einfo):
        ending = "bad"
        raise RuntimeError(f"the end is {ending}")


def innermost(amount, password):
    basket = {"amount": amount, "rows": [1, 2, 3]}
    raise ValueError(f"can't buy for {amount} with {password}")


@app.task
def boom(amount, password):
    return innermost(amount, password)


@app.task(bind=True, max_retries=1)
def logs(self, password):
    logging.getLogger("failing.orders").warning("attempt %d with %s", self.request.retries, password)
    get_task_logger(__name__).error("attempt %d fails", self.request.retries)
    try:
        innermost(5, password)
    except ValueError as error:
        raise self.retry(exc=error, countdown=0)


@app.task
def two(first, second):
    return first


@app.task(soft_time_limit=1)
def soft():
    waiting = "for the soft limit"
    time.sleep(60)


@app.task(soft_time_limit=1)
def goes_on(amount, password, seconds=60):
    waiting = f"for the soft limit {amount}"
    try:
        time.sleep(seconds)
    except Exception:
        waiting = "no more"
    return "done"


@app.task(bind=True, soft_time_limit=1, max_retries=1)
def tries_again(self):
    if self.request.retries:
        return "done"
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded as error:
        raise self.retry(exc=error, countdown=0)


@app.task(time_limit=1)
def hard(amount):
    waiting = "for the hard limit"
    time.sleep(60)


@app.task(bind=True, max_retries=0)
def out_of_retries(self):
    try:
        raise LookupError("nowhere")
    except LookupError as error:
        raise self.retry(exc=error, countdown=0)


@app.task(bind=True, max_retries=1)
def retries_once(self):
    attempt = self.request.retries
    try:
        raise LookupError(f"attempt {attempt}")
    except LookupError as error:
        raise self.retry(exc=error, countdown=0)


@app.task(bind=True, max_retries=1)
def retries_plainly(self):
    if self.request.retries == 0:
        reason = "no error, just later"
        raise self.retry(countdown=0)


@app.task
def unpicklable():
    lock = threading.Lock()
    raise Awkward(lock)


@app.task(base=BadStart)
def bad_start():
    return 1


@app.task(base=BadEnd)
def bad_end():
    first = "the task's own"
    raise ValueError(first)


@app.task
def unencodable():
    return {"token": "hunter2", "value": object()}


@app.task
def rejects():
    raise Reject("not mine", requeue=False)


@app.task
def ignores():
    raise Ignore()


@app.task
def sleeps(amount):
    waiting = "to be revoked"
    time.sleep(60)


@app.task
def exits():
    status = 3
    sys.exit(status)


@app.task
def out_of_memory():
    wanted = "much"
    raise MemoryError(wanted)


@app.task
def without_price(order):
    raise LookupError(f"no price for {order}")


@app.task(acks_late=True, reject_on_worker_lost=True)
def poison(folder, times):
    for number in range(times):
        try:
            os.close(os.open(f"{folder}/{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)


@app.task
def crashes(password):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    time.sleep(0.3)
    into_native_code()


def into_native_code():
    ctypes.string_at(0)


@app.task
def killed(seconds, password):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
'''


def write(folder: Path) -> Path:
    """Write the module ``failing`` into a folder; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failing.py").write_text(MODULE)
    return folder
