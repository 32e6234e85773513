"""Requests for the stack of a run, between an asker and a process, and over the broker."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from celery_trace import private_files
from celery_trace.clock import FakeClock, SystemClock
from celery_trace.control.audit import AuditLog
from celery_trace.control.signing import sign
from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.failures.views import frames
from celery_trace.model import Line, ProcessRecord, Role, RunStack, StackRequest
from celery_trace.process import blackbox
from celery_trace.redaction import Redactor
from celery_trace.running import outside
from celery_trace.running.answers import Answers
from celery_trace.running.listener import ACTION, REQUEST_KIND, StackListener
from celery_trace.running.requests import NoStack, is_here, read_stack, request_file, stack_file
from celery_trace.settings import Limits
from tests.support.box_runs import BoxWithRuns

UID = "0123456789abcdef"
KEY = b"a secret of sixteen"
SOURCE = SourceLines(Redactor())


class TracedProcess:
    """A run that waits in a thread, and a ticker."""

    def __init__(self, folder: Path) -> None:
        process = ProcessRecord(uid=UID, host="h1", pid=os.getpid(), started_at_s=time.time(), role=Role.CHILD)
        self.box = BoxWithRuns(folder / f"{UID}.box", process, SystemClock())
        self.answers = Answers(
            folder, UID, self.box.runs, limits=Limits(), redactor=Redactor(), in_app=(), code_of=lambda *_: ()
        )
        self.over, self.begun = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._task)
        self.ticks = True
        self.ticker = threading.Thread(target=self._tick)
        self.answered = 0

    def _task(self) -> None:
        self.box.begin("shop.pay", "id-1", queue="orders")
        order, password = 4711, "hunter2"
        self.begun.set()
        self.over.wait(30)
        self.box.end()
        del order, password

    def _tick(self) -> None:
        while not self.over.wait(0.02):
            if self.ticks and self.box.requested():
                self.answers.write(1.0)
                self.answered += 1

    def __enter__(self) -> TracedProcess:
        self.thread.start()
        self.ticker.start()
        assert self.begun.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(10)
        self.ticker.join(10)
        self.box.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[TracedProcess]:
    with TracedProcess(tmp_path) as found:
        yield found


def a_request(task_id: str = "id-1", **fields: Any) -> StackRequest:
    return StackRequest(id="r1", process=UID, task_id=task_id, **fields)


def test_a_process_answers_with_frames_locals_and_no_secret(process: TracedProcess, tmp_path: Path) -> None:
    stack = read_stack(tmp_path, a_request(), SOURCE)
    assert (stack.request, stack.by, stack.why) == ("r1", "process", "")
    assert stack.capture is not None
    [task] = [frame for frame in frames(stack.capture) if frame.function == "_task"]
    assert "self.over.wait(30)" in task.code
    values = {local.name: (local.value, local.redacted) for local in task.locals}
    assert values["order"] == ("4711", False)
    assert values["password"][1]
    assert b"hunter2" not in msgspec.json.encode(stack)
    assert not request_file(tmp_path, UID).exists()
    assert not stack_file(tmp_path, UID).exists()


def test_a_run_without_a_task_id_is_found_by_its_thread_and_start(process: TracedProcess, tmp_path: Path) -> None:
    reading = blackbox.read(tmp_path / f"{UID}.box")
    assert reading is not None
    assert reading.running is not None
    by_place = a_request("", thread=reading.running.thread, started_at_s=reading.running.started_at_s)
    assert read_stack(tmp_path, by_place, SOURCE).capture is not None
    other = a_request("", thread=reading.running.thread, started_at_s=1.0)
    assert read_stack(tmp_path, other, SOURCE).why == "the run has ended"


def test_a_run_that_has_ended_has_no_stack(process: TracedProcess, tmp_path: Path) -> None:
    stack = read_stack(tmp_path, a_request("another"), SOURCE)
    assert (stack.stack, stack.capture, stack.why) == ([], None, "the run has ended")


def test_a_process_that_does_not_answer_shows_its_last_sample(
    process: TracedProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(pid: int, native_id: int) -> list[Line]:
        raise outside.Unreadable("not here")

    monkeypatch.setattr(outside, "read_stack", unreadable)
    process.box.sample()
    process.ticks = False
    stack = read_stack(tmp_path, a_request(), SOURCE)
    assert stack.by == "sample"
    assert "does not answer" in stack.why
    assert any("self.over.wait(30)" in line.code for line in stack.stack)
    assert not request_file(tmp_path, UID).exists()


def test_askers_take_turns(process: TracedProcess, tmp_path: Path) -> None:
    found: list[str] = []

    def ask(number: int) -> None:
        request = StackRequest(id=f"r{number}", process=UID, task_id="id-1")
        found.append(read_stack(tmp_path, request, SOURCE).request)

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(20)
    assert sorted(found) == ["r0", "r1", "r2", "r3"]
    assert process.answered == 4


def test_an_answer_that_comes_too_late_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TracedProcess(tmp_path) as process:
        private_files.replace(request_file(tmp_path, UID), msgspec.json.encode(a_request()))
        answer = process.answers.answer

        def slow(request: StackRequest, now_s: float) -> RunStack:
            found = answer(request, now_s)
            request_file(tmp_path, UID).unlink()  # as the asker does when it gives up
            return found

        monkeypatch.setattr(process.answers, "answer", slow)
        process.answers.write(1.0)
        assert not stack_file(tmp_path, UID).exists()


def test_nothing_stays_of_an_asker_that_was_killed(process: TracedProcess, tmp_path: Path) -> None:
    private_files.replace(request_file(tmp_path, UID), msgspec.json.encode(a_request()))
    process.answers.write(1.0)
    assert stack_file(tmp_path, UID).exists()
    process.answers.close()
    assert not stack_file(tmp_path, UID).exists()
    assert not request_file(tmp_path, UID).exists()


def test_no_file_outside_of_the_folder_is_taken_for_a_box(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "other.box").touch()
    assert is_here(tmp_path, "other")
    assert not is_here(tmp_path / "spool", "../other")


def test_a_process_without_a_box_can_not_be_asked(tmp_path: Path) -> None:
    with pytest.raises(NoStack):
        read_stack(tmp_path, a_request(), SOURCE)


def test_a_request_is_seen_once(process: TracedProcess, tmp_path: Path) -> None:
    process.ticks = False
    assert not process.box.requested()
    blackbox.request(tmp_path / f"{UID}.box")
    assert process.box.requested()
    assert not process.box.requested()


# --- over the broker


class Listening:
    """A listener without a broker: what it gets, and what it sends."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.folder = folder
        self.listener = StackListener(
            folder,
            KEY,
            lambda: None,
            clock,
            AuditLog(folder / "audit", "worker", clock),
            SOURCE,  # type: ignore[arg-type, return-value]
        )
        self.sent: list[tuple[str, bytes]] = []
        self.listener._sender.put = self.sent.append  # type: ignore[method-assign]

    def audit(self, file: str = "audit.jsonl") -> list[dict[str, Any]]:
        path = self.folder / "audit" / file
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def listening(tmp_path: Path, clock: FakeClock) -> Listening:
    return Listening(tmp_path, clock)


