"""
Shell sessions in the browser: several people around one failure.

A :class:`ShellRoom` holds one :class:`~celery_trace.shell.session.ShellSession` and the sockets of
whoever joined. Everything of the room runs on the loop; the session blocks and is called in threads.
When the process behind a live session goes away, the room opens the recreated one by itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec
from msgspec import Struct

from celery_trace.guard import Guard
from celery_trace.model import Failure, Kept, ShellLine, ShellView, new_id
from celery_trace.shell.session import CODE_LIMIT, Done, Event, SessionGone, ShellError, ShellSession, completion_start
from flower_plugin.auth.roles import Role
from flower_plugin.web.live import SocketHandler

if TYPE_CHECKING:
    from flower_plugin.app import MonitorApplication

logger = logging.getLogger("celery_trace.monitor")

#: How long a room waits for somebody to come back after the last one left, seconds.
LINGER_S = 120.0
#: How often a live room looks whether its process still holds the failure, seconds.
LOOK_EVERY_S = 2.0
MOST_ROOMS = 100
#: Rooms that one person may have opened and not left: each may be a sandbox with memory of its own.
MOST_ROOMS_OF_ONE = 12
#: Greatest message, bytes: the greatest code, with room for its escapes. Tornado ends what is several times as long.
MOST_MESSAGE_BYTES = 400 * 1024
#: Pages that may be open in one room.
MOST_WATCHERS = 50
#: Messages of one person that may wait for their answer; a person's hands never have so many.
MOST_PENDING = 50
MOST_LINES = 2000
MOST_OUTPUT = 1024 * 1024
#: Pieces of output of one command that can't be joined: each is a line of the transcript.
MOST_PIECES = 10_000
#: A command in every room leaves as many for interrupts and completion; a thread is made when it is needed.
THREADS = 2 * MOST_ROOMS
LOGIN_ENDED = "Your login has ended. Log in again; the session waits for two minutes."


#: A number that JSON carries back as it came.
Number = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Run(Struct, tag="run"):
    """Run a command."""

    id: Number
    code: str


class Complete(Struct, tag="complete"):
    """What could stand at the cursor?"""

    id: Number
    code: str
    cursor: Number


class Interrupt(Struct, tag="interrupt"):
    """Stop the running command."""


class ChooseFrame(Struct, tag="frame"):
    """Choose a frame."""

    index: Number


class Ping(Struct, tag="ping"):
    """Are you there?"""


_wish = msgspec.json.Decoder(Run | Complete | Interrupt | ChooseFrame | Ping)


class Opener(Protocol):
    """How sessions are opened; blocks."""

    def live(self, kept: Kept, failure: Failure, user: str) -> ShellSession: ...

    def recreated(self, failure: Failure) -> ShellSession: ...


class ProductOpener:
    """The shells of the product."""

    def __init__(self, app: MonitorApplication) -> None:
        self._app = app

    def live(self, kept: Kept, failure: Failure, user: str) -> ShellSession:
        """
        In the process that failed.

        Raises:
            ShellError: It does not answer, or refuses.
        """
        from celery_trace.shell.client import LiveClient
        from celery_trace.shell.signing import load_key

        client = LiveClient(self._app.capp.connection_for_write, load_key(self._app.trace_settings))
        return client.open(kept, failure.id, user, leaks=self._leaks(failure))

    def recreated(self, failure: Failure) -> ShellSession:
        """
        From the capture, in a sandbox.

        Raises:
            ShellError: The failure has no capture, or the sandbox does not start.
        """
        from celery_trace.shell.recreated import open_session

        return open_session(failure, leaks=self._leaks(failure))

    def _leaks(self, failure: Failure) -> list[dict[str, Any]]:
        """What ``trace.leaks`` holds: the rows of the leak table for this task."""
        rows = self._app.facts.queries.leaks(kind=failure.kind, name=failure.name, limit=20).rows
        return [msgspec.to_builtins(row) for row in rows]


class ShellRooms:
    """All rooms of a monitor."""

    def __init__(self, app: MonitorApplication, opener: Opener | None = None) -> None:
        self.app = app
        self.opener: Opener = opener or ProductOpener(app)
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="trace-shell")
        # One thread, so that a transcript's lines reach the store in their order.
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="trace-transcript")
        self._rooms: dict[tuple[str, bool], ShellRoom] = {}

    def room(self, failure: str, live: bool, user: str) -> ShellRoom | None:
        """
        The room of a failure, new where there is none; None when there are too many.

        A room that everybody has left waits for them only as long as nobody needs its place.
        """
        key = (failure, live)
        room = self._rooms.get(key)
        if room is not None:
            return room
        own = [one for one in self._rooms.values() if one.opened_by == user]
        for several, most in ((own, MOST_ROOMS_OF_ONE), (list(self._rooms.values()), MOST_ROOMS)):
            if len(several) < most:
                continue
            left = next((one for one in several if one.empty), None)
            if left is None:
                return None
            left.end()
        room = self._rooms[key] = ShellRoom(self, failure, live, user, lambda: self._rooms.pop(key, None))
        return room

    def close_session(self, session: ShellSession) -> None:
        """End a session in a thread: it may wait for its process."""
        try:
            self.threads.submit(_close, session)
        except RuntimeError:  # the monitor stops, and this one was still being opened
            _close(session)

    def close(self) -> None:
        """End every session."""
        for room in tuple(self._rooms.values()):
            room.end()
        self.writer.shutdown(wait=True)
        # Nothing is cancelled: the sessions that end here are closed by these threads.
        self.threads.shutdown(wait=False)


class ShellSocket(SocketHandler):
    """``WS /trace/shell/ID``: one person at one failure."""

    role = Role.RECREATED
    room: ShellRoom | None = None
    refused = False
    pending = 0

    async def open(self, *arguments: str, **_: str) -> None:
        """Join the failure's room."""
        settings = self.application.trace_settings
        if settings.shell == "off":
            self.refuse("The shell is off (trace_shell is 'off').")
            return
        live = settings.shell == "live" and self.user.may(Role.LIVE) and not self.gatekeeper.read_only
        room = self.application.rooms.room(arguments[0], live, self.user.name)
        if room is None:
            self.refuse("Too many shells are open. Close one, or wait until one ends.")
            return
        self.room = room
        await room.join(self)

    def refuse(self, why: str) -> None:
        """Say why not, and close."""
        self.refused = True
        self.gatekeeper.audit.refused(who=self.user.name, what=f"shell {self.request.path}", why=why)
        self.tell({"type": "refused", "why": why})
        self.close(4000, "refused")

    def on_message(self, message: str | bytes) -> None:
        """A wish of this person."""
        if self.room is None or self.refused:  # who was refused may go on sending until the line is closed
            return
        if not self.still_logged_in():
            self.refuse(LOGIN_ENDED)
            return
        if len(message) > MOST_MESSAGE_BYTES:
            self.refuse(f"A message of {len(message):,} characters; at most {MOST_MESSAGE_BYTES:,} are read.")
            return
        try:
            wish = _wish.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            why = f"That message is none of the shell's: {'it is nested too deeply' if deep else error}"
            self.gatekeeper.audit.refused(who=self.user.name, what=f"shell {self.request.path}", why=why)
            self.tell({"type": "refused", "why": why})
            return
        if self.pending >= MOST_PENDING and not isinstance(wish, Ping):
            self.refuse(f"{MOST_PENDING} messages of yours wait for their answer; no more are taken. Reload the page.")
            return
        self.room.hear(self, wish)

    def on_close(self) -> None:
        """Gone, perhaps only for a moment."""
        if self.room is not None:
            self.room.leave(self)


