"""The shell's WebSocket: people around one session, and nobody who may not."""

import json
import pickle
import threading
import time
from typing import ClassVar

import pytest
import websocket

from celery_trace.model import Kept, failure_id
from celery_trace.settings import load
from celery_trace.shell.session import Done, Event, FrameInfo, SessionGone, ShellError
from celery_trace.stores import open_store
from flower_plugin.shell.rooms import MOST_ROOMS_OF_ONE, ShellRooms
from tests.support import monitor_facts
from tests.support.monitor_app import PASSWORD, Client, eventually, forget_guesses, make_monitor, serving

FAILURE = failure_id("6e1f9b3a-0000-4000-8000-000000000000", 0)


class ScriptedSession:
    """A session whose answers the test knows."""

    id = "scripted"

    def __init__(self, mode):
        self.mode = mode
        self.frames = [
            FrameInfo("/srv/shop/shop/tasks.py", 42, "create_error"),
            FrameInfo("/x/trace.py", 1, "trace_task"),
        ]
        self.frame = 0
        self.notices = ["scripted"]
        self.gone = ""
        self.closed = False
        self.interrupted = threading.Event()
        self.typed = []

    def run(self, code, on_event, *, user=""):
        self.typed.append((user, code))
        if self.gone:
            raise SessionGone(self.gone)
        if code.strip() == "loop":
            on_event(Event("output", "looping\n", "stdout"))
            assert self.interrupted.wait(20)
            on_event(Event("error", "KeyboardInterrupt"))
            return Done(ok=False, took_s=0.1)
        if code.strip() == "flood":
            for _ in range(300):
                on_event(Event("output", "x" * 10_000, "stdout"))
            return Done(ok=True)
        if code.strip() == "pieces":
            for number in range(50_000):
                on_event(Event("output", "x", ("stdout", "stderr")[number % 2]))
                on_event(Event("notice", ""))
            return Done(ok=True)
        if code.strip() == "leave":
            self.gone = "The process has ended."
            raise SessionGone(self.gone)
        if code.strip() == "refuse":
            raise ShellError("Not that.")
        if code.strip() == "break":
            raise RuntimeError("something that nobody thought of")
        if code.strip() == "if 1:":
            return Done(ok=True, more=True)
        on_event(Event("result", f"{self.mode}:{code}"))
        return Done(ok=True, took_s=0.001, frame=self.frame)

    def complete(self, code, cursor):
        return ["context_data", "context"]

    def interrupt(self, *, user=""):
        self.typed.append((user, "interrupt"))
        self.interrupted.set()

    def select_frame(self, index):
        self.frame = index

    def close(self):
        self.closed = True
        self.interrupted.set()


class ScriptedOpener:
    def __init__(self):
        self.opened = []
        self.refuse_live = False
        self.may_recreate = threading.Event()
        self.may_recreate.set()

    def live(self, kept, failure, user):
        if self.refuse_live:
            raise ShellError("It does not answer.")
        self.opened.append(ScriptedSession("live"))
        return self.opened[-1]

    def recreated(self, failure):
        assert self.may_recreate.wait(20)
        self.opened.append(ScriptedSession("recreated"))
        return self.opened[-1]


class Socket:
    """One person's console; what a test leaves open is closed after it, whichever way it ended."""

    opened: ClassVar[list["Socket"]] = []

    def __init__(self, base, path=f"/trace/shell/{FAILURE}", **headers):
        self.socket = websocket.create_connection(
            base.replace("http", "ws", 1) + path, timeout=20, header=headers or {"Authorization": f"Bearer {PASSWORD}"}
        )
        self.heard = []
        self.opened.append(self)

    def wait(self, kind, **fields):
        while True:
            said = self.socket.recv()
            if not said:
                raise websocket.WebSocketConnectionClosedException("the monitor has closed it")
            message = json.loads(said)
            self.heard.append(message)
            if message["type"] == kind and all(message.get(key) == value for key, value in fields.items()):
                return message

    def send(self, **message):
        self.socket.send(json.dumps(message))

    def ask(self, code, number=1):
        self.send(type="run", id=number, code=code)
        return self.wait("done", id=number)

    def said(self):
        return "".join(message["text"] for message in self.heard if message["type"] == "output")

    def close(self):
        self.socket.close()


