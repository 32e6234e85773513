"""The demo shop on real servers with a real worker: one store for its requests and its tasks."""

import http.client
import http.cookiejar
import json
import re
import sqlite3
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack, suppress

import kombu
import pytest

from celery_trace.control.signing import load_key
from celery_trace.settings import Settings
from celery_trace.shell.live.client import LiveClient
from tests.support.processes import REPOSITORY, Program, free_port, trace_environment
from tests.support.shells import answer, say
from tests.support.waiting import wait_until

SITE = REPOSITORY / "examples" / "django_site"
SETTINGS = {"memory_recheck_runs": 20}
LOOP = "while True: pass\n"


class Browser:
    """A visitor with cookies, who takes an error page as an answer."""

    def __init__(self, address):
        self.address = address
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))

    def get(self, path, data=None):
        """Status and text."""
        request = urllib.request.Request(self.address + path, data=data, headers={"Referer": self.address})
        try:
            with self._opener.open(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def post(self, page, path, **fields):
        """Send a form with the token that the page has."""
        _, text = self.get(page)
        fields["csrfmiddlewaretoken"] = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', text)[1]
        return self.get(path, urllib.parse.urlencode(fields).encode())


@pytest.fixture
def environment(own_broker_url, trace_dir, tmp_path):
    """What a site and its worker share."""
    found = trace_environment(broker_url=own_broker_url, trace_dir=trace_dir, switch=False, settings=SETTINGS)
    found.update(
        DEMO_DATA_DIR=str(tmp_path), DJANGO_SECRET_KEY="for-this-test", DJANGO_SETTINGS_MODULE="config.settings"
    )
    return found


@pytest.fixture
def migrated(environment, tmp_path):
    """The shop's database with its products and the admin's user."""
    for words in (["migrate", "-v0"], ["seed_demo", "--password", "seen"]):
        program = Program(
            [sys.executable, "manage.py", *words], cwd=SITE, log=tmp_path / "manage.log", environment=environment
        )
        with program:
            assert program.wait(timeout_s=120) == 0, program.tail()


@pytest.fixture
def serve(migrated, environment, tmp_path):
    """Start a web server of the site; gives a visitor to it."""
    with ExitStack() as stack:

        def start(*words, **extra):
            port = free_port()
            words = [word.replace("PORT", str(port)) for word in words]
            program = Program(
                [sys.executable, "-m", *words],
                cwd=SITE,
                log=tmp_path / f"server-{port}.log",
                environment={**environment, **extra},
            )
            stack.enter_context(program)
            browser = Browser(f"http://127.0.0.1:{port}")

            def answers():
                try:
                    return browser.get("/")[0] == 200
                except OSError:
                    assert program.running, program.tail()
                    return False

            wait_until(answers, f"{program} answers", timeout_s=60, explain=program.tail)
            browser.program = program
            return browser

        yield start


GUNICORN = ("gunicorn", "config.wsgi", "--bind", "127.0.0.1:PORT", "--workers", "2", "--preload")
UVICORN = ("uvicorn", "config.asgi:application", "--port", "PORT", "--lifespan", "off")


def only(rows):
    (row,) = rows
    return row


def failure_named(records, name, **more):
    rows = records.wait(lambda queries: queries.failures(name=name, **more).rows, f"a failure of {name}")
    return records.queries.failure(rows[0].id)


def test_gunicorn_and_the_worker_fill_one_store(serve, start_worker, environment, records, tmp_path):
    worker = start_worker("config", SITE, switch=False, extra=environment)
    browser = serve(*GUNICORN)
    assert browser.get("/error/")[0] == 500
    assert browser.post("/", "/send/create_error/")[0] == 200

    request = failure_named(records, "GET /error/")
    assert (request.kind, request.outcome, request.request.status) == ("request", "failed", 500)
    values = {value.name: value.value for value in request.frames[0].locals}
    assert "Hello" in values["context_data"]
    assert (values["a"], values["c"], values["d"]) == ("5", "6", "10")
    assert request.frames[0].file == str(SITE / "shop" / "views.py")

    task = failure_named(records, "shop.tasks.create_error")
    values = {value.name: value.value for value in task.frames[0].locals}
    assert "Hello" in values["context_data"]

    # The stored result carries the key of our record.
    with sqlite3.connect(tmp_path / "db.sqlite3") as database:
        meta = only(
            database.execute(
                "SELECT meta FROM django_celery_results_taskresult WHERE task_id = ?", [task.task_id]
            ).fetchall()
        )
    database.close()
    assert json.loads(meta[0])["celery_trace"] == {"failure": task.id}

    # The processes that were forked after the application was loaded have records of their own.
    web = records.wait(
        lambda queries: [
            process for worker in queries.workers().rows for process in worker.processes if process.role == "web"
        ],
        "a traced web process",
        explain=worker.tail,
    )
    assert browser.program.pid not in {process.pid for process in web}


def test_a_task_that_a_request_sent_carries_the_requests_id(serve, start_worker, environment, records):
    start_worker("config", SITE, switch=False, extra=environment)
    browser = serve(*GUNICORN)
    browser.post("/", "/send/create_error/")
    task = failure_named(records, "shop.tasks.create_error")
    run = records.wait(
        lambda queries: queries.runs(name="POST /send/<slug:name>/").rows, "the run of the request that sent it"
    )
    assert task.task.headers["trace_request"] == run[0].task_id


def test_uvicorn_records_async_views_and_broken_streams(serve, start_worker, environment, records):
    start_worker("config", SITE, switch=False, extra=environment)
    browser = serve(*UVICORN)
    assert browser.get("/async-error/")[0] == 500
    with pytest.raises((OSError, http.client.HTTPException)):
        browser.get("/stream/?break=1")
    assert failure_named(records, "GET /async-error/").exception.type == "LookupError"
    broken = failure_named(records, "GET /stream/")
    assert broken.exception.message == "line 5 is missing"
    assert "streamed" in broken.note


def test_a_request_that_gunicorn_aborts_is_recorded_as_a_time_limit(serve, start_worker, environment, records):
    start_worker("config", SITE, switch=False, extra=environment)
    browser = serve(*GUNICORN, "--timeout", "2")
    with suppress(OSError, http.client.HTTPException):  # the connection may as well be cut
        assert browser.get("/slow/?seconds=30")[0] == 500
    failure = failure_named(records, "GET /slow/")
    assert failure.outcome == "time_limit"
    assert {"seconds": "30.0"}.items() <= {
        value.name: value.value for frame in failure.frames for value in frame.locals if frame.function == "slow"
    }.items()


def test_in_a_django_database_the_admin_shows_what_the_worker_and_the_site_recorded(serve, start_worker, environment):
    environment["CELERY_TRACE_STORE"] = "django"
    start_worker("config", SITE, switch=False, extra=environment)
    browser = serve(*GUNICORN)
    browser.get("/error/")
    browser.post("/", "/send/create_error/")
    status, _ = browser.post("/admin/login/", "/admin/login/?next=/admin/", username="demo", password="seen")
    assert status == 200

    def both():
        _, page = browser.get("/admin/django_bridge/failure/")
        return "GET /error/" in page and "shop.tasks.create_error" in page and page

    page = wait_until(both, "both failures in the admin", explain=browser.program.tail)
    links = re.findall(r'href="(/admin/django_bridge/failure/[0-9a-f]{16}/change/[^"]*)"[^>]*>shop\.tasks', page)
    _, detail = browser.get(links[0])
    assert "context_data" in detail
    assert "Hello" in detail
    result = re.search(r'href="(/admin/django_celery_results/taskresult/\d+/change/)"', detail)
    assert result, "no link to the stored result"
    _, stored = browser.get(result[1])
    assert links[0].partition("?")[0] in stored


SERVERS = {
    "runserver": ("django", "runserver", "127.0.0.1:PORT", "--noreload"),
    "runserver that reloads": ("django", "runserver", "127.0.0.1:PORT"),
    "gunicorn": GUNICORN,
    "gunicorn with threads": ("gunicorn", "config.wsgi", "--bind", "127.0.0.1:PORT", "--threads", "4"),
    "uvicorn": UVICORN,
}


def test_the_live_shell_opens_in_the_web_process_that_failed_whatever_serves_it(
    serve, start_worker, environment, own_broker_url, trace_dir, records
):
    """The shop asks for the live shell; its web processes answer over the broker, each command signed."""
    start_worker("config", SITE, switch=False, extra=environment)
    client = LiveClient(lambda: kombu.Connection(own_broker_url), load_key(Settings(dir=str(trace_dir))))
    seen = set()
    for name, words in SERVERS.items():
        browser = serve(*words)
        browser.get("/error/")

        def new_one(queries, name=name):
            rows = queries.failures(name="GET /error/").rows
            return next((queries.kept(row.id) for row in rows if row.id not in seen), None)

        kept = records.wait(new_one, f"the process of {name} says that it keeps the objects")
        seen.add(kept.failure)
        session = client.open(kept, kept.failure, "tester", timeout_s=30.0)
        try:
            assert answer(session, "trace.context_data") == "'Hello'", name
            assert answer(session, "trace.request.path, request is trace.request") == "('/error/', True)", name
            pid = int(answer(session, "__import__('os').getpid()"))
            assert pid == records.queries.failure(kept.failure).pid, name
            # A command that loops stops no request.
            done = []
            thread = threading.Thread(target=lambda session=session, done=done: done.append(say(session, LOOP)))
            thread.start()
            assert browser.get("/")[0] == 200, name
            wait_until(
                lambda session=session, thread=thread: session.interrupt() or not thread.is_alive(),
                "the loop is interrupted",
                every_s=0.3,
            )
            assert "KeyboardInterrupt" in done[0][1].of("error"), name
            assert browser.program.stop() is not None, name
            if name.startswith("gunicorn"):  # the others end by the signal itself, without a word
                wait_until(lambda session=session: session.gone, f"{name} says goodbye", explain=browser.program.tail)
                assert "the process ends" in session.gone, name
        finally:
            session.close()
        records.wait(lambda queries, kept=kept: queries.kept(kept.failure) is None, f"the store knows of {name}'s end")


@pytest.mark.parametrize("server", ["gunicorn", "uvicorn"])
def test_a_view_that_leaks_is_accused_at_its_line_with_its_holder(server, serve, start_worker, environment, records):
    start_worker("config", SITE, switch=False, extra=environment)
    browser = serve(*SERVERS[server])
    marked = next(
        number
        for number, line in enumerate((SITE / "shop" / "views.py").read_text().splitlines(), 1)
        if "# LEAK" in line
    )

    def accused():
        for _ in range(20):
            browser.get("/leak/")
        return [
            leak
            for leak in records.queries.leaks(name="GET /leak/").rows
            if leak.verdict in {"leaking", "growing"} and leak.file.endswith("shop/views.py")
        ]

    leaks = wait_until(accused, "the leaking view in the leak table", timeout_s=120, explain=browser.program.tail)
    assert abs(leaks[0].line - marked) <= 1, leaks[0]
    assert (leaks[0].kind, leaks[0].role) == ("request", "web")
    assert leaks[0].retained_by[0] == "shop.views (module)"
    assert leaks[0].retained_by[1].startswith("_visitors: list[")
    assert leaks[0].kept_bytes_per_run > 1000


def test_a_web_process_that_is_killed_in_a_request_leaves_what_it_was_doing(serve, start_worker, environment, records):
    import os
    import signal
    import threading

    start_worker("config", SITE, switch=False, extra=environment)
    browser = serve("gunicorn", "config.wsgi", "--bind", "127.0.0.1:PORT", "--workers", "1")

    def ask():
        with suppress(OSError, http.client.HTTPException):
            browser.get("/slow/?seconds=50")

    asking = threading.Thread(target=ask)
    asking.start()
    web = records.wait(
        lambda queries: [
            process.pid
            for worker in queries.workers().rows
            for process in worker.processes
            if process.role == "web" and process.ended_at is None
        ],
        "the web process in the store",
    )
    # The black box is written every tenth of a second; the visitor's request is the one that it must show.
    wait_until(
        lambda: any(b"GET /slow/" in box.read_bytes() for box in (records_folder(environment)).glob("*.box")),
        "the request in the black box",
    )
    os.kill(only(web), signal.SIGKILL)
    asking.join(60)
    failure = failure_named(records, "GET /slow/")
    assert failure.outcome == "lost"
    assert failure.kind == "request"


def records_folder(environment):
    """The spool folder of a test's site."""
    from pathlib import Path

    return Path(environment["CELERY_TRACE_DIR"]) / "spool"