class ShellRoom:
    """One session and the people around it."""

    def __init__(self, rooms: ShellRooms, failure: str, live: bool, user: str, forget: Callable[[], Any]) -> None:
        self.opened_by = user
        self._rooms = rooms
        self._app = rooms.app
        self._failure_id = failure
        self._live = live
        self._forget = forget
        self._sockets: dict[ShellSocket, str] = {}
        self._users: list[str] = []
        self._lines: list[ShellLine] = []
        self._seq = 0
        self._id = new_id()
        self._record: Failure | None = None
        self._session: ShellSession | None = None
        self._opening: asyncio.Future[None] | None = None
        self._falling: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()
        self._running: int | None = None
        self._linger: Any = None
        self._watch: Any = None
        self._ended = False
        self._stored = False
        # An input that may turn out to be the beginning of a block: not a line of the transcript before it has run.
        self._unfinished: ShellLine | None = None

    # --- people --------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Whether everybody has left."""
        return not self._sockets

    async def join(self, socket: ShellSocket) -> None:
        """Somebody comes; the first one opens the session."""
        if len(self._sockets) >= MOST_WATCHERS:
            socket.refuse(f"{MOST_WATCHERS} pages are open in this shell already. Close one and try again.")
            return
        if self._linger is not None:
            self._app.io_loop.remove_timeout(self._linger)
            self._linger = None
        name = socket.user.name
        self._sockets[socket] = name
        if name not in self._users:
            self._users.append(name)
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open(name))
        try:
            await asyncio.shield(self._opening)
        except ShellError as error:
            socket.refuse(str(error))
            self.end()
            return
        except Exception as error:
            logger.exception("The shell could not be opened")
            socket.refuse(f"The shell could not be opened ({type(error).__name__}: {error}).")
            self.end()
            return
        session = self._session
        if session is None or socket not in self._sockets:
            return
        socket.tell(
            {
                "type": "hello",
                "mode": session.mode,
                "session": self._id,
                "user": name,
                "failure": self._failure_id,
                "frames": session.frames,
                "frame": session.frame,
                "watchers": self._watchers(),
                "transcript": self._lines,
                "running": self._running,
                "notices": session.notices,
            }
        )
        self._tell_all({"type": "watchers", "names": self._watchers()})

    def leave(self, socket: ShellSocket) -> None:
        """Somebody goes; after the last one the session waits for :data:`LINGER_S`."""
        if self._sockets.pop(socket, None) is None or self._ended:
            return
        self._tell_all({"type": "watchers", "names": self._watchers()})
        if not self._sockets:
            self._linger = self._app.io_loop.call_later(LINGER_S, self.end)

    def _watchers(self) -> list[str]:
        return sorted(set(self._sockets.values()))

    def _tell_all(self, message: dict[str, Any]) -> None:
        for socket in tuple(self._sockets):
            # Who only watches sends nothing, so the login is looked at here too.
            if socket.still_logged_in():
                socket.tell(message)
            elif not socket.refused:
                socket.refuse(LOGIN_ENDED)

    # --- the session ----------------------------------------------------------------------------------

    async def _blocking(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._rooms.threads, call, *arguments)

    async def _open(self, user: str) -> None:
        queries = await self._blocking(lambda: self._app.facts.queries)
        self._record = await self._blocking(queries.failure_record, self._failure_id)
        if self._record is None:
            raise ShellError("There is no such failure; it may have been pruned.")
        kept = await self._blocking(queries.kept, self._failure_id) if self._live else None
        why = ""
        if kept is not None:
            try:
                self._session = await self._blocking(self._rooms.opener.live, kept, self._record, user)
            except ShellError as error:
                why = f"{_sentence(str(error))} This shell is recreated from the capture."
        if self._session is None:
            self._session = await self._blocking(self._rooms.opener.recreated, self._record)
        if self._ended:
            self._rooms.close_session(self._session)
            return
        if why:
            self._note("event", "", why)
        if self._session.mode == "live":
            self._watch = self._app.io_loop.call_later(LOOK_EVERY_S, self._look)

    def _store_begin(self, mode: str, first: ShellLine) -> None:
        """A session that nobody typed into is not worth a row, so it is stored with the first command or remark."""
        view = ShellView(
            id=self._id,
            failure=self._failure_id,
            mode=mode,
            started_at=self._app.clock.now_s(),
            ended_at=None,
            users=list(self._users),
        )
        self._stored = True
        self._write(lambda store: store.add_shell(view))
        for line in self._lines:
            if line.seq < first.seq:
                self._keep(line)

    def _keep(self, line: ShellLine) -> None:
        self._write(lambda store: store.add_shell_line(self._id, line))

    def _look(self) -> None:
        """Is the process still there? A goodbye arrives here without anybody typing."""
        self._watch = None
        session = self._session
        if self._ended or session is None or session.mode != "live":
            return
        if session.gone:
            asyncio.ensure_future(self._fall_back(session.gone))  # noqa: RUF006 - ends with the room
            return
        self._watch = self._app.io_loop.call_later(LOOK_EVERY_S, self._look)

    async def _fall_back(self, why: str) -> None:
        """Go on recreated. Who types and who looks may both notice the end: it happens once."""
        if self._falling is None:
            self._falling = asyncio.ensure_future(self._recreate(why))
        await asyncio.shield(self._falling)

    async def _recreate(self, why: str) -> None:
        old = self._session
        if self._ended or self._record is None or old is None or old.mode != "live":
            return
        frame = old.frame
        try:
            session = await self._blocking(self._rooms.opener.recreated, self._record)
        except ShellError as error:
            self._note("event", "", f"{_sentence(why)} The shell can't be recreated either: {error}")
            self._tell_all({"type": "refused", "why": str(error)})
            self.end()
            return
        if self._ended:  # the last one left meanwhile
            self._rooms.close_session(session)
            return
        self._session = session
        self._rooms.close_session(old)
        if 0 < frame < len(session.frames):
            await self._blocking(session.select_frame, frame)
        text = f"{_sentence(why)} From here on the shell is recreated from the capture."
        self._note("event", "", text, tell=False)
        self._tell_all({"type": "mode", "mode": session.mode, "why": text, "frame": session.frame})
        for notice in session.notices:
            self._note("event", "", notice)

    # --- what people do ---------------------------------------------------------------------------------

    def hear(self, socket: ShellSocket, wish: Run | Complete | Interrupt | ChooseFrame | Ping) -> None:
        """One message of a person."""
        if isinstance(wish, Ping):
            socket.tell({"type": "pong"})
            return
        socket.pending += 1
        answering = asyncio.ensure_future(self._answer(socket, wish))

        def answered(future: asyncio.Future[None]) -> None:
            socket.pending -= 1
            if not future.cancelled() and (error := future.exception()) is not None:
                logger.error("A message to the shell was not answered", exc_info=error)

        answering.add_done_callback(answered)

    async def _answer(self, socket: ShellSocket, wish: Run | Complete | Interrupt | ChooseFrame) -> None:
        if isinstance(wish, Interrupt):
            await self._interrupt(socket)
        elif isinstance(wish, Complete):
            await self._complete(socket, wish)
        elif isinstance(wish, ChooseFrame):
            await self._choose(socket, wish.index)
        elif wish.code.lstrip().startswith("#") and "\n" not in wish.code.strip():
            await self._remark(socket, wish)
        else:
            await self._run(socket, wish)

    async def _interrupt(self, socket: ShellSocket) -> None:
        if self._session is not None:
            self._app.gatekeeper.audit.done(who=socket.user.name, what="interrupt", **self._about())
            session, user = self._session, socket.user.name
            await self._blocking(_guarded, lambda: session.interrupt(user=user))

    async def _remark(self, socket: ShellSocket, wish: Run) -> None:
        user, text = socket.user.name, wish.code.strip()[1:].strip()
        refusal = self._too_long(user, wish)
        if not refusal:
            self._note("remark", user, text, tell=False)
            self._tell_all({"type": "remark", "user": user, "text": text})
            # Whoever floods with remarks waits for the store, which would otherwise collect them all in memory.
            await self._written()
        else:
            socket.tell({"type": "refused", "why": refusal})
        socket.tell({"type": "done", "id": wish.id, "ok": not refusal, "took_s": 0.0, "more": False})

    def _too_long(self, user: str, wish: Run) -> str:
        if len(wish.code) <= CODE_LIMIT:
            return ""
        why = f"The code has {len(wish.code):,} characters; at most {CODE_LIMIT:,} are allowed."
        self._app.gatekeeper.audit.refused(who=user, what=wish.code[:200], why=why, **self._about())
        return why

    async def _complete(self, socket: ShellSocket, wish: Complete) -> None:
        items: list[str] = []
        if self._session is not None and len(wish.code) <= CODE_LIMIT:
            with Guard("shell completion"):
                items = await self._blocking(self._session.complete, wish.code, wish.cursor)
        start = completion_start(wish.code, wish.cursor)
        socket.tell({"type": "completions", "id": wish.id, "items": items[:200], "start": start})

    async def _choose(self, socket: ShellSocket, index: int) -> None:
        session = self._session
        if session is None or not 0 <= index < len(session.frames):
            socket.tell({"type": "refused", "why": f"There is no frame {index}."})
            return
        try:
            async with self._turn:
                await self._blocking(session.select_frame, index)
        except SessionGone as error:
            await self._fall_back(str(error))
            return
        except ShellError as error:
            socket.tell({"type": "refused", "why": str(error)})
            return
        self._tell_all({"type": "frame", "index": index, "user": socket.user.name})

    async def _run(self, socket: ShellSocket, wish: Run) -> None:
        user = socket.user.name
        if why := self._too_long(user, wish):
            socket.tell({"type": "refused", "why": why})
            socket.tell({"type": "done", "id": wish.id, "ok": False, "took_s": 0.0, "more": False})
            return
        async with self._turn:
            session = self._session
            if session is None or self._ended:
                return
            self._app.gatekeeper.audit.done(who=user, what=wish.code, **self._about())
            self._unfinished = self._line("input", user, wish.code)
            self._tell_all({"type": "input", "id": wish.id, "user": user, "code": wish.code})
            self._running = wish.id
            output = _Output(self, wish.id, user)
            frame = session.frame
            try:
                # The worker's audit log names who typed, not who opened the session.
                done = await self._blocking(lambda: session.run(wish.code, output.hear, user=user))
            except SessionGone as error:
                done = Done(ok=False, frame=frame)
                await output.drained()
                await self._fall_back(str(error))
            except ShellError as error:
                done = Done(ok=False, frame=frame)
                self._say(wish.id, user, Event("error", str(error)))
            except Exception as error:
                # A console that hears of no end would wait for ever.
                logger.exception("A command of the shell failed")
                done = Done(ok=False, frame=frame)
                self._say(wish.id, user, Event("error", f"The shell failed ({type(error).__name__}: {error})."))
            finally:
                self._running = None
            await output.drained()
            if done.more and self._unfinished is not None:
                self._lines.remove(self._unfinished)
                self._unfinished = None
            self._keep_input()
            message = {"type": "done", "id": wish.id, "ok": done.ok, "took_s": done.took_s, "more": done.more}
            self._tell_all(message)
            if done.frame != frame:
                self._tell_all({"type": "frame", "index": done.frame, "user": user})

    def _say(self, number: int, user: str, event: Event) -> None:
        """A piece of output, on the loop."""
        stream = event.stream if event.kind == "output" else event.kind
        kind = {"error": "error", "notice": "event"}.get(event.kind, "output")
        self._note(kind, user, event.text, tell=False)
        self._tell_all({"type": "output", "id": number, "stream": stream or "stdout", "text": event.text})

    # --- the transcript ---------------------------------------------------------------------------------

    def _note(self, kind: str, user: str, text: str, *, tell: bool = True) -> None:
        self._keep_input()
        line = self._line(kind, user, text)
        if tell:
            self._tell_all({"type": "output", "id": 0, "stream": "notice", "text": text})
        self._store_line(line)

    def _line(self, kind: str, user: str, text: str) -> ShellLine:
        self._seq += 1
        line = ShellLine(seq=self._seq, at=self._app.clock.now_s(), user=user, kind=kind, text=text)
        self._lines.append(line)
        del self._lines[:-MOST_LINES]
        return line

    def _keep_input(self) -> None:
        line, self._unfinished = self._unfinished, None
        if line is not None:
            self._store_line(line)

    def _store_line(self, line: ShellLine) -> None:
        if not self._stored and line.kind in ("input", "remark") and self._session is not None:
            self._store_begin(self._session.mode, line)
        if self._stored:
            self._keep(line)

    def _write(self, call: Callable[[Any], Any]) -> None:
        """Write to the store in the one writing thread; a store that is down costs the transcript, not the shell."""

        def write() -> None:
            with Guard("shell transcript"):
                call(self._app.facts.store)

        with Guard("shell transcript"):
            self._rooms.writer.submit(write)

    async def _written(self) -> None:
        """What was to be written until now is."""
        with Guard("shell transcript"):
            await asyncio.get_running_loop().run_in_executor(self._rooms.writer, lambda: None)

    def _about(self) -> dict[str, Any]:
        mode = self._session.mode if self._session is not None else ""
        return {"failure": self._failure_id, "session": self._id, "mode": mode}

    def end(self) -> None:
        """Close the session and its record. Twice is harmless."""
        if self._ended:
            return
        self._keep_input()
        self._ended = True
        self._forget()
        for timer in (self._linger, self._watch):
            if timer is not None:
                self._app.io_loop.remove_timeout(timer)
        for socket in tuple(self._sockets):
            socket.close(1000, "the session ended")
        if self._session is not None:
            self._rooms.close_session(self._session)
        if self._stored:
            at_s, users = self._app.clock.now_s(), list(self._users)
            self._write(lambda store: store.end_shell(self._id, at_s, users))