@pytest.fixture(scope="module")
def monitor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shell")
    settings = load({"trace_dir": str(folder), "trace_collector": False, "trace_shell": "live"}, environment={})
    now_s = time.time()
    store = open_store(settings)
    monitor_facts.fill(store, now_s)
    store.write([Kept(process="child-1", failure=FAILURE, at_s=now_s, until_s=now_s + 900, address="queue")])
    store.close()
    opener = ScriptedOpener()
    pairs = ("ada:1", "bob:2", "rae:3", "lou:4")
    with serving(
        lambda: make_monitor(
            folder, settings=settings, opener=opener, pairs=pairs, token="script",
            roles=("ada:live", "bob:live", "token:live", "rae:recreated", "lou:look"),
        )
    ) as (base, app):  # fmt: skip
        app.opener = opener
        yield base, app


@pytest.fixture(autouse=True)
def hangs_up():
    yield
    while Socket.opened:
        Socket.opened.pop().socket.shutdown()


@pytest.fixture
def opener(monitor):
    app = monitor[1]
    yield app.opener
    done = threading.Event()
    app.io_loop.add_callback(lambda: ([room.end() for room in list(app.rooms._rooms.values())], done.set()))
    assert done.wait(20)
    app.opener.opened.clear()
    app.opener.refuse_live = False
    app.opener.may_recreate.set()


