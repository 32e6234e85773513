"""
Calls of many libraries that wait for a moment, to see whether a signal that arrives meanwhile changes what they do.

As a program, it runs all of them in its main thread, and writes what each gave, as JSON.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import fcntl
import ftplib
import gzip
import http.client
import imaplib
import json
import lzma
import mmap
import multiprocessing
import multiprocessing.connection
import os
import poplib
import pty
import queue
import select
import selectors
import signal
import smtplib
import socket
import socketserver
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from celery_trace.clock import SystemClock
from celery_trace.model import ProcessRecord, Role
from tests.support.box_runs import BoxWithRuns

#: How long each call waits, seconds.
WAIT_S = 0.2
#: A call must not give up before.
LEAST_S = 0.8 * WAIT_S

CALLS: dict[str, Callable[[], object]] = {}
LATER = f"import sys, time; time.sleep({WAIT_S}); sys.stdout.write('done')"


def call(name: str, *needs: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def added(function: Callable[[], object]) -> Callable[[], object]:
        if all(module in sys.modules or find_spec(module) is not None for module in needs):
            CALLS[name] = function
        return function

    return added


def later(function: Callable[..., object], *args: object) -> threading.Thread:
    timer = threading.Timer(WAIT_S, function, args)
    timer.daemon = True
    timer.start()
    return timer


@contextlib.contextmanager
def pair(answer: bytes = b"sent") -> Iterator[socket.socket]:
    """A connection on which something arrives later."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        later(theirs.sendall, answer)
        yield ours


@contextlib.contextmanager
def pipe(answer: bytes = b"sent") -> Iterator[int]:
    out, into = os.pipe()

    def write() -> None:
        os.write(into, answer)
        os.close(into)

    later(write)
    yield out
    os.close(out)


