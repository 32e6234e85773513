"""A project whose tasks treat the interpreter as users now and then do; each says what it saw afterwards."""

from __future__ import annotations

import asyncio
import gc
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

from celery import Celery
from celery.beat import Scheduler
from celery.signals import task_received, worker_process_init

app = Celery("memory_project", broker=os.environ.get("CELERY_BROKER_URL", "memory://"), set_as_current=False)
app.conf.update(
    task_ignore_result=True, broker_connection_retry_on_startup=True, imports=("tests.support.memory_project",)
)

if "CELERY_CUSTOM_WORKER_POOL" in os.environ:
    from celery_aio_pool import patch_celery_tracer

    patch_celery_tracer()  # as its manual asks a project to

#: What the user did to a process before its first task; words of MEMORY_PROJECT.
STATE = os.environ.get("MEMORY_PROJECT", "").split(",")
_kept: list[Any] = []


@worker_process_init.connect(weak=False)
def prepare(**_: Any) -> None:
    if "tracing" in STATE:
        tracemalloc.start(3)
    if "gc_off" in STATE:
        gc.disable()
    if "frozen" in STATE:
        gc.freeze()


_received: list[Any] = []


@task_received.connect(weak=False)
def note(request: Any = None, **_: Any) -> None:
    """Leaks in the worker's main process, if that is wanted: what every message brings."""
    if "notes" in STATE:
        _received.append({"id": request.id, "body": request.id * 600})  # NOTE


class KeepingScheduler(Scheduler):
    """Leaks in the scheduler's process: what each of its turns brings."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.turns: list[bytearray] = []
        super().__init__(*args, **options)

    def tick(self, *args: Any, **options: Any) -> float:
        self.turns.append(bytearray(20_000))  # TURN
        return min(0.2, super().tick(*args, **options))


def say(to: str, **facts: Any) -> None:
    """Write what was seen, all at once."""
    draft = Path(f"{to}.draft")
    draft.write_text(json.dumps({"pid": os.getpid(), **facts}))
    draft.rename(to)


@app.task(name="memory.keep")
def keep(size: int = 10_000) -> None:
    """Leaks."""
    _kept.append(bytearray(size))  # KEEP


@app.task(name="memory.keep_slowly")
def keep_slowly(size: int = 4_000) -> None:
    """Leaks, and waits as a task waits for its database."""
    _kept.append(bytes(size))  # KEEP SLOWLY
    time.sleep(0.01)


@app.task(name="memory.keep_awaiting")
async def keep_awaiting(size: int = 4_000) -> None:
    """Leaks, and waits as a coroutine does."""
    _kept.append(bytes(size))  # KEEP AWAITING
    await asyncio.sleep(0.01)


@app.task(name="memory.wait")
def wait() -> None:
    """Waits, and keeps nothing."""
    time.sleep(0.01)


@app.task(name="memory.state")
def state(to: str) -> None:
    """What the user's own settings are by now."""
    say(
        to,
        tracing=tracemalloc.is_tracing(),
        depth=tracemalloc.get_traceback_limit(),
        traces=len(tracemalloc.take_snapshot().traces) if tracemalloc.is_tracing() else 0,
        collecting=gc.isenabled(),
        frozen=gc.get_freeze_count(),
    )


@app.task(name="memory.forks")
def forks(to: str) -> None:
    """Forks, lets the child work and leave in the raw way, and goes on."""
    child = os.fork()
    if child == 0:
        _kept.append([object() for _ in range(1000)])
        os._exit(7)
    say(to, status=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


@app.task(name="memory.forks_and_raises")
def forks_and_raises(to: str) -> None:
    """The child comes back into Celery's own code by an exception, and leaves there."""
    child = os.fork()
    if child == 0:
        try:
            raise KeyError("in the child")
        finally:
            os._exit(0)
    say(to, status=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


@app.task(name="memory.executes")
def executes(to: str) -> None:
    """Another program, by fork and exec."""
    done = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True, check=True)
    say(to, said=done.stdout.strip())


_seen = 0


def _profile(*_: Any) -> None:
    global _seen
    _seen += 1


@app.task(name="memory.set_profile")
def set_profile() -> None:
    """Installs a profile function and leaves it on."""
    sys.setprofile(_profile)


@app.task(name="memory.profile_state")
def profile_state(to: str) -> None:
    """Whether it is still there."""
    mine = sys.getprofile() is _profile
    sys.setprofile(None)
    say(to, mine=mine, seen=_seen)


@app.task(name="memory.leaves")
def leaves() -> None:
    """Ends its process without a word."""
    os._exit(3)


_no_source: dict[str, Any] = {}
exec(compile("held = []\ndef hold(n):\n    held.append(b'x' * n)\n", "<made up>", "exec"), _no_source)


@app.task(name="memory.without_source")
def without_source(size: int = 10_000) -> None:
    """Leaks at a line that no file has."""
    _no_source["hold"](size)


@app.task(name="memory.from_a_file")
def from_a_file(path: str, size: int = 10_000) -> None:
    """Leaks in code that was read from a file once, whatever the file says now."""
    function = _loaded.get(path)
    if function is None:
        space: dict[str, Any] = {}
        exec(compile(Path(path).read_text(), path, "exec"), space)
        function = _loaded[path] = space["hold"]
    function(size)


_loaded: dict[str, Any] = {}


@app.task(name="memory.native")
def native(size: int = 3_000_000) -> None:
    """Maps memory and keeps it, beside what Python does."""
    _kept.append(mmap.mmap(-1, size))
    _kept.append([str(number) for number in range(1000)])


_opened: list[Any] = []


@app.task(name="memory.opens_files")
def opens_files() -> None:
    """Never closes its file."""
    file = open(__file__)  # noqa: SIM115 # FILES
    _opened.append(file)


@app.task(name="memory.opens_sockets")
def opens_sockets() -> None:
    """Never closes its sockets."""
    for _ in range(4):
        _opened.append(socket.socket())  # SOCKETS


@app.task(name="memory.starts_threads")
def starts_threads() -> None:
    """Its thread never ends."""
    thread = threading.Thread(target=threading.Event().wait, daemon=True)  # THREADS
    thread.start()


@app.task(name="memory.starts_processes")
def starts_processes() -> None:
    """Never waits for its process."""
    _opened.append(subprocess.Popen([sys.executable, "-V"], stdout=subprocess.DEVNULL))  # CHILDREN


@app.task(name="memory.opens_loops")
def opens_loops() -> None:
    """Never closes its event loop."""
    loop = asyncio.new_event_loop()  # LOOPS
    loop.run_until_complete(asyncio.sleep(0))
    _opened.append(loop)


def compute(seconds: float) -> None:
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        sum(range(200))


@app.task(name="memory.computes_and_sleeps")
def computes_and_sleeps(seconds: float) -> None:
    """Of its time, seven tenths of computing in one function, three tenths of waiting in another."""
    compute(0.7 * seconds)
    rest(0.3 * seconds)


def rest(seconds: float) -> None:
    time.sleep(seconds)


_gate = threading.Lock()


@app.task(name="memory.waits_for_a_lock")
def waits_for_a_lock(seconds: float) -> None:
    """Waits for a lock that another thread has."""
    _gate.acquire()
    threading.Timer(seconds, _gate.release).start()
    with _gate:
        pass


@app.task(name="memory.computes_shortly")
def computes_shortly() -> None:
    """Two milliseconds that keep the interpreter."""
    until_s = time.perf_counter() + 0.002
    while time.perf_counter() < until_s:
        pass


@app.task(name="memory.slow")
def slow(seconds: float) -> None:
    """Takes its time."""
    time.sleep(seconds)
