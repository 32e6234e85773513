"""A project whose tasks hang, or are slow and alive, each in its own way."""

from __future__ import annotations

from pathlib import Path

MODULE = '''
import asyncio
import collections
import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import queue
import re
import select
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

from celery import Celery, signals
from celery.exceptions import SoftTimeLimitExceeded

app = Celery("stuck")
app.conf.update(result_backend=os.environ["CELERY_BROKER_URL"], broker_connection_retry_on_startup=True)
KEPT = []  # what must not be collected while a task hangs
NO_LIMIT = 100_000
flag = False


def hangs(function):
    return app.task(name=f"hangs.{function.__name__}")(function)


def slow(function):
    return app.task(name=f"slow.{function.__name__}")(function)


def connected():
    """A connection to a server that never answers, and the server's end."""
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    other, _ = server.accept()
    KEPT.extend((server, other))
    return client, other


def in_thread(function, *args, name=None):
    thread = threading.Thread(target=function, args=args, name=name, daemon=True)
    thread.start()
    return thread


@signals.task_received.connect
def received(request, **_):
    """Blocks the worker's main process."""
    if request.name == "blocks.the_main_process":
        connected()[0].recv(1)

@app.task(name="blocks.the_main_process")
def never_runs():
    pass


# --- hangs

@hangs
def sleeps():
    time.sleep(NO_LIMIT)

@hangs
def receives():
    client, _ = connected()
    client.recv(100)

@hangs
def receives_with_a_timeout():
    client, _ = connected()
    client.settimeout(NO_LIMIT)
    client.recv(100)

@hangs
def sends():
    client, _ = connected()
    while True:
        client.sendall(b"x" * 1_000_000)

orders = threading.Lock()

def keep(lock, held):
    with lock:
        held.set()
        time.sleep(NO_LIMIT)  # keeps the lock

@hangs
def lock_of_another_thread():
    held = threading.Event()
    in_thread(keep, orders, held, name="keeper")
    held.wait()
    with orders:
        pass

@hangs
def lock_of_its_own():
    lock = threading.Lock()
    with lock:
        with lock:  # deadlock
            pass

@hangs
def reentrant_lock():
    lock, held = threading.RLock(), threading.Event()
    def take():
        lock.acquire()
        held.set()
        time.sleep(NO_LIMIT)
    in_thread(take, name="taker")
    held.wait()
    lock.acquire()

@hangs
def lock_of_nobody():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

@hangs
def event():
    threading.Event().wait()

@hangs
def condition():
    condition = threading.Condition()
    with condition:
        condition.wait()

@hangs
def queue_item():
    queue.Queue().get()

@hangs
def simple_queue():
    items = queue.SimpleQueue()
    items.get()

@hangs
def joins():
    in_thread(time.sleep, NO_LIMIT, name="other").join()

@hangs
def child():
    subprocess.run(["sleep", str(NO_LIMIT)])

@hangs
def output_of_a_child():
    subprocess.check_output(["sleep", str(NO_LIMIT)])

@hangs
def pipe():
    reader, writer = os.pipe()
    os.read(reader, 10)

@hangs
def terminal():
    controller, terminal = os.openpty()
    os.read(terminal, 10)

@hangs
def selects():
    (one, _), (two, _) = connected(), connected()
    select.select([one, two], [], [])

@hangs
def epoll():
    client, _ = connected()
    with select.epoll() as waits:
        waits.register(client, select.EPOLLIN)
        waits.poll()

@hangs
def file_lock():
    with tempfile.NamedTemporaryFile(suffix=".lock") as file:
        holder = subprocess.Popen([sys.executable, "-c", f"""
import fcntl, time
file = open({file.name!r})
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep({NO_LIMIT})
"""], stdout=subprocess.PIPE)
        KEPT.append(holder)
        holder.stdout.readline()
        fcntl.flock(file, fcntl.LOCK_EX)

@hangs
def database():
    folder = tempfile.mkdtemp()
    one = sqlite3.connect(f"{folder}/shop.sqlite", isolation_level=None)
    one.execute("create table orders (id)")
    one.execute("begin exclusive")
    two = sqlite3.connect(f"{folder}/shop.sqlite", isolation_level=None, timeout=NO_LIMIT)
    two.execute("insert into orders values (1)")

@hangs
def result():
    app.send_task("nothing.runs.this", queue="nobody").get(disable_sync_subtasks=False)

async def waits_for_ever():
    await asyncio.get_running_loop().create_future()  # nobody sets it

@hangs
def asynchronous():
    asyncio.run(waits_for_ever())

@hangs
def spins():
    while not flag:
        pass

@hangs
def pattern():
    time.sleep(0.5)
    re.match(r"(a+)+$", "a" * 60 + "b")

@hangs
def hashes():
    hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 2_000_000_000)

@hangs
def connects():
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    for _ in range(3):  # its queue is full now
        client = socket.socket()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(server.getsockname())
        KEPT.append(client)
    time.sleep(0.1)
    socket.create_connection(server.getsockname())

@hangs
def future():
    pool = concurrent.futures.ThreadPoolExecutor(1)
    KEPT.append(pool)
    pool.submit(time.sleep, NO_LIMIT).result()

@app.task(name="hangs.swallows_its_limit", soft_time_limit=1)
def swallows_its_limit():
    try:
        threading.Event().wait()
    except SoftTimeLimitExceeded:
        pass
    threading.Event().wait()

@app.task(name="slow.continues_after_its_limit", soft_time_limit=1)
def continues_after_its_limit(seconds):
    goes_on = until(seconds)
    while goes_on():
        try:
            time.sleep(0.1)
        except SoftTimeLimitExceeded:
            pass


# --- slow and alive

def until(seconds):
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end

@slow
def sleeps_by_design(seconds):
    time.sleep(seconds)

@slow
def waits_by_design(seconds):
    threading.Event().wait(seconds)

@slow
def child_by_design(seconds):
    subprocess.run(["sleep", str(seconds)])

@slow
def hashes_by_design(seconds):
    began = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 100_000)
    each_s = (time.monotonic() - began) / 100_000
    hashlib.pbkdf2_hmac("sha256", b"word", b"salt", int(seconds / 3 / each_s))

@slow
def pattern_by_design(seconds):
    length, took_s = 18, 0.0
    while took_s < seconds / 5:
        length += 1
        began = time.monotonic()
        re.match(r"(a+)+$", "a" * length + "b")
        took_s = time.monotonic() - began

@slow
def counts(seconds):
    n, goes_on = 0, until(seconds)
    while goes_on():
        n += 1

@slow
def adds(seconds):
    goes_on, total = until(seconds), 0.0
    while goes_on():
        for i in range(100_000):
            total += i * 0.5

@slow
def nested(seconds):
    goes_on = until(seconds)
    rows = []
    while goes_on():
        rows.append(price(len(rows)))
        if len(rows) > 10_000:
            rows.clear()

def price(n):
    return sum(cost(part) for part in range(n % 50))

def cost(part):
    return part * 1.19

@slow
def recursive(seconds):
    goes_on = until(seconds)
    while goes_on():
        fibonacci(20)

def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

@slow
def serialises(seconds):
    goes_on, size = until(seconds), 0
    while goes_on():
        size += len(json.dumps({"rows": list(range(1000)), "size": size}))

@slow
def sorts(seconds):
    goes_on, turn = until(seconds), 0
    while goes_on():
        turn += 1
        sorted(((i * turn) % 9973 for i in range(50_000)), key=lambda value: -value)

@slow
def hashes_chunks(seconds):
    goes_on, digest, chunk = until(seconds), hashlib.sha256(), b"x" * 1_000_000
    while goes_on():
        digest.update(chunk)
        chunk = digest.digest() * 30_000

@slow
def receives_now_and_then(seconds):
    client, other = connected()
    def feed():
        goes_on = until(seconds)
        while goes_on():
            time.sleep(0.3)
            other.sendall(b"row")
        other.close()
    in_thread(feed)
    while client.recv(100):
        pass

@slow
def reads_a_child(seconds):
    script = f"import time\\nfor i in range({int(seconds / 0.3)}): print(i, flush=True); time.sleep(0.3)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        for line in child.stdout:
            pass

@slow
def selects_with_data(seconds):
    client, other = connected()
    goes_on = until(seconds)
    while goes_on():
        in_thread(lambda: (time.sleep(0.3), other.sendall(b"row")))
        select.select([client], [], [], 5)
        client.recv(100)

@slow
def polls_by_sleep(seconds):
    goes_on = until(seconds)
    while goes_on():
        time.sleep(0.4)

@slow
def polls_a_file(seconds):
    goes_on = until(seconds)
    while not os.path.exists("/nowhere/at/all") and goes_on():
        time.sleep(0.2)

@slow
def polls_a_queue(seconds):
    goes_on, items = until(seconds), queue.Queue()
    while goes_on():
        try:
            items.get(timeout=0.3)
        except queue.Empty:
            pass

@slow
def polls_an_event(seconds):
    goes_on, done = until(seconds), threading.Event()
    while goes_on():
        done.wait(0.3)

@slow
def polls_a_child(seconds):
    with subprocess.Popen(["sleep", str(seconds)]) as child:
        while child.poll() is None:
            time.sleep(0.2)

@slow
def working_child(seconds):
    script = f"import time\\nend = time.time() + {seconds}\\nwhile time.time() < end: pass"
    subprocess.run([sys.executable, "-c", script])

@slow
def polls_a_thread(seconds):
    thread = in_thread(time.sleep, seconds)
    while thread.is_alive():
        thread.join(0.3)

@slow
def asynchronous_ticks(seconds):
    async def ticks():
        goes_on = until(seconds)
        while goes_on():
            await asyncio.sleep(0.2)
    asyncio.run(ticks())

@slow
def polls_a_lock(seconds):
    goes_on, lock = until(seconds), threading.Lock()
    lock.acquire()
    while goes_on():
        lock.acquire(timeout=0.3)

@slow
def notified(seconds):
    goes_on, condition = until(seconds), threading.Condition()
    def notify():
        while goes_on():
            time.sleep(0.3)
            with condition:
                condition.notify()
    in_thread(notify)
    while goes_on():
        with condition:
            condition.wait(5)
'''

