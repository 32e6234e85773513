"""
The live shell's server in the failed process: sessions over failures that the keeper holds.

Every message is checked first (:mod:`celery_trace.control.signing`); refused ones are counted, logged and audited, and
answered only if the signature was valid. Commands run in a thread of their session; this object is called by the
keeper's one thread and never waits for a command.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from typing import NamedTuple

import msgspec
from msgspec import Struct

from celery_trace import os_threads
from celery_trace.clock import Clock
from celery_trace.control.audit import AuditLog
from celery_trace.control.channel import reply_address
from celery_trace.control.signing import MessageRefused, RefusalLimit, ReplayCache, SignedMessage, sign, verify
from celery_trace.guard import Guard
from celery_trace.model import plain_text
from celery_trace.shell import output
from celery_trace.shell.awaiting import Loop
from celery_trace.shell.interpreter import CommandResult, Interpreter
from celery_trace.shell.live.executor import Executor
from celery_trace.shell.session import CODE_LIMIT, Event
from celery_trace.shell.trace_object import ShellFacts, Trace
from celery_trace.text.format import duration
from celery_trace.transports.raw import RawRefusal

logger = logging.getLogger("celery_trace.shell")

#: Time limit of a command before it is interrupted, seconds.
COMMAND_LIMIT_S = 30.0
#: How long after the first interrupt a running command is abandoned with its session, seconds.
GIVE_UP_S = 10.0
#: A session without messages for this long ends, seconds.
SILENT_S = 150.0
SESSIONS = 8
#: Pause after each message that was not signed with our key, seconds, to limit the work of a flood: the thread that
#: reads them shares the interpreter with the tasks.
STRANGER_PAUSE_S = 0.002
_SESSION_ID_LIMIT = 64


class Body(Struct, frozen=True, omit_defaults=True):
    """The body of a command; the action determines the fields."""

    code: str = ""
    cursor: int = 0
    index: int = 0
    leaks: list[dict[str, object]] = []


class Reply(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The body of a reply."""

    pieces: list[Event] = []
    done: bool = False
    ok: bool = True
    more: bool = False
    took_s: float = 0.0
    frame: int = 0
    items: list[str] = []
    frames: list[tuple[str, int, str]] = []
    notices: list[str] = []
    why: str = ""


_bodies = msgspec.json.Decoder(Body)


class Outgoing(NamedTuple):
    """A reply for the sender, which joins the pieces of one command."""

    session: str
    failure: str
    action: str
    answers: str
    reply: Reply


class Target(NamedTuple):
    """What a session opens: a kept failure."""

    failure: str
    trace: Trace
    context: Context
    until_s: float  # wall clock


class _Session:
    def __init__(self, id_: str, target: Target, user: str, clock: Clock) -> None:
        self.id = id_
        self.failure = target.failure
        self.user = user
        self.context = target.context.copy()
        # Each session has its own trace, as it may select another frame.
        trace = target.trace
        self.trace = Trace(
            trace.frames,
            exception=trace.exception,
            args=trace.args,
            kwargs=trace.kwargs,
            task=trace.task,
            request=trace.request,
            mode="live",
        )
        self.executor = Executor(f"celery-trace-shell-{id_[:8]}", clock)
        self.loop = Loop()
        self.interpreter = Interpreter(self.trace, await_=self.loop.run)
        self.sequence = 0
        self.heard_s = clock.monotonic_s()
        self.interrupted_s: float | None = None
        self.command = ""  # nonce of the running one

    def release(self) -> None:
        """Called last, in the session's own thread."""
        self.loop.close()
        self.interpreter.close()


