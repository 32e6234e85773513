"""
The shell in a terminal: ``celery -A proj trace shell ID``.

Output of the process is data: control characters are shown as escapes, so that no value can control the user's
terminal. The transcript goes to the store, as in the browser.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import msgspec

from celery_trace import private_files
from celery_trace.clock import Clock, SystemClock
from celery_trace.control.audit import AuditLog
from celery_trace.control.channel import Connect
from celery_trace.guard import Guard
from celery_trace.model import Failure, Kept, ShellLine, ShellView, new_id
from celery_trace.settings import SettingError, Settings
from celery_trace.shell.session import Done, Event, SessionGone, ShellError, ShellSession, completion_start
from celery_trace.text.escape import escaped_lines

if TYPE_CHECKING:
    from celery_trace.queries import Queries
    from celery_trace.stores import Store

_COLOURS = {"error": "31", "notice": "33", "result": "36", "stderr": "31", "prompt": "1;32"}
HISTORY_LINES = 1000


class Screen:
    """Writes a session's output, with colours if the terminal has them."""

    def __init__(self, out: TextIO, *, colour: bool) -> None:
        self._out = out
        self._colour = colour
        self._at_margin = True

    def event(self, event: Event) -> None:
        """One piece of a command's output."""
        text = escaped_lines(event.text)
        if event.kind in ("result", "notice"):
            text = ("" if self._at_margin else "\n") + ("# " if event.kind == "notice" else "") + text + "\n"
        self._write(text, event.stream if event.kind == "output" else event.kind)

    def notice(self, text: str) -> None:
        """A message of the shell."""
        self.event(Event("notice", text))

    def fresh_line(self) -> None:
        """Start a new line unless the cursor is at the start of one."""
        if not self._at_margin:
            self._write("\n", "")

    def new_line(self) -> None:
        """Leave the line with the prompt and the typed text, which we did not write."""
        self._write("\n", "")

    def prompt(self, text: str) -> str:
        """A prompt for ``input``: its colours are between marks that readline does not count."""
        return f"\x01\x1b[{_COLOURS['prompt']}m\x02{text}\x01\x1b[0m\x02" if self._colour else text

    def _write(self, text: str, style: str) -> None:
        if not text:
            return
        self._at_margin = text.endswith("\n")
        if self._colour and style in _COLOURS:
            text = f"\x1b[{_COLOURS[style]}m{text}\x1b[0m"
        self._out.write(text)
        self._out.flush()