def signed(listening: Listening, clock: FakeClock, key: bytes = KEY, **values: Any) -> bytes:
    known: dict[str, Any] = {
        "kind": REQUEST_KIND, "target": listening.listener.address, "action": ACTION, "session": "s1", "user": "ann",
        "body": msgspec.json.encode(a_request()).decode(),
    }  # fmt: skip
    data, _ = sign(key, now_s=clock.now_s(), **known | values)
    return data


def test_a_signed_request_is_answered_and_audited(
    process: TracedProcess, listening: Listening, clock: FakeClock
) -> None:
    listening.listener.receive(signed(listening, clock))
    [(address, reply)] = listening.sent
    assert address == "celery-trace.reply.s1"
    assert b"hunter2" not in reply
    assert b"4711" in reply
    [entry] = listening.audit()
    assert (entry["user"], entry["command"], entry["process"]) == ("ann", "stack of id-1", UID)


def test_a_replayed_request_is_refused(process: TracedProcess, listening: Listening, clock: FakeClock) -> None:
    data = signed(listening, clock)
    listening.listener.receive(data)
    listening.listener.receive(data)
    assert len(listening.sent) == 1
    assert listening.listener.counters["refused:replayed"] == 1
    assert listening.audit()[-1]["verdict"] == "refused: replayed"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"key": b"another key, also long"}, "forged"),
        ({"kind": "command"}, "forged"),
        ({"target": "celery-trace.stacks.other"}, "wrong_target"),
        ({"session": ""}, "unknown_session"),
        ({"session": "s" * 65}, "unknown_session"),
        ({"body": "{}"}, "malformed"),
        ({"body": json.dumps({"id": "r", "process": "../../etc/passwd", "task_id": "x"})}, "malformed"),
    ],
)
def test_a_request_that_is_not_ours_is_refused(
    listening: Listening, clock: FakeClock, values: dict[str, Any], code: str
) -> None:
    listening.listener.receive(signed(listening, clock, **values))
    assert listening.sent == []
    assert listening.listener.counters[f"refused:{code}"] == 1
    strangers = listening.audit("strangers.jsonl")
    assert (strangers + listening.audit())[-1]["verdict"] == f"refused: {code}"
    assert bool(strangers) == (code == "forged")


@pytest.mark.parametrize("data", [b"", b"{}", b"\x00" * 100, b'{"claims":"{}","body":"","mac":""}'])
def test_an_unsigned_message_is_refused(listening: Listening, data: bytes) -> None:
    listening.listener.receive(data)
    assert listening.sent == []
    assert listening.listener.counters["refused"] == 1


def test_a_late_request_is_refused(listening: Listening, clock: FakeClock) -> None:
    data = signed(listening, clock)
    clock.advance(3600)
    listening.listener.receive(data)
    assert listening.sent == []
    assert listening.listener.counters["refused:late"] == 1


def test_a_link_in_place_of_the_request_is_not_followed(process: TracedProcess, tmp_path: Path) -> None:
    process.ticks = False
    target = tmp_path / "elsewhere"
    target.write_bytes(msgspec.json.encode(a_request()))
    request_file(tmp_path, UID).symlink_to(target)
    with pytest.raises(private_files.NotOurs):
        process.answers.write(1.0)