class LiveHost:
    """
    Executes commands.

    Args:
        process: This process's uid, the target that commands must name.
        find: Returns the kept failure by its id, or None.
        drop: Releases a kept failure.
        send: Sends a reply; never blocks.
        counters: Counts ``live:done``, ``live:refused`` and ``live:refused:<why>``.
        replays: The nonces that this process has accepted. A host exists only while failures are kept; a message to one
            must not be executed by the next.
    """

    def __init__(
        self,
        process: str,
        key: bytes,
        clock: Clock,
        *,
        find: Callable[[str], Target | None],
        drop: Callable[[str], bool],
        send: Callable[[Outgoing], None],
        audit: AuditLog,
        counters: Counter[str],
        replays: ReplayCache,
        command_limit_s: float = COMMAND_LIMIT_S,
    ) -> None:
        self._process = process
        self._key = key
        self._clock = clock
        self._find = find
        self._drop = drop
        self._send = send
        self._audit = audit
        self._counters = counters
        self._limit_s = command_limit_s
        self._replays = replays
        self._refusals = RefusalLimit(clock)
        self._sessions: dict[str, _Session] = {}
        self._given_up: list[_Session] = []
        self._pause = os_threads.lock()
        self._pause.acquire()

    @property
    def busy(self) -> bool:
        """Whether a command is running, so that time limits must be checked often."""
        return any(session.executor.busy for session in list(self._sessions.values()))

    @property
    def open_sessions(self) -> int:
        return len(self._sessions)

    # --- messages -------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Check a message and act on it; never raises."""
        message: SignedMessage | None = None
        try:
            message = verify(
                self._key,
                data,
                kind="command",
                target=self._process,
                now_s=self._clock.now_s(),
                replays=self._replays,
            )
            self._act(message)
        except MessageRefused as refused:
            self._refuse(refused, message)
        except Exception:
            with Guard("live shell: command"):
                raise

    def refused(self, refusal: RawRefusal) -> None:
        """Count a message that was refused unread; never raises."""
        with Guard("live shell: refusal"):
            self._refuse(MessageRefused(refusal.why, refusal.text), None)

    def _refuse(self, refused: MessageRefused, message: SignedMessage | None) -> None:
        self._counters["live:refused"] += 1
        self._counters[f"live:refused:{refused.code}"] += 1
        claims = message.claims if message is not None else refused.claims
        if self._refusals.admit():
            logger.warning("celery-trace: a command to the live shell was refused (%s): %s", refused.code, refused)
            self._audit.note(
                claims.action if claims is not None else "",
                verdict=f"refused: {refused.code}: {refused}",
                process=self._process,
                failure=claims.failure if claims is not None else "",
                session=claims.session if claims is not None else "",
                user=claims.user if claims is not None else "",
                stranger=claims is None,
            )
        if claims is None:
            self._pause.acquire(timeout=STRANGER_PAUSE_S)
        # Don't answer replayed messages, which may come from an attacker; only fresh ones from a key holder.
        if claims is not None and claims.target == self._process and refused.code != "replayed" and claims.session:
            reply = Reply(done=True, ok=False, why=f"{refused.code}: {refused}")
            self._send(Outgoing(claims.session, claims.failure, "refused", claims.nonce, reply))

    def _act(self, message: SignedMessage) -> None:
        claims = message.claims
        try:
            body = _bodies.decode(message.body) if message.body else Body()
        except msgspec.DecodeError:
            raise MessageRefused("malformed", "the body is not that of a command", claims) from None
        if not claims.session or len(claims.session) > _SESSION_ID_LIMIT or not claims.session.isalnum():
            raise MessageRefused("malformed", "a session's id is letters and digits", claims)
        if claims.action == "open":
            self._open(message, body)
            return
        if claims.action == "drop":
            self._drop_kept(message)
            return
        session = self._sessions.get(claims.session)
        if session is None or session.failure != claims.failure:
            raise MessageRefused("unknown_session", "there is no such session in this process", claims)
        if claims.sequence <= session.sequence:
            raise MessageRefused("out_of_order", f"command {claims.sequence} after {session.sequence}", claims)
        session.sequence = claims.sequence
        session.heard_s = self._clock.monotonic_s()
        if claims.action == "run":
            self._run(session, message, body)
        elif claims.action == "complete":
            self._complete(session, message, body)
        elif claims.action == "interrupt":
            session.executor.interrupt()
            self._note(message, "interrupt")
        elif claims.action == "frame":
            if session.executor.busy:
                raise MessageRefused("busy", "a command is running", claims)
            chosen = session.interpreter.select_frame(body.index)
            self._answer(message, "chosen", Reply(done=True, ok=chosen, frame=session.interpreter.frame))
        elif claims.action == "ping":
            self._answer(message, "pong", Reply(done=True, frame=session.interpreter.frame))
        elif claims.action == "close":
            self._end(session)
        else:
            raise MessageRefused("unknown_action", f"{claims.action[:40]} is not a command of this version", claims)

    def _open(self, message: SignedMessage, body: Body) -> None:
        claims = message.claims
        if claims.session in self._sessions:
            raise MessageRefused("out_of_order", "this session is open already", claims)
        if len(self._sessions) + len(self._given_up) >= SESSIONS:
            raise MessageRefused("too_many", f"{SESSIONS} sessions are open in this process; close one", claims)
        target = self._find(claims.failure)
        if target is None:
            raise MessageRefused("unknown_failure", "this process no longer keeps that failure", claims)
        session = _Session(claims.session, target, claims.user, self._clock)
        session.trace.leaks = [ShellFacts("leak", leak) for leak in body.leaks]
        self._sessions[session.id] = session
        self._note(message, "open")
        left_s = max(0.0, target.until_s - self._clock.now_s())
        notices = [
            "Live: your commands run in the process that failed, next to its current tasks.",
            f"It keeps this failure for {duration(round(left_s))} more, unless newer failures need the memory.",
        ]
        frames = [(plain_text(frame.file), frame.line, plain_text(frame.function)) for frame in session.trace.frames]
        self._answer(
            message,
            "opened",
            Reply(done=True, frames=frames, frame=session.interpreter.frame, notices=notices),
        )

    def _drop_kept(self, message: SignedMessage) -> None:
        dropped = self._drop(message.claims.failure)
        self._note(message, "drop")
        self._answer(message, "dropped", Reply(done=True, ok=dropped))

    # --- commands -------------------------------------------------------------------------------------

    def _run(self, session: _Session, message: SignedMessage, body: Body) -> None:
        claims = message.claims
        if len(body.code) > CODE_LIMIT:
            raise MessageRefused(
                "too_big", f"{len(body.code)} characters of code; at most {CODE_LIMIT} are run", claims
            )
        if session.executor.busy:
            raise MessageRefused("busy", "another command is running in this session", claims)
        started_s = self._clock.monotonic_s()
        result: list[CommandResult] = []

        def emit(kind: str, text: str, stream: str) -> None:
            self._send(
                Outgoing(
                    session.id,
                    session.failure,
                    "events",
                    claims.nonce,
                    Reply(pieces=[Event(kind, plain_text(text), stream)]),
                )
            )

        def run() -> None:
            try:
                result.append(session.context.run(session.interpreter.run, body.code, emit))
            finally:
                _close_database_connections()

        def finished() -> None:
            output.remove()
            outcome = result[0] if result else None
            took_s = self._clock.monotonic_s() - started_s
            session.command = ""
            session.interrupted_s = None
            reply = Reply(
                done=True,
                ok=outcome is not None and outcome.ok,
                more=outcome is not None and outcome.more,
                took_s=took_s,
                frame=session.interpreter.frame,
            )
            self._send(Outgoing(session.id, session.failure, "events", claims.nonce, reply))
            if session.id not in self._sessions:
                session.release()  # the session ended while this command ran

        # Audit first, in case the command kills the process.
        self._note(message, body.code)
        session.command = claims.nonce
        if not session.executor.submit(run, finished, output.install):
            raise MessageRefused("busy", "another command is running in this session", claims)

    def _complete(self, session: _Session, message: SignedMessage, body: Body) -> None:
        items: list[str] = []
        if not session.executor.busy and len(body.code) <= CODE_LIMIT:
            with Guard("live shell: completion"):
                items = session.interpreter.complete(body.code, body.cursor)
        self._answer(message, "completions", Reply(done=True, items=items))

    def _answer(self, message: SignedMessage, action: str, reply: Reply) -> None:
        claims = message.claims
        self._send(Outgoing(claims.session, claims.failure, action, claims.nonce, reply))

    def _note(self, message: SignedMessage, command: str) -> None:
        self._counters["live:done"] += 1
        claims = message.claims
        self._audit.note(
            command, process=self._process, failure=claims.failure, session=claims.session, user=claims.user
        )

    # --- time -----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Interrupt long commands, abandon those that can't be interrupted, end silent sessions."""
        now_s = self._clock.monotonic_s()
        self._given_up = [session for session in self._given_up if session.executor.busy]
        for session in list(self._sessions.values()):
            if session.executor.running_s > self._limit_s:
                if session.interrupted_s is None:
                    session.interrupted_s = now_s
                    self._send_notice(session, f"Stopped: a command may take {self._limit_s:g} s.")
                if now_s - session.interrupted_s > GIVE_UP_S:
                    why = "the command can't be interrupted: it waits in C code or catches the interrupt"
                    self._send_goodbye(session, why)
                    self._given_up.append(session)
                else:
                    session.executor.interrupt()
            elif now_s - session.heard_s > SILENT_S:
                self._end(session)

    def _send_notice(self, session: _Session, text: str) -> None:
        reply = Reply(pieces=[Event("notice", text)])
        self._send(Outgoing(session.id, session.failure, "events", session.command, reply))

    def _send_goodbye(self, session: _Session, why: str) -> None:
        self._send(Outgoing(session.id, session.failure, "bye", session.command, Reply(done=True, ok=False, why=why)))
        self._end(session)

    def _end(self, session: _Session) -> None:
        self._sessions.pop(session.id, None)
        # In the session's own thread, to which its event loop and names belong. If a command still runs, the names are
        # released with the thread.
        session.executor.submit(lambda: None, session.release)
        session.executor.close()

    def end_sessions(self, failure: str | None, why: str) -> None:
        """End the sessions over a failure that is no longer kept; None means all."""
        for session in list(self._sessions.values()):
            if failure is None or session.failure == failure:
                session.executor.interrupt()
                self._send_goodbye(session, why)