class Terminal:
    """
    A user's shell into a failure.

    Args:
        open_live: Opens a live session; None if that is unwanted or impossible.
        open_recreated: Opens a recreated one.
        read: Returns the next line for a prompt; raises EOFError at the end.
    """

    def __init__(
        self,
        failure: Failure,
        *,
        user: str,
        open_live: Callable[[], ShellSession] | None,
        open_recreated: Callable[[], ShellSession],
        read: Callable[[str], str],
        screen: Screen,
        transcript: Store,
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        self._failure = failure
        self._user = user
        self._open_live = open_live
        self._open_recreated = open_recreated
        self._read = read
        self._screen = screen
        self._transcript = transcript
        self._audit = audit
        self._clock = clock
        self._id = new_id()
        self._numbers = itertools.count(1)
        self._reading = False
        self._interrupted = threading.Event()
        self.session: ShellSession | None = None

    def run(self) -> int:
        """
        Read and run commands until the input ends.

        Returns:
            0, or 1 if no session could be opened or the last command failed.
        """
        try:
            self.session = session = self._opened()
        except ShellError as error:
            self._screen.event(Event("error", f"{error}\n"))
            return 1
        self._begin(session)
        ok = True
        try:
            with self._own_ctrl_c():
                for code in self._commands():
                    if code.strip():
                        ok = self._command(code)
                    else:
                        self._pending.clear()
        finally:
            self._finish()
        return 0 if ok else 1

    @contextmanager
    def _own_ctrl_c(self) -> Iterator[None]:
        """
        Ctrl-C clears a line that is being typed, and otherwise interrupts the command.

        Python's own handler raises anywhere in the main thread, which between the two would end the terminal.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def pressed(_number: int, _frame: FrameType | None) -> None:
            if self._reading:
                self._reading = False  # a second press, while the first clears the line, must not end the terminal
                raise KeyboardInterrupt
            self._interrupted.set()

        before = signal.signal(signal.SIGINT, pressed)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _opened(self) -> ShellSession:
        if self._open_live is not None:
            try:
                return self._open_live()
            except ShellError as error:
                self._screen.notice(f"{error} This shell is recreated from the capture.")
        return self._open_recreated()

    def _begin(self, session: ShellSession) -> None:
        for notice in session.notices:
            self._screen.notice(notice)
        if session.frames:
            frame = session.frames[session.frame]
            self._screen.notice(f"In {frame.function}, {frame.file}:{frame.line}. Type help for help, exit to leave.")
        view = ShellView(
            id=self._id,
            failure=self._failure.id,
            mode=session.mode,
            started_at=self._clock.now_s(),
            ended_at=None,
            users=[self._user],
        )
        with Guard("shell transcript"):
            self._transcript.add_shell(view)

    def _finish(self) -> None:
        if self.session is not None:
            self.session.close()
        self._screen.fresh_line()
        with Guard("shell transcript"):
            self._transcript.end_shell(self._id, self._clock.now_s(), [self._user])

    # --- reading --------------------------------------------------------------------------------------

    def _commands(self) -> Iterator[str]:
        """Whole commands, one or several lines each."""
        self._pending: list[str] = []
        while True:
            mode = self.session.mode if self.session is not None else ""
            prompt = self._screen.prompt("... " if self._pending else f"{mode}> ")
            try:
                self._interrupted.clear()
                try:
                    self._reading = True
                    line = self._read(prompt)
                finally:
                    self._reading = False
            except EOFError:
                if self._pending:
                    yield "\n".join([*self._pending, ""])
                return
            except KeyboardInterrupt:
                self._screen.new_line()
                self._pending.clear()
                continue
            if not self._pending and line.strip() in {"exit", "exit()", "quit", "quit()"}:
                return
            self._pending.append(line)
            yield "\n".join(self._pending)

    def _command(self, code: str) -> bool:
        session = self.session
        if session is None:
            return False
        if code.lstrip().startswith("#") and "\n" not in code.strip():
            self._pending.clear()
            self._note("remark", code.strip()[1:].strip())
            return True
        try:
            done = self._ran(session, code)
        except SessionGone as error:
            self._pending.clear()
            self._audited(code, f"the session ended: {error}")
            self._note("input", code)
            return self._fall_back(str(error))
        except ShellError as error:
            self._pending.clear()
            self._audited(code, f"refused: {error}")
            self._screen.event(Event("error", f"{error}\n"))
            return False
        if not done.more:
            self._pending.clear()
        return done.ok

    def _ran(self, session: ShellSession, code: str) -> Done:
        """Run in a separate thread, so that Ctrl-C here interrupts there."""
        said: list[Event] = []
        outcome: list[Done | BaseException] = []

        def on_event(event: Event) -> None:
            said.append(event)
            self._screen.event(event)

        def call() -> None:
            try:
                outcome.append(session.run(code, on_event))
            except BaseException as error:
                outcome.append(error)
            finally:
                over.set()

        over = threading.Event()
        threading.Thread(target=call, name="celery-trace-terminal", daemon=True).start()
        while not over.wait(0.1):
            if self._interrupted.is_set():
                self._interrupted.clear()
                self._screen.notice("Interrupting.")
                session.interrupt()
        self._interrupted.clear()
        result = outcome[0]
        if isinstance(result, BaseException):
            raise result
        if not result.more:
            self._audited(code)
            self._note("input", code)
            for kind, events in itertools.groupby(said, key=lambda event: event.kind):
                text = "".join(event.text for event in events)
                self._note({"error": "error", "notice": "event"}.get(kind, "output"), text)
        return result

    def _audited(self, code: str, verdict: str = "done") -> None:
        self._audit.note(code, verdict=verdict, failure=self._failure.id, session=self._id, user=self._user)

    def _fall_back(self, why: str) -> bool:
        old = self.session
        if old is not None:
            old.close()
        if old is None or old.mode != "live":
            self._screen.notice(why)
            raise EOFError
        self._screen.notice(f"{why}. From here on the shell is recreated from the capture.")
        self._note("event", f"{why}. From here on the shell is recreated from the capture.")
        self.session = self._open_recreated()
        for notice in self.session.notices:
            self._screen.notice(notice)
        return False

    def _note(self, kind: str, text: str) -> None:
        line = ShellLine(seq=next(self._numbers), at=self._clock.now_s(), user=self._user, kind=kind, text=text)
        with Guard("shell transcript"):
            self._transcript.add_shell_line(self._id, line)


# --- the user's side ------------------------------------------------------------------------------------


@contextmanager
def _line_editor(complete: Callable[[str, int], list[str]], history: Path) -> Iterator[None]:
    """Readline with the session's completion and a history that only its owner can read."""
    try:
        import readline
    except ImportError:
        yield
        return
    found: list[str] = []

    def completer(_text: str, state: int) -> str | None:
        if state == 0:
            found.clear()
            line, end = readline.get_line_buffer(), readline.get_endidx()
            with Guard("shell completion"):
                # Readline has its own rule for the start of the replaced word.
                lead = line[readline.get_begidx() : completion_start(line, end)]
                found.extend(lead + item for item in complete(line, end))
        return found[state] if state < len(found) else None

    before = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(completer)
    readline.set_completer_delims(" \t\n`~!@#$%^&*()-=+[{]}\\|;:'\",<>/?.")
    readline.parse_and_bind("tab: complete")
    readline.clear_history()
    with suppress(OSError):
        for line in private_files.read(history).decode("utf-8", "replace").splitlines():
            readline.add_history(line)
    try:
        yield
    finally:
        readline.set_completer(before[0])
        readline.set_completer_delims(before[1])
        with Guard("shell history"):
            last = readline.get_current_history_length()
            lines = [readline.get_history_item(n) for n in range(max(1, last - HISTORY_LINES + 1), last + 1)]
            text = "".join(f"{line}\n" for line in lines if line)
            private_files.replace(history, text.encode("utf-8", "replace"))


def run(
    failure_id: str,
    *,
    queries: Queries,
    store: Store,
    settings: Settings,
    connect: Connect,
    user: str,
    live: bool = True,
    stdin: TextIO | None = None,
    stdout: TextIO | None = None,
    clock: Clock | None = None,
) -> int:
    """
    Run a shell into a failure, on this terminal or from a pipe.

    Args:
        queries: Reads the failure, where it is kept, and the leaks of its task.
        store: Stores the transcript.
        connect: Opens a broker connection, for the live shell.
        live: Try the failed process first, if ``trace_shell`` is ``live``.

    Returns:
        The exit status: 0, or 1 if no session could be opened or the last command failed.
    """
    source, out = stdin or sys.stdin, stdout or sys.stdout
    interactive = source.isatty()
    colour = out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    screen = Screen(out, colour=colour)
    failure: Failure | None = queries.failure_record(failure_id)
    if failure is None:
        screen.event(Event("error", f"There is no failure {failure_id[:60]}. `trace failures` lists them.\n"))
        return 1
    page = queries.leaks(kind=str(failure.kind), name=failure.name, limit=20)
    leaks = [msgspec.to_builtins(leak) for leak in page.rows]
    clock = clock or SystemClock()
    kept: Kept | None = queries.kept(failure_id) if live and settings.shell == "live" else None

    def open_live() -> ShellSession:
        from celery_trace.control.signing import load_key
        from celery_trace.shell.live.client import LiveClient

        assert kept is not None
        try:
            return LiveClient(connect, load_key(settings)).open(kept, failure_id, user, leaks=leaks)
        except SettingError as error:
            raise ShellError(str(error)) from error

    def open_recreated() -> ShellSession:
        from celery_trace.shell.sandbox.recreated import open_session

        return open_session(failure, leaks=leaks)

    def read(prompt: str) -> str:
        if interactive:
            return input(prompt)
        line = source.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    terminal = Terminal(
        failure,
        user=user,
        open_live=open_live if kept is not None else None,
        open_recreated=open_recreated,
        read=read,
        screen=screen,
        transcript=store,
        audit=AuditLog(settings.folder, "terminal", clock, lambda entry: store.write([entry])),
        clock=clock,
    )
    if not interactive:
        return terminal.run()

    def complete(code: str, cursor: int) -> list[str]:
        return terminal.session.complete(code, cursor) if terminal.session is not None else []

    with _line_editor(complete, settings.folder / "shell_history"):
        return terminal.run()