@contextlib.contextmanager
def server(answer: bytes = b"") -> Iterator[int]:
    """A server on a port, which is silent for a while, answers once, and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    time.sleep(WAIT_S)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(2)
                    while connection.recv(65536):
                        pass

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]


def error_of(function: Callable[[], object]) -> str:
    """The class of the error that a client has when the server closes the connection."""
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return "no error"


# --- time, sockets, polling


@call("time.sleep")
def _() -> object:
    return time.sleep(WAIT_S)


@call("socket.recv")
def _() -> object:
    with pair() as ours:
        return ours.recv(10)


@call("socket.recv with a timeout")
def _() -> object:
    with pair() as ours:
        ours.settimeout(20)
        return ours.recv(10)


@call("socket.recv that times out")
def _() -> object:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(WAIT_S)
        return error_of(lambda: ours.recv(10))


@call("socket.recv with SO_RCVTIMEO")
def _() -> object:
    with pair() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, (20).to_bytes(8, sys.byteorder) + bytes(8))
        return ours.recv(10)


@call("socket.recv_into")
def _() -> object:
    with pair() as ours:
        data = bytearray(10)
        return ours.recv_into(data), bytes(data)


@call("socket.recvmsg")
def _() -> object:
    with pair() as ours:
        return ours.recvmsg(10)[0]


@call("socket.accept")
def _() -> object:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        later(socket.create_connection, listening.getsockname())
        return listening.accept()[1][0]


@call("socket.sendall")
def _() -> object:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        size = 4_000_000
        got: list[int] = []

        def receive() -> None:
            while sum(got) < size:
                got.append(len(theirs.recv(65536)))

        receiving = later(receive)
        ours.sendall(bytes(size))
        receiving.join()
        return sum(got)


@call("socket.makefile")
def _() -> object:
    with pair(b"a line\n") as ours, ours.makefile("rb") as file:
        return file.readline()


@call("ssl")
def _() -> object:
    with server(b"no TLS") as port, socket.create_connection(("127.0.0.1", port)) as ours:
        return error_of(lambda: ssl.create_default_context().wrap_socket(ours, server_hostname="localhost"))


@call("select")
def _() -> object:
    with pair() as ours:
        return len(select.select([ours], [], [], 20)[0])


@call("select that times out")
def _() -> object:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return select.select([ours], [], [], WAIT_S)


@call("poll")
def _() -> object:
    with pair() as ours:
        poller = select.poll()
        poller.register(ours, select.POLLIN)
        return len(poller.poll(20_000))


@call("epoll")
def _() -> object:
    with pair() as ours, select.epoll() as poller:
        poller.register(ours, select.EPOLLIN)
        return len(poller.poll(20))


@call("selectors")
def _() -> object:
    with pair() as ours, selectors.DefaultSelector() as selector:
        selector.register(ours, selectors.EVENT_READ)
        return len(selector.select(20))


# --- pipes, files, children


@call("os.read")
def _() -> object:
    with pipe() as out:
        return os.read(out, 10)


@call("os.write")
def _() -> object:
    out, into = os.pipe()
    reading = later(os.read, out, 65536)
    written = sum(os.write(into, bytes(65536)) for _ in range(2))
    reading.join()
    os.close(into)
    os.close(out)
    return written


@call("open of a fifo")
def _() -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fifo"
        os.mkfifo(path)
        later(path.write_text, "line")
        return path.read_text()


@call("gzip")
def _() -> object:
    with pipe(gzip.compress(b"data")) as out, os.fdopen(os.dup(out), "rb") as file, gzip.open(file) as packed:
        return packed.read()


@call("lzma")
def _() -> object:
    with pipe(lzma.compress(b"data")) as out, os.fdopen(os.dup(out), "rb") as file, lzma.open(file) as packed:
        return packed.read()


@call("pty")
def _() -> object:
    master, slave = pty.openpty()
    later(os.write, slave, b"typed")
    read = os.read(master, 10)
    os.close(master)
    os.close(slave)
    return read


@call("mmap")
def _() -> object:
    with tempfile.TemporaryFile() as file:
        file.truncate(4_000_000)
        ends_s = time.monotonic() + WAIT_S
        with mmap.mmap(file.fileno(), 4_000_000) as mapped:
            while time.monotonic() < ends_s:
                mapped[:1_000_000] = b"x" * 1_000_000
                mapped.flush()
            return mapped[:1]


def _child() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", LATER], stdout=subprocess.PIPE)


@call("subprocess.run")
def _() -> object:
    return subprocess.run([sys.executable, "-S", "-c", LATER], capture_output=True, check=True, timeout=20).stdout


@call("Popen.wait")
def _() -> object:
    with _child() as child:
        return child.wait()


@call("Popen.communicate with a timeout")
def _() -> object:
    with _child() as child:
        return child.communicate(timeout=20)[0]


@call("os.waitpid")
def _() -> object:
    child = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", LATER], os.environ)
    return os.waitpid(child, 0)[1]


@call("os.waitid")
def _() -> object:
    child = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", LATER], os.environ)
    found = os.waitid(os.P_PID, child, os.WEXITED)
    return found.si_status if found is not None else None


HOLD = f"""
import fcntl, sys, time
with open(sys.argv[1], "w") as held:
    getattr(fcntl, sys.argv[2])(held, fcntl.LOCK_EX); print("x", flush=True); time.sleep({WAIT_S})
