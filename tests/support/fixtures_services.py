"""
The servers that people run celery-trace with, each started for the run on free ports of loopback.

A server that already runs on the machine is never touched. Programs come from Debian's packages;
where one is missing the test is skipped, and fails under ``CI``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import leftovers, requirements
from tests.support.processes import Program, clean_environment, free_port
from tests.support.waiting import wait_until


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _folder(name: str, owner: str | None = None) -> Iterator[Path]:
    """
    A folder for a server's data, removed afterwards.

    Not under ``tmp_path``: that is closed to other users, and PostgreSQL refuses to run as root.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"trace-{name}-"))
    if owner is not None:
        shutil.chown(folder, owner, owner)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _serving(
    words: Sequence[str],
    *,
    folder: Path,
    port: int,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> Iterator[Program]:
    with tempfile.TemporaryDirectory(prefix="trace-log-") as logs:
        program = Program(words, cwd=folder, log=Path(logs) / "server.log", environment=environment)
        with program:
            leftovers.outlives_tests(program.pid)

            def accepts() -> bool:
                assert program.running, f"{program} ended.\n{program.tail()}"
                return _accepts(port)

            wait_until(accepts, f"{program} accepts connections", timeout_s=timeout_s, explain=program.tail)
            yield program


def _run(words: Sequence[str], **options: object) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **options)
    assert done.returncode == 0, f"{words[0]}: {done.stdout}\n{done.stderr}"


def _as_user(name: str, words: Sequence[str]) -> list[str]:
    """The command as another user where we are root, and as it stands where we are not."""
    if os.geteuid() != 0:
        return list(words)
    setpriv = requirements.program("setpriv", package="util-linux")
    return [setpriv, f"--reuid={name}", f"--regid={name}", "--clear-groups", *words]


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Redis itself; the database is empty."""
    server = requirements.program("redis-server", package="redis-server")
    port = free_port()
    with _folder("redis") as folder:
        words = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        with _serving(words, folder=folder, port=port):
            yield f"redis://127.0.0.1:{port}/0"


@dataclass(frozen=True)
class RabbitMQ:
    """A running RabbitMQ: its address, and its ``rabbitmqctl``."""

    url: str
    control: Callable[..., None]


@pytest.fixture(scope="session")
def rabbitmq_url(rabbitmq: RabbitMQ) -> str:
    """The address of RabbitMQ with its default user."""
    return rabbitmq.url


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """RabbitMQ with its default user; plugins off."""
    server = requirements.program("rabbitmq-server", package="rabbitmq-server")
    # Debian's wrapper insists on its own user and folders; the program behind it runs as whoever starts it.
    behind = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    server = str(behind[-1]) if behind else server
    epmd = requirements.program("epmd", package="erlang-base")
    port, distribution_port, epmd_port = free_port(), free_port(), free_port()
    with _folder("rabbitmq") as folder:
        (folder / "plugins").write_text("[].\n")
        environment = clean_environment(
            {
                "HOME": str(folder),
                "ERL_EPMD_PORT": str(epmd_port),
                "ERL_EPMD_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODENAME": f"trace{port}@localhost",
                "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODE_PORT": str(port),
                "RABBITMQ_DIST_PORT": str(distribution_port),
                "RABBITMQ_MNESIA_BASE": str(folder / "data"),
                "RABBITMQ_LOG_BASE": str(folder / "logs"),
                "RABBITMQ_PID_FILE": str(folder / "pid"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
                "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
                "RABBITMQ_CONFIG_FILE": str(folder / "none"),
                # An Erlang machine takes as many schedulers as it sees cores, and each spins before it sleeps.
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            }
        )
        # Erlang would leave a port mapper of its own behind; ours ends with the fixture.
        with _serving([epmd, "-port", str(epmd_port)], folder=folder, port=epmd_port, environment=environment):
            with _serving([server], folder=folder, port=port, environment=environment, timeout_s=120):

                def control(*words: str) -> None:
                    program = str(Path(server).with_name("rabbitmqctl"))
                    # Its own short life needs no scheduler for each core either.
                    limits = {"RABBITMQ_CTL_ERL_ARGS": "+S 1:1"}
                    _run([program, *words], cwd=folder, env=environment | limits)

                yield RabbitMQ(f"amqp://guest:guest@127.0.0.1:{port}//", control)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """An empty PostgreSQL database, as an SQLAlchemy URL for psycopg."""
    places = ("/usr/lib/postgresql/*/bin/{0}", "/usr/pgsql-*/bin/{0}")
    initdb, postgres = (
        requirements.program(name, package="postgresql", also=tuple(place.format(name) for place in places))
        for name in ("initdb", "postgres")
    )
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    port = free_port()
    with _folder("postgres", user if os.geteuid() == 0 else None) as folder:
        data = folder / "data"
        make = [initdb, "-D", str(data), "-U", "trace", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        _run(_as_user(user, make), cwd=folder)
        serve = [postgres, "-D", str(data), "-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
        serve += ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200"]
        with _serving(_as_user(user, serve), folder=folder, port=port) as server:
            # It accepts connections, and refuses them, before.
            server.wait_for("database system is ready to accept connections")
            yield f"postgresql+psycopg://trace@127.0.0.1:{port}/postgres"


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """An empty MariaDB database ``trace``, as an SQLAlchemy URL for PyMySQL."""
    install = requirements.program("mariadb-install-db", package="mariadb-server")
    server = requirements.program("mariadbd", package="mariadb-server")
    user = pwd.getpwuid(os.geteuid()).pw_name
    port = free_port()
    with _folder("mariadb") as folder:
        data = folder / "data"
        base = ["--no-defaults", f"--datadir={data}", f"--user={user}"]
        _run([install, *base, "--auth-root-authentication-method=normal", "--skip-test-db"], cwd=folder)
        (folder / "init.sql").write_text("CREATE DATABASE IF NOT EXISTS trace CHARACTER SET utf8mb4;\n")
        serve = [server, *base, f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder / 'socket'}"]
        serve += [f"--init-file={folder / 'init.sql'}", f"--pid-file={folder / 'pid'}", "--skip-name-resolve"]
        serve += ["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M", "--max-connections=200"]
        with _serving(serve, folder=folder, port=port):
            yield f"mysql+pymysql://root@127.0.0.1:{port}/trace?charset=utf8mb4"
