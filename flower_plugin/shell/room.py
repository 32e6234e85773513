"""One session and the people around it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from celery_trace.guard import Guard
from celery_trace.model import Failure
from celery_trace.shell.session import CODE_LIMIT, Done, Event, SessionGone, ShellError, ShellSession, completion_start
from flower_plugin.auth.roles import User
from flower_plugin.context import MonitorContext
from flower_plugin.shell.messages import (
    Asked,
    ChooseFrame,
    Complete,
    Completions,
    Ended,
    FrameChosen,
    Hello,
    Input,
    Interrupt,
    ModeChanged,
    Output,
    Ping,
    Pong,
    Remark,
    RunCode,
    ShellRefusal,
    Told,
    Watchers,
)
from flower_plugin.shell.opener import Opener
from flower_plugin.shell.output import OutputBatches
from flower_plugin.shell.threads import ShellThreads
from flower_plugin.shell.transcript import RoomTranscript

logger = logging.getLogger("celery_trace.monitor")

#: How long a room waits for somebody to come back after the last one left, seconds.
LINGER_S = 120.0
#: How often a live room looks whether its process still holds the failure, seconds.
LOOK_EVERY_S = 2.0
#: Pages that may be open in one room.
MOST_WATCHERS = 50
LOGIN_ENDED = "Your login has ended. Log in again; the session waits for two minutes."


class Watcher(Protocol):
    """A person's line, as the room uses it. ``pending`` counts messages that wait for their answer."""

    pending: int
    refused: bool

    @property
    def user(self) -> User: ...

    def tell(self, message: Told) -> None: ...

    def refuse(self, why: str) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def still_logged_in(self) -> bool: ...