class _Output:
    """
    Carries events from the session's thread to the loop, in batches, so that a flood of prints is a few messages.

    What goes beyond :data:`MOST_OUTPUT` characters or :data:`MOST_PIECES` pieces of one command is dropped and said
    once: what a sandbox says may have been made to drown the monitor.
    """

    def __init__(self, room: ShellRoom, number: int, user: str) -> None:
        self._room = room
        self._number = number
        self._user = user
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[Event] = []
        self._characters = 0
        self._pieces = 0
        self._cut = False
        self._planned = False

    def hear(self, event: Event) -> None:
        """In the session's thread."""
        with self._lock:
            if self._cut or not event.text:
                return
            last = self._waiting[-1] if self._waiting else None
            joins = last is not None and event.kind == "output" == last.kind and event.stream == last.stream
            self._characters += len(event.text)
            self._pieces += not joins
            if self._characters > MOST_OUTPUT or self._pieces > MOST_PIECES:
                self._cut, joins = True, False
                event = Event("notice", f"Output was cut after {MOST_OUTPUT:,} characters or {MOST_PIECES:,} pieces.")
            if joins and last is not None:
                self._waiting[-1] = Event(last.kind, last.text + event.text, last.stream)
            else:
                self._waiting.append(event)
            if self._planned:
                return
            self._planned = True
        self._loop.call_soon_threadsafe(self._loop.call_later, 0.02, self._flush)

    def _flush(self) -> None:
        with self._lock:
            self._planned = False
            waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._room._say(self._number, self._user, event)

    async def drained(self) -> None:
        """Everything that was heard has been told."""
        self._flush()


def _sentence(words: str) -> str:
    """The reason that a process gave, as a sentence."""
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def _close(session: ShellSession) -> None:
    with Guard("closing a shell"):
        session.close()


def _guarded(call: Callable[[], Any]) -> None:
    with Guard("shell"):
        call()