#: What each hang is said to wait for, as a regular expression of the whole sentence.
PORT = r"127\.0\.0\.1:\d+"
HERE = r"stuck_tasks\.py:\d+"
HANGS = {
    "sleeps": "in time.sleep",
    "receives": f"waiting in recv from {PORT}",
    "receives_with_a_timeout": f"waiting in poll for {PORT}",
    "sends": f"waiting in send to {PORT}",
    "lock_of_another_thread": f"waiting for a lock that thread keeper holds at {HERE}",
    "lock_of_its_own": f"waiting for a lock that thread MainThread holds at {HERE}",
    "reentrant_lock": "waiting for a lock that thread taker holds",
    "lock_of_nobody": f"waiting for a lock at {HERE}",
    "event": "waiting for an Event to be set",
    "condition": "waiting for a Condition to be notified",
    "queue_item": "waiting for an item in a queue",
    "simple_queue": f"waiting in items.get at {HERE}",
    "joins": "waiting for thread other to end",
    "child": r"waiting for child process \d+ \(sleep\)",
    "output_of_a_child": r"waiting for child process \d+ \(sleep\)",
    "pipe": "waiting for data from a pipe",
    "terminal": r"waiting for input from the terminal /dev/pts/\d+",
    "selects": f"waiting in select for 2 files or connections with {PORT}, {PORT}",
    "epoll": f"waiting in epoll for {PORT}",
    "file_lock": r"waiting for a lock of the file \S+\.lock that process \d+ \(python\S*\) holds",
    "database": r"waiting for a lock of the SQLite database \S+/shop\.sqlite",
    "result": r"waiting for the result of task [0-9a-f-]{36}",
    "asynchronous": f"waiting in asyncio at {HERE}",
    "spins": f"spinning at {HERE}",
    "pattern": f"inside C code that holds Python's lock, last seen at {HERE}",
    "hashes": f"inside C code called at {HERE}",
    "connects": f"connecting to {PORT}",
    "future": "waiting for a Future",
    "swallows_its_limit": "waiting for an Event to be set, after it caught the error of its soft time limit",
}

#: Slow tasks that look like a hang but for their own history.
BY_DESIGN = ("sleeps_by_design", "waits_by_design", "child_by_design", "hashes_by_design", "pattern_by_design")
#: Slow tasks whose progress can be seen.
PROGRESSES = (
    "counts", "adds", "nested", "recursive", "serialises", "sorts", "hashes_chunks", "receives_now_and_then",
    "reads_a_child", "selects_with_data", "polls_by_sleep", "polls_a_file", "polls_a_queue", "polls_an_event",
    "polls_a_child", "working_child", "polls_a_thread", "asynchronous_ticks", "polls_a_lock", "notified",
)  # fmt: skip


def write_stuck_project(folder: Path) -> Path:
    """Write ``stuck_tasks.py`` into a folder; the app is ``stuck_tasks``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stuck_tasks.py").write_text(MODULE, encoding="utf-8")
    return folder