def basic(name):
    from base64 import b64encode

    password = {"ada": 1, "bob": 2, "rae": 3, "lou": 4}[name]
    return {"Authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode()}


def person(monitor, name):
    return Socket(monitor[0], **basic(name))


def test_a_command_is_answered_in_the_live_process(monitor, opener):
    ada = person(monitor, "ada")
    hello = ada.wait("hello")
    assert (hello["mode"], hello["user"], hello["failure"]) == ("live", "ada", FAILURE)
    assert hello["frames"][0] == {"file": "/srv/shop/shop/tasks.py", "line": 42, "function": "create_error"}
    done = ada.ask("trace.context_data")
    assert done["ok"] is True
    assert ada.said() == "live:trace.context_data"
    ada.close()


def test_who_joins_sees_what_the_others_do(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    ada.ask("a", 1)
    bob = person(monitor, "bob")
    hello = bob.wait("hello")
    assert [(line["kind"], line["text"]) for line in hello["transcript"]] == [("input", "a"), ("output", "live:a")]
    assert ada.wait("watchers", names=["ada", "bob"])
    bob.ask("b", 7)
    assert ada.wait("input", user="bob")["code"] == "b"
    assert ada.wait("output")["text"] == "live:b"
    ada.send(type="run", id=9, code="# look at this")
    assert bob.wait("remark")["text"] == "look at this"
    assert len(opener.opened) == 1
    ada.close()
    bob.close()


def test_somebody_who_may_only_recreate_never_joins_a_live_room(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    rae = person(monitor, "rae")
    assert rae.wait("hello")["mode"] == "recreated"
    rae.ask("x")
    assert rae.said() == "recreated:x"
    ada.close()
    rae.close()


def test_a_process_that_goes_away_is_replaced_by_the_recreated_shell(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    ada.send(type="run", id=1, code="leave")
    mode = ada.wait("mode")
    assert mode["mode"] == "recreated"
    assert "The process has ended." in mode["why"]
    ada.ask("again", 2)
    assert "recreated:again" in ada.said()
    ada.close()


def test_a_goodbye_is_heard_without_anybody_typing(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    opener.opened[0].gone = "the worker shuts down"
    mode = ada.wait("mode")
    assert mode["mode"] == "recreated"
    assert mode["why"] == "The worker shuts down. From here on the shell is recreated from the capture."
    # What protects the sandbox, and what does not, is said here too.
    notice = ada.wait("output")
    assert (notice["kind"], notice["text"]) == ("notice", "scripted")
    eventually(lambda: opener.opened[0].closed)
    ada.close()


def entries(monitor, words):
    """What was written down with these words as its verdict."""
    folder = monitor[1].context.settings.folder
    files = [folder / name for name in ("audit.jsonl", "strangers.jsonl") if (folder / name).exists()]
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [entry for entry in found if words in entry["verdict"]]


def on_the_loop(app, call):
    """Run something on the monitor's loop, and let what it started get its turn."""
    done = threading.Event()
    app.io_loop.add_callback(call)
    app.io_loop.add_callback(lambda: app.io_loop.add_callback(done.set))
    assert done.wait(20)


def test_an_end_that_two_notice_at_once_is_recreated_once(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    (room,) = monitor[1].rooms._rooms.values()
    opener.may_recreate.clear()
    ada.send(type="run", id=1, code="leave")
    eventually(lambda: room._falling is not None)
    on_the_loop(monitor[1], room._look)
    opener.may_recreate.set()
    ada.wait("mode")
    ada.wait("done", id=1)
    ada.ask("again", 2)
    assert [session.mode for session in opener.opened] == ["live", "recreated"]
    assert [message["type"] for message in ada.heard].count("mode") == 1
    ada.close()


def test_a_sandbox_that_comes_after_the_end_of_its_room_is_closed(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    (room,) = monitor[1].rooms._rooms.values()
    opener.may_recreate.clear()
    opener.opened[0].gone = "The worker shuts down."
    on_the_loop(monitor[1], room._look)
    on_the_loop(monitor[1], room.end)
    opener.may_recreate.set()
    eventually(lambda: len(opener.opened) == 2 and all(session.closed for session in opener.opened))
    ada.close()


def test_the_process_is_told_who_typed_and_not_who_opened(monitor, opener):
    ada, bob = person(monitor, "ada"), person(monitor, "bob")
    ada.wait("hello")
    bob.wait("hello")
    ada.ask("a", 1)
    bob.ask("b", 2)
    assert opener.opened[0].typed == [("ada", "a"), ("bob", "b")]
    ada.close()
    bob.close()


def test_an_error_of_the_shell_itself_ends_the_command_and_not_the_session(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    assert ada.ask("break", 1)["ok"] is False
    assert "something that nobody thought of" in ada.said()
    assert ada.ask("1 + 1", 2)["ok"] is True
    ada.close()


def test_a_flood_of_messages_is_refused_and_logged_and_the_others_go_on(monitor, opener):
    ada, bob = person(monitor, "ada"), person(monitor, "bob")
    ada.wait("hello")
    bob.wait("hello")
    ada.send(type="run", id=1, code="loop")
    ada.wait("output", text="looping\n")
    for number in range(60):
        ada.send(type="run", id=2 + number, code=f"flood {number}")
    assert "50 messages of yours wait" in ada.wait("refused")["why"]
    assert "50 messages of yours wait" in (monitor[1].context.settings.folder / "audit.jsonl").read_text()
    bob.send(type="interrupt")
    assert bob.ask("1 + 1", 99)["ok"] is True
    ada.close()
    bob.close()


def test_a_room_holds_so_many_and_the_next_is_told(monitor, opener, monkeypatch):
    monkeypatch.setattr("flower_plugin.shell.room.MOST_WATCHERS", 2)
    ada, bob, third = (person(monitor, name) for name in ("ada", "bob", "ada"))
    try:
        # Who was refused may go on sending: nothing of it is heard.
        third.send(type="run", id=7, code="not heard")
        assert "pages are open in this shell already" in third.wait("refused")["why"]
        ada.wait("hello")
        assert ada.ask("1 + 1", 1)["ok"] is True
        assert opener.opened[0].typed == [("ada", "1 + 1")]
    finally:
        for socket in (ada, bob, third):
            socket.close()


class Present:
    """Somebody who sits in a room."""

    def close(self, code, reason):
        self.closed = code, reason


def test_nobody_can_take_all_rooms_and_a_room_that_was_left_makes_place(monitor, opener):
    rooms = ShellRooms(monitor[1].context, opener)
    opened = [rooms.room(f"failure-{number}", False, "rae") for number in range(MOST_ROOMS_OF_ONE)]
    for room in opened:
        room._sockets[Present()] = "rae"
    assert rooms.room("one more", False, "rae") is None
    assert rooms.room("failure-0", False, "rae") is opened[0]
    other = rooms.room("one more", False, "ada")
    assert other is not None
    opened[3]._sockets.clear()
    assert rooms.room("and another", False, "rae") is not None
    assert opened[3]._ended
    assert not other._ended
    rooms.close()


def test_a_live_process_that_does_not_answer_is_recreated_at_once(monitor, opener):
    opener.refuse_live = True
    ada = person(monitor, "ada")
    hello = ada.wait("hello")
    assert hello["mode"] == "recreated"
    assert "It does not answer." in hello["transcript"][0]["text"]
    ada.close()


def test_a_running_command_is_interrupted(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    ada.send(type="run", id=1, code="loop")
    ada.wait("output", text="looping\n")
    ada.send(type="interrupt")
    assert ada.wait("done", id=1)["ok"] is False
    assert "KeyboardInterrupt" in ada.said()
    assert opener.opened[0].typed == [("ada", "loop"), ("ada", "interrupt")]
    ada.close()


def test_a_flood_is_cut_and_said(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    ada.ask("flood")
    assert 900_000 < len(ada.said()) < 1_100_000
    assert "Output was cut" in ada.said()
    ada.close()


def test_a_flood_of_short_and_empty_pieces_is_cut_too(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    ada.ask("pieces")
    pieces = [message for message in ada.heard if message["type"] == "output"]
    assert 9_000 < len(pieces) <= 10_001
    assert "Output was cut" in pieces[-1]["text"]
    assert all(piece["text"] for piece in pieces)
    ada.close()


def test_a_session_survives_a_cut_of_the_line(monitor, opener):
    ada = person(monitor, "ada")
    first = ada.wait("hello")
    ada.ask("before")
    ada.close()
    again = person(monitor, "ada")
    hello = again.wait("hello")
    assert hello["session"] == first["session"]
    assert hello["transcript"][0]["text"] == "before"
    again.close()


def test_completion_frames_and_unfinished_blocks(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    ada.send(type="complete", id=3, code="trace.con", cursor=9)
    assert ada.wait("completions", id=3) == {
        "type": "completions", "id": 3, "items": ["context_data", "context"], "start": 6,
    }  # fmt: skip
    ada.send(type="frame", index=1)
    assert ada.wait("frame")["index"] == 1
    ada.send(type="frame", index=99)
    assert "no frame 99" in ada.wait("refused")["why"]
    assert ada.ask("if 1:", 4)["more"] is True
    ada.close()


@pytest.mark.parametrize(
    "message",
    [
        pickle.dumps(print),
        b"\xff",
        "{",
        "[]",
        '{"type":"run"}',
        '{"type":"evil","id":1}',
        '{"type":"run","id":"x","code":1}',
        "\u0000",
        "[" * 100_000,
        '{"type":"ping","x":' + "[" * 100_000,
        '{"type":"run","id":' + "9" * 30 + ',"code":"x"}',
        '{"type":"complete","id":1,"code":"x","cursor":-1}',
        '{"type":"run","id":NaN,"code":"x"}',
        '{"type":"run","id":1e999,"code":"x"}',
        '{"type":"frame","index":' + "9" * 1000 + "}",
        '{"type":"run","id":1,"code":"\\ud800"}',
    ],
    ids=lambda message: repr(message[:30]),
)
def test_what_is_no_message_is_refused_and_the_session_goes_on(monitor, opener, message):
    ada = person(monitor, "ada")
    ada.wait("hello")
    before = entries(monitor, "none of the shell's")
    ada.socket.send(message, websocket.ABNF.OPCODE_BINARY if isinstance(message, bytes) else websocket.ABNF.OPCODE_TEXT)
    assert "none of the shell's" in ada.wait("refused")["why"]
    assert len(entries(monitor, "none of the shell's")) == len(before) + 1
    assert ada.ask("still", 5)["ok"] is True
    ada.close()


def test_code_over_the_limit_is_refused_and_logged(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    assert ada.ask("x" * 70_000, 6)["ok"] is False
    assert any("at most" in message.get("why", "") for message in ada.heard)
    assert "at most" in (monitor[1].context.settings.folder / "audit.jsonl").read_text()
    ada.close()


@pytest.mark.parametrize(("size", "said"), [(500_000, True), (2_000_000, False)])
def test_a_frame_over_the_limit_ends_its_connection_and_no_other(monitor, opener, size, said):
    ada, bob = person(monitor, "ada"), person(monitor, "bob")
    ada.wait("hello")
    bob.wait("hello")
    if said:
        ada.send(type="run", id=1, code="x" * size)
        assert "at most" in ada.wait("refused")["why"]
        assert "A message of 500,0" in (monitor[1].context.settings.folder / "audit.jsonl").read_text()
    else:
        # The monitor hangs up as soon as it has read the frame's length: in the midst of the sending, or after it.
        with pytest.raises((websocket.WebSocketException, OSError)):
            ada.ask("x" * size)
    assert bob.ask("1 + 1", 2)["ok"] is True
    bob.close()


def test_every_command_stands_in_the_audit_log_with_its_author(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    ada.ask("audited_command")
    ada.close()
    log = [json.loads(line) for line in (monitor[1].context.settings.folder / "audit.jsonl").read_text().splitlines()]
    (entry,) = [entry for entry in log if entry["command"] == "audited_command"]
    assert (entry["user"], entry["failure"], entry["where"]) == ("ada", FAILURE, "monitor")


def test_the_transcript_is_stored(monitor, opener):
    ada = person(monitor, "ada")
    session = ada.wait("hello")["session"]
    ada.ask("to be kept")
    ada.close()

    def stored():
        shell = monitor[1].context.queries.shell(session)
        return shell and [line.text for line in shell.lines][:2] == ["to be kept", "live:to be kept"]

    eventually(stored)


def test_the_beginning_of_a_block_is_no_line_of_the_transcript(monitor, opener):
    ada = person(monitor, "ada")
    session = ada.wait("hello")["session"]
    assert ada.ask("if 1:", 1)["more"] is True
    ada.ask("if 1:\n    2\n", 2)
    ada.ask("# and a remark", 3)
    bob = person(monitor, "bob")
    expected = [("input", "if 1:\n    2\n"), ("output", "live:if 1:\n    2\n"), ("remark", "and a remark")]
    assert [(line["kind"], line["text"]) for line in bob.wait("hello")["transcript"]] == expected
    ada.close()
    bob.close()

    def stored():
        shell = monitor[1].context.queries.shell(session)
        return shell and [(line.kind, line.text) for line in shell.lines] == expected

    eventually(stored)


@pytest.mark.parametrize("failure", ["nope", "..%2F..%2Fetc%2Fpasswd", "x" * 500, "%3Cscript%3E"])
def test_an_unknown_failure_is_refused_with_a_reason(monitor, opener, failure):
    ada = Socket(monitor[0], f"/trace/shell/{failure}", **basic("ada"))
    assert "no such failure" in ada.wait("refused")["why"]
    ada.close()


def refused(monitor, **headers):
    origin, host = headers.pop("Origin", None), headers.pop("Host", None)
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        websocket.create_connection(
            monitor[0].replace("http", "ws", 1) + f"/trace/shell/{FAILURE}", timeout=20, header=headers,
            origin=origin, suppress_origin=origin is None, host=host,
        )  # fmt: skip
    return caught.value.status_code


def test_strangers_foreign_origins_and_low_roles_get_no_shell(monitor, opener):
    client = Client(monitor[0])
    client.log_in("1", "ada")
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    assert refused(monitor) == 401
    assert refused(monitor, Cookie=cookie) == 403  # by cookie an Origin must be there
    assert refused(monitor, Cookie=cookie, Origin="http://evil.example") == 403
    assert refused(monitor, Cookie=cookie, Origin="null") == 403
    assert refused(monitor, **basic("ada"), Origin="http://evil.example") == 403
    assert refused(monitor, **basic("lou")) == 403
    assert refused(monitor, Authorization="Bearer wrong") == 401
    assert refused(monitor, **basic("ada"), Host="evil.example") == 421
    assert opener.opened == []
    shell = f"GET /trace/shell/{FAILURE}"
    for user, what, why in (
        ("", shell, "no login"),
        ("ada", shell, "origin None"),
        ("ada", shell, "origin http://evil.example"),
        ("ada", shell, "origin null"),
        ("lou", shell, "needs the role recreated"),
        ("", "bearer login", "wrong password or token"),
        ("", "Host evil.example", "foreign host"),
    ):
        assert [one for one in entries(monitor, why) if (one.get("user", ""), one["command"]) == (user, what)], why


def test_a_login_that_ended_ends_the_shell(monitor, opener):
    client = Client(monitor[0])
    client.log_in("1", "ada")
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    ada = Socket(monitor[0], Cookie=cookie)
    ada.wait("hello")
    client.post("/logout", xsrf=True)
    ada.send(type="run", id=1, code="too late")
    assert "login has ended" in ada.wait("refused")["why"]
    assert "too late" not in (monitor[1].context.settings.folder / "audit.jsonl").read_text()
    ada.close()


def test_who_only_watches_sees_nothing_more_after_the_login_has_ended(monitor, opener):
    client = Client(monitor[0])
    client.log_in("2", "bob")
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    bob = Socket(monitor[0], Cookie=cookie)
    bob.wait("hello")
    page = Socket(monitor[0], "/trace/live", Cookie=cookie)
    page.wait("state")
    ada = person(monitor, "ada")
    ada.wait("hello")
    client.post("/logout", xsrf=True)
    ada.ask("not for bob")
    assert "login has ended" in bob.wait("refused")["why"]
    assert not any("not for bob" in json.dumps(message) for message in bob.heard)
    eventually(lambda: ada.ask("still here") and ada.heard[-1]["ok"])
    monitor[1].io_loop.add_callback(monitor[1].live._tell_all)
    page.socket.settimeout(20)
    assert page.socket.recv_data()[0] == websocket.ABNF.OPCODE_CLOSE
    page.socket.shutdown()
    for socket in (bob, ada):
        socket.close()


def test_guesses_from_the_same_address_disturb_no_open_shell(monitor, opener):
    ada = person(monitor, "ada")
    ada.wait("hello")
    try:
        for number in range(9):
            Client(monitor[0]).get("/trace", headers={"Authorization": f"Bearer wrong{number}"})
        assert Client(monitor[0]).get("/trace", headers=basic("ada")).status == 429
        assert ada.ask("1 + 1")["ok"] is True
    finally:
        forget_guesses(monitor[1])
        ada.close()


def test_the_shell_can_be_off(tmp_path):
    settings = load({"trace_dir": str(tmp_path), "trace_collector": False, "trace_shell": "off"}, environment={})
    with serving(lambda: make_monitor(tmp_path, settings=settings)) as (base, _):
        socket = Socket(base)
        assert "The shell is off" in socket.wait("refused")["why"]
        socket.close()


def test_read_only_opens_no_live_shell(tmp_path):
    settings = load({"trace_dir": str(tmp_path), "trace_collector": False, "trace_shell": "live"}, environment={})
    store = open_store(settings)
    monitor_facts.fill(store, time.time())
    store.write([Kept(process="child-1", failure=FAILURE, at_s=time.time(), until_s=time.time() + 900, address="q")])
    store.close()
    with serving(lambda: make_monitor(tmp_path, settings=settings, opener=ScriptedOpener(), read_only=True)) as (
        base,
        _,
    ):
        socket = Socket(base)
        assert socket.wait("hello")["mode"] == "recreated"
        socket.close()