class ShellRoom:
    """
    Holds a :class:`~celery_trace.shell.session.ShellSession` and the lines of whoever joined.

    Everything here runs on the loop; the session blocks and is called in threads. When the process behind a live
    session goes away, the room opens the recreated one by itself.

    Args:
        failure: Its id.
        live: Whether a live session may be opened.
        user: Who opens the room.
        forget: Called when the room has ended.
    """

    def __init__(
        self,
        context: MonitorContext,
        opener: Opener,
        threads: ShellThreads,
        failure: str,
        live: bool,
        user: str,
        forget: Callable[[], object],
    ) -> None:
        self.opened_by = user
        self._context = context
        self._opener = opener
        self._threads = threads
        self._failure_id = failure
        self._live = live
        self._forget = forget
        self._transcript = RoomTranscript(context, threads.writer, failure)
        self._sockets: dict[Watcher, str] = {}
        self._record: Failure | None = None
        self._session: ShellSession | None = None
        self._opening: asyncio.Future[None] | None = None
        self._falling: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()
        self._running: int | None = None
        self._linger: object = None
        self._watch: object = None
        self._ended = False

    # --- people --------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Whether everybody has left."""
        return not self._sockets

    async def join(self, socket: Watcher) -> None:
        """Somebody comes; the first one opens the session."""
        if len(self._sockets) >= MOST_WATCHERS:
            socket.refuse(f"{MOST_WATCHERS} pages are open in this shell already. Close one and try again.")
            return
        if self._linger is not None:
            self._context.loop.remove_timeout(self._linger)
            self._linger = None
        name = socket.user.name
        self._sockets[socket] = name
        self._transcript.joined(name)
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
            Hello(
                mode=session.mode,
                session=self._transcript.id,
                user=name,
                failure=self._failure_id,
                frames=session.frames,
                frame=session.frame,
                watchers=self._watchers(),
                transcript=self._transcript.lines,
                running=self._running,
                notices=session.notices,
            )
        )
        self._tell_all(Watchers(self._watchers()))

    def leave(self, socket: Watcher) -> None:
        """Somebody goes; after the last one the session waits for :data:`LINGER_S`."""
        if self._sockets.pop(socket, None) is None or self._ended:
            return
        self._tell_all(Watchers(self._watchers()))
        if not self._sockets:
            self._linger = self._context.loop.call_later(LINGER_S, self.end)

    def _watchers(self) -> list[str]:
        return sorted(set(self._sockets.values()))

    def _tell_all(self, message: Told) -> None:
        for socket in tuple(self._sockets):
            # Who only watches sends nothing, so the login is looked at here too.
            if socket.still_logged_in():
                socket.tell(message)
            elif not socket.refused:
                socket.refuse(LOGIN_ENDED)

    # --- the session ----------------------------------------------------------------------------------

    async def _open(self, user: str) -> None:
        queries = await self._threads.call(lambda: self._context.queries)
        record = self._record = await self._threads.call(lambda: queries.failure_record(self._failure_id))
        if record is None:
            raise ShellError("There is no such failure; it may have been pruned.")
        kept = await self._threads.call(lambda: queries.kept(self._failure_id)) if self._live else None
        session, why = None, ""
        if kept is not None:
            try:
                session = await self._threads.call(lambda: self._opener.live(kept, record, user))
            except ShellError as error:
                why = f"{_sentence(str(error))} This shell is recreated from the capture."
        if session is None:
            session = await self._threads.call(lambda: self._opener.recreated(record))
        if self._ended:
            self._threads.close_session(session)
            return
        self._begin(session)
        if why:
            self._remark_of_the_room(why)
        if session.mode == "live":
            self._watch = self._context.loop.call_later(LOOK_EVERY_S, self._look)

    def _begin(self, session: ShellSession) -> None:
        self._session = session
        self._transcript.mode = session.mode

    def _look(self) -> None:
        """Is the process still there? A goodbye arrives here without anybody typing."""
        self._watch = None
        session = self._session
        if self._ended or session is None or session.mode != "live":
            return
        if session.gone:
            asyncio.ensure_future(self._fall_back(session.gone))  # noqa: RUF006 - ends with the room
            return
        self._watch = self._context.loop.call_later(LOOK_EVERY_S, self._look)

    async def _fall_back(self, why: str) -> None:
        """Go on recreated. Who types and who looks may both notice the end: it happens once."""
        if self._falling is None:
            self._falling = asyncio.ensure_future(self._recreate(why))
        await asyncio.shield(self._falling)

    async def _recreate(self, why: str) -> None:
        old, record = self._session, self._record
        if self._ended or record is None or old is None or old.mode != "live":
            return
        frame = old.frame
        try:
            session = await self._threads.call(lambda: self._opener.recreated(record))
        except ShellError as error:
            self._remark_of_the_room(f"{_sentence(why)} The shell can't be recreated either: {error}")
            self._tell_all(ShellRefusal(str(error)))
            self.end()
            return
        if self._ended:  # the last one left meanwhile
            self._threads.close_session(session)
            return
        self._begin(session)
        self._threads.close_session(old)
        if 0 < frame < len(session.frames):
            await self._threads.call(lambda: session.select_frame(frame))
        text = f"{_sentence(why)} From here on the shell is recreated from the capture."
        self._transcript.note("event", "", text)
        self._tell_all(ModeChanged(session.mode, text, session.frame))
        for notice in session.notices:
            self._remark_of_the_room(notice)

    # --- what people do ---------------------------------------------------------------------------------

    def hear(self, socket: Watcher, asked: Asked) -> None:
        """One message of a person."""
        if isinstance(asked, Ping):
            socket.tell(Pong())
            return
        socket.pending += 1
        answering = asyncio.ensure_future(self._answer(socket, asked))

        def answered(future: asyncio.Future[None]) -> None:
            socket.pending -= 1
            if not future.cancelled() and (error := future.exception()) is not None:
                logger.error("A message to the shell was not answered", exc_info=error)

        answering.add_done_callback(answered)

    async def _answer(self, socket: Watcher, asked: RunCode | Complete | Interrupt | ChooseFrame) -> None:
        if isinstance(asked, Interrupt):
            await self._interrupt(socket)
        elif isinstance(asked, Complete):
            await self._complete(socket, asked)
        elif isinstance(asked, ChooseFrame):
            await self._choose(socket, asked.index)
        elif why := self._too_long(socket.user.name, asked):
            socket.tell(ShellRefusal(why))
            socket.tell(Ended(ok=False, id=asked.id))
        elif asked.code.lstrip().startswith("#") and "\n" not in asked.code.strip():
            await self._remark(socket, asked)
        else:
            await self._run(socket, asked)

    async def _interrupt(self, socket: Watcher) -> None:
        session, user = self._session, socket.user.name
        if session is None:
            return
        self._audit_done(user, "interrupt")

        def interrupt() -> None:
            with Guard("shell"):
                session.interrupt(user=user)

        await self._threads.call(interrupt)

    async def _remark(self, socket: Watcher, asked: RunCode) -> None:
        user, text = socket.user.name, asked.code.strip()[1:].strip()
        self._transcript.note("remark", user, text)
        self._tell_all(Remark(user, text))
        # Whoever floods with remarks waits for the store, which would otherwise collect them all in memory.
        await self._transcript.written()
        socket.tell(Ended(ok=True, id=asked.id))

    def _too_long(self, user: str, asked: RunCode) -> str:
        if len(asked.code) <= CODE_LIMIT:
            return ""
        why = f"The code has {len(asked.code):,} characters; at most {CODE_LIMIT:,} are allowed."
        self._context.gatekeeper.audit.refused(
            who=user,
            what=asked.code[:200],
            why=why,
            failure=self._failure_id,
            session=self._transcript.id,
            mode=self._transcript.mode,
        )
        return why

    async def _complete(self, socket: Watcher, asked: Complete) -> None:
        items: list[str] = []
        session = self._session
        if session is not None and len(asked.code) <= CODE_LIMIT:
            with Guard("shell completion"):
                items = await self._threads.call(lambda: session.complete(asked.code, asked.cursor))
        socket.tell(Completions(asked.id, items[:200], completion_start(asked.code, asked.cursor)))

    async def _choose(self, socket: Watcher, index: int) -> None:
        session = self._session
        if session is None or not 0 <= index < len(session.frames):
            socket.tell(ShellRefusal(f"There is no frame {index}."))
            return
        try:
            async with self._turn:
                await self._threads.call(lambda: session.select_frame(index))
        except SessionGone as error:
            await self._fall_back(str(error))
            return
        except ShellError as error:
            socket.tell(ShellRefusal(str(error)))
            return
        self._tell_all(FrameChosen(index, socket.user.name))

    async def _run(self, socket: Watcher, asked: RunCode) -> None:
        user = socket.user.name
        async with self._turn:
            session = self._session
            if session is None or self._ended:
                return
            self._audit_done(user, asked.code)
            self._transcript.began(user, asked.code)
            self._tell_all(Input(asked.id, user, asked.code))
            self._running = asked.id
            frame = session.frame
            try:
                done = await self._done(session, asked, user)
            finally:
                self._running = None
            if done.more:
                self._transcript.was_incomplete()
            self._transcript.keep_input()
            self._tell_all(Ended(ok=done.ok, took_s=done.took_s, more=done.more, frame=done.frame, id=asked.id))
            if done.frame != frame:
                self._tell_all(FrameChosen(done.frame, user))

    async def _done(self, session: ShellSession, asked: RunCode, user: str) -> Done:
        """Run a command and tell everybody what it says; how it ended, whatever happens to it."""

        def say(event: Event) -> None:
            self._say(asked.id, user, event)

        output = OutputBatches(say)
        failed = Done(ok=False, frame=session.frame)
        try:
            # The worker's audit log names who typed, not who opened the session.
            done = await self._threads.call(lambda: session.run(asked.code, output.hear, user=user))
        except SessionGone as error:
            output.flush()
            await self._fall_back(str(error))
            done = failed
        except ShellError as error:
            say(Event("error", str(error)))
            done = failed
        except Exception as error:
            # A console that hears of no end would wait for ever.
            logger.exception("A command of the shell failed")
            say(Event("error", f"The shell failed ({type(error).__name__}: {error})."))
            done = failed
        output.flush()
        return done

    def _say(self, number: int, user: str, event: Event) -> None:
        """A piece of output, on the loop; 0 is the number of what the room says."""
        self._transcript.said(user, event)
        self._tell_all(Output(event.kind, event.text, event.stream, number))

    def _remark_of_the_room(self, text: str) -> None:
        self._say(0, "", Event("notice", text))

    def _audit_done(self, user: str, what: str) -> None:
        self._context.gatekeeper.audit.done(
            who=user,
            what=what,
            failure=self._failure_id,
            session=self._transcript.id,
            mode=self._transcript.mode,
        )

    def end(self) -> None:
        """Close the session and its record. Twice is harmless."""
        if self._ended:
            return
        self._ended = True
        self._forget()
        for timer in (self._linger, self._watch):
            if timer is not None:
                self._context.loop.remove_timeout(timer)
        for socket in tuple(self._sockets):
            socket.close(1000, "the session ended")
        if self._session is not None:
            self._threads.close_session(self._session)
        self._transcript.end()


def _sentence(words: str) -> str:
    """The reason that a process gave, as a sentence."""
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")
