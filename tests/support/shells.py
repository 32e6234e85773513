"""Failures and sessions for tests of the shell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kombu import Connection

from celery_trace.clock import SystemClock
from celery_trace.control.signing import load_key
from celery_trace.model import (
    AnyRecord,
    Capture,
    CapturedException,
    Failure,
    Frame,
    Kept,
    Kind,
    Node,
    Outcome,
    ProcessRecord,
    Variable,
    new_id,
)
from celery_trace.settings import Settings
from celery_trace.shell.live.client import LiveClient, LiveSession
from celery_trace.shell.live.keeper import Keeper
from celery_trace.shell.session import Done, Event, ShellSession
from tests.support.waiting import wait_until


def create_error(context_data: Any = "Hello") -> float:
    """The seed example: a few locals, then a division by zero."""
    a, c, d = 5, 6, 10
    return (a + c + d) / (len(context_data) * 0)


def outer(context_data: Any = "Hello") -> float:
    above = ["outer"]
    return create_error(context_data) + len(above)


def caught(call: Callable[[], Any]) -> BaseException:
    """What a call raises."""
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def failure(id_: str = "", **values: Any) -> Failure:
    given: dict[str, Any] = {"process": "p", "kind": Kind.TASK, "name": "shop.create_error", "outcome": Outcome.FAILED}
    return Failure(id=id_ or new_id(), at_s=1.0, **(given | values))


def captured(heap: list[Node], names: dict[str, int], **frame: Any) -> Failure:
    """A failure with one frame whose variables refer into ``heap``."""
    given: dict[str, Any] = {"file": "/srv/shop/tasks.py", "line": 7, "function": "create_error"}
    variables = [Variable(name, ref) for name, ref in names.items()]
    raised = CapturedException(
        type="ZeroDivisionError",
        module="builtins",
        message="division by zero",
        frames=[Frame(**(given | frame), locals=variables)],
    )
    return failure(capture=Capture(heap=heap, exceptions=[raised]))


SEED = captured([Node("str", "plain", "Hello"), Node("int", "plain", 5)], {"context_data": 0, "a": 1})


class LiveProcess:
    """A keeper with its records, as a traced process has one."""

    def __init__(self, folder: Path, broker_url: str, **settings: Any) -> None:
        self.settings = Settings(dir=str(folder), shell="live", **settings)
        self.broker_url = broker_url
        self.process = ProcessRecord(uid=new_id(), host="here", pid=1, started_at_s=0.0)
        self.records: list[AnyRecord] = []
        self.keeper = Keeper(self.settings, self.process, self.records.append, self.connect, SystemClock())

    def connect(self) -> Connection:
        return Connection(self.broker_url)

    def fail(self, id_: str = "", call: Callable[[], Any] = outer, **values: Any) -> Kept:
        """Let a call fail and keep its failure; the record that says so."""
        error = caught(call)
        record = failure(id_, process=self.process.uid, **values)
        self.keeper.keep(record, error)
        del error
        return self.kept(record.id)

    def kept(self, failure_id: str) -> Kept:
        """The last word about a failure."""
        return [one for one in self.records if isinstance(one, Kept) and one.failure == failure_id][-1]

    @property
    def key(self) -> bytes:
        return load_key(self.settings)

    def client(self) -> LiveClient:
        return LiveClient(self.connect, self.key)

    @contextmanager
    def session(self, kept: Kept, user: str = "ann", **values: Any) -> Iterator[LiveSession]:
        session = self.client().open(kept, kept.failure, user, timeout_s=30.0, **values)
        try:
            yield session
        finally:
            session.close()

    def close(self) -> None:
        self.keeper.close("shutdown")
        wait_until(lambda: not self.keeper.listening, "the keeper's thread ends")


class Said:
    """Collects a command's events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, *kinds: str) -> str:
        return "".join(event.text for event in self.events if event.kind in (kinds or (event.kind,)))


def say(session: ShellSession, code: str) -> tuple[Done, Said]:
    """Run a command in a session; how it ended and what it said."""
    said = Said()
    return session.run(code, said), said


def answer(session: ShellSession, code: str) -> str:
    """The echo of an expression."""
    done, said = say(session, code)
    assert done.ok, said.of()
    return said.of("result")