"""


def _locked(how: str) -> object:
    with tempfile.NamedTemporaryFile() as file:
        words = [sys.executable, "-S", "-c", HOLD, file.name, how]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as holder, open(file.name, "w") as held:
            assert holder.stdout is not None
            holder.stdout.read(1)
            return getattr(fcntl, how)(held, fcntl.LOCK_EX)


@call("fcntl.flock")
def _() -> object:
    return _locked("flock")


@call("fcntl.lockf")
def _() -> object:
    return _locked("lockf")


@call("sqlite3")
def _() -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/db"
        one = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        one.execute("create table t (a)")
        one.execute("begin exclusive")
        later(one.execute, "commit")
        other = sqlite3.connect(path, timeout=20)
        rows = other.execute("insert into t values (1)").rowcount
        other.close()
        one.close()
        return rows


# --- threads and processes


@call("Event")
def _() -> object:
    event = threading.Event()
    later(event.set)
    return event.wait(20)


@call("Lock")
def _() -> object:
    lock = threading.Lock()
    lock.acquire()
    later(lock.release)
    return lock.acquire()


@call("Lock that times out")
def _() -> object:
    lock = threading.Lock()
    lock.acquire()
    return lock.acquire(timeout=WAIT_S)


@call("Condition")
def _() -> object:
    condition = threading.Condition()

    def notify() -> None:
        with condition:
            condition.notify()

    later(notify)
    with condition:
        return condition.wait(20)


@call("Semaphore")
def _() -> object:
    semaphore = threading.Semaphore(0)
    later(semaphore.release)
    return semaphore.acquire()


@call("Thread.join")
def _() -> object:
    thread = threading.Thread(target=time.sleep, args=(WAIT_S,))
    thread.start()
    return thread.join()


@call("queue.Queue")
def _() -> object:
    jobs: queue.Queue[int] = queue.Queue()
    later(jobs.put, 7)
    return jobs.get(timeout=20)


@call("queue.SimpleQueue")
def _() -> object:
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    later(jobs.put, 7)
    return jobs.get()


@call("concurrent.futures")
def _() -> object:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: time.sleep(WAIT_S) or 7).result(20)


@call("multiprocessing.Queue")
def _() -> object:
    jobs: multiprocessing.Queue[int] = multiprocessing.Queue()
    later(jobs.put, 7)
    got = jobs.get(timeout=20)
    jobs.close()
    return got


@call("multiprocessing.Lock")
def _() -> object:
    lock = multiprocessing.Lock()
    lock.acquire()
    later(lock.release)
    return lock.acquire()


@call("multiprocessing.Pipe")
def _() -> object:
    out, into = multiprocessing.Pipe()
    later(into.send, "sent")
    return multiprocessing.connection.wait([out], 20) == [out], out.recv()


@call("billiard", "billiard")
def _() -> object:
    import billiard

    out, into = billiard.Pipe()
    later(into.send, "sent")
    return out.poll(20), out.recv()


@call("sigtimedwait")
def _() -> object:
    later(os.kill, os.getpid(), signal.SIGUSR2)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    found = signal.sigtimedwait([signal.SIGUSR2], 20)
    return found.si_signo if found is not None else None


@call("signal.sigwait")
def _() -> object:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    later(os.kill, os.getpid(), signal.SIGUSR2)
    return int(signal.sigwait([signal.SIGUSR2]))


# --- loops


@call("asyncio.sleep")
def _() -> object:
    return asyncio.run(asyncio.sleep(WAIT_S, "slept"))


@call("asyncio streams")
def _() -> object:
    async def read(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = await reader.read(10)
        writer.close()
        return data

    with server(b"sent") as port:
        return asyncio.run(read(port))


@call("asyncio.to_thread")
def _() -> object:
    async def run() -> None:
        await asyncio.to_thread(time.sleep, WAIT_S)

    return asyncio.run(run())


@call("gevent.sleep", "gevent")
def _() -> object:
    import gevent

    return gevent.sleep(WAIT_S)


@call("gevent.socket", "gevent")
def _() -> object:
    from gevent import socket as green

    with server(b"sent") as port, green.create_connection(("127.0.0.1", port)) as ours:
        return ours.recv(10)


@call("socketserver")
def _() -> object:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as serving:
        serving.timeout = 20
        later(socket.create_connection, serving.server_address)
        return serving.handle_request()


@call("tornado", "tornado")
def _() -> object:
    from tornado.ioloop import IOLoop

    async def run() -> str:
        await asyncio.sleep(WAIT_S)
        return "slept"

    return IOLoop(make_current=False).run_sync(run)


# --- clients

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"


@call("http.client")
def _() -> object:
    with server(ANSWER) as port:
        client = http.client.HTTPConnection("127.0.0.1", port)
        client.request("GET", "/")
        body = client.getresponse().read()
        client.close()
        return body


@call("urllib.request")
def _() -> object:
    with server(ANSWER) as port, urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        return answer.read()


@call("urllib3", "urllib3")
def _() -> object:
    import urllib3

    with server(ANSWER) as port, urllib3.PoolManager() as pool:
        return pool.request("GET", f"http://127.0.0.1:{port}/", retries=False).data


@call("requests", "requests")
def _() -> object:
    import requests

    with server(ANSWER) as port:
        return requests.get(f"http://127.0.0.1:{port}/", timeout=20).content


@call("ftplib")
def _() -> object:
    with server(b"220 ready\r\n") as port:
        client = ftplib.FTP()
        welcome = client.connect("127.0.0.1", port)
        client.close()
        return welcome


@call("smtplib")
def _() -> object:
    with server(b"220 ready\r\n") as port:
        client = smtplib.SMTP()
        answer = client.connect("127.0.0.1", port)
        client.close()
        return answer


@call("imaplib")
def _() -> object:
    with server(b"* BYE later\r\n") as port:
        return error_of(lambda: imaplib.IMAP4("127.0.0.1", port))


@call("poplib")
def _() -> object:
    with server(b"+OK ready\r\n") as port:
        client = poplib.POP3("127.0.0.1", port)
        client.close()
        return client.getwelcome()


@call("redis", "redis")
def _() -> object:
    from redis.connection import Connection

    with server(b"+PONG\r\n") as port:
        connection = Connection(port=port, protocol=2, driver_info=None, socket_timeout=20)
        sock = connection._connect()
        connection._sock = sock
        connection._parser.on_connect(connection)
        connection.send_command("PING", check_health=False)
        answer = connection.read_response()
        connection.disconnect()
        return answer


@call("pymysql", "pymysql")
def _() -> object:
    import pymysql

    with server() as port:
        return error_of(lambda: pymysql.connect(host="127.0.0.1", port=port, user="u"))


@call("psycopg", "psycopg")
def _() -> object:
    import psycopg

    with server(b"N") as port:
        return error_of(lambda: psycopg.connect(host="127.0.0.1", port=port, user="u", dbname="d", connect_timeout=20))


@call("amqp", "amqp")
def _() -> object:
    import amqp

    with server() as port:
        return error_of(lambda: amqp.Connection(f"127.0.0.1:{port}", connect_timeout=20).connect())


@call("kombu", "kombu")
def _() -> object:
    from kombu import Connection

    with Connection("memory://") as connection, Connection("memory://") as other:
        jobs = connection.SimpleQueue("jobs")
        later(lambda: other.SimpleQueue("jobs").put("sent"))
        got = jobs.get(timeout=20).payload
        jobs.close()
        return got


@call("websocket-client", "websocket")
def _() -> object:
    import websocket

    with server(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as port:
        return error_of(lambda: websocket.create_connection(f"ws://127.0.0.1:{port}/", timeout=20))


# --- C code without a retry of its own


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


@call("read of the C library")
def _() -> object:
    with pipe() as out:
        return _libc().read(out, ctypes.create_string_buffer(10), 10), ctypes.get_errno()


@call("recv of the C library")
def _() -> object:
    with pair() as ours:
        return _libc().recv(ours.fileno(), ctypes.create_string_buffer(10), 10, 0), ctypes.get_errno()


def main(folder: Path, number: int) -> None:
    """Run all calls. With a signal's number, the stack is written on that signal, as in a traced process."""
    process = ProcessRecord(uid="p1", host="h", pid=os.getpid(), started_at_s=0.0, role=Role.CHILD)
    box = BoxWithRuns(folder / "p1.box", process, SystemClock())
    assert not number or box.dump_on(number)
    dump = folder / "p1.dump"
    found: dict[str, tuple[str, bool, int]] = {}
    print("ready", flush=True)
    for name, function in CALLS.items():
        before, began_s = dump.stat().st_size if number else 0, time.monotonic()
        try:
            result = repr(function())
        except BaseException as error:
            result = f"raised {error!r}"
        in_time = time.monotonic() - began_s >= LEAST_S
        found[name] = result, in_time, (dump.stat().st_size if number else 0) - before
    box.close()
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