def _close_database_connections() -> None:
    """Django opens a connection per thread; an idle shell must not hold one."""
    django_db = sys.modules.get("django.db")
    if django_db is not None:
        with Guard("live shell: database connections"):
            django_db.connections.close_all()


def _merged(pieces: list[Event], more: list[Event]) -> list[Event]:
    """Concatenate pieces. Output to one stream becomes one piece, as print writes several."""
    if pieces and more and pieces[-1].kind == more[0].kind == "output" and pieces[-1].stream == more[0].stream:
        joined = Event("output", pieces[-1].text + more[0].text, more[0].stream)
        return [*pieces[:-1], joined, *more[1:]]
    return pieces + more


class Packer:
    """Joins and signs the waiting replies of a session. Called by the sender's thread only."""

    PIECES = 200

    def __init__(self, key: bytes, clock: Clock) -> None:
        self._key = key
        self._clock = clock
        self._sequences: dict[str, int] = {}

    def pack(self, items: list[Outgoing]) -> list[tuple[str, bytes]]:
        """Signed messages in order; waiting pieces of one command share one."""
        joined: list[Outgoing] = []
        for item in items:
            last = joined[-1] if joined else None
            if (
                last is not None
                and last.action == item.action == "events"
                and (last.session, last.answers) == (item.session, item.answers)
                and not last.reply.done
                and len(last.reply.pieces) < self.PIECES
            ):
                pieces = _merged(last.reply.pieces, item.reply.pieces)
                joined[-1] = item._replace(reply=msgspec.structs.replace(item.reply, pieces=pieces))
            else:
                joined.append(item)
        return [(reply_address(item.session), self._signed(item)) for item in joined]

    def _signed(self, item: Outgoing) -> bytes:
        sequence = self._sequences.get(item.session, 0) + 1
        self._sequences[item.session] = sequence
        if item.action == "bye":
            del self._sequences[item.session]
        elif len(self._sequences) > 1000:
            self._sequences.pop(next(iter(self._sequences)))
        data, _nonce = sign(
            self._key,
            kind="reply",
            target=item.session,
            action=item.action,
            now_s=self._clock.now_s(),
            body=msgspec.json.encode(item.reply).decode("utf-8"),
            failure=item.failure,
            session=item.session,
            sequence=sequence,
            answers=item.answers,
        )
        return data
