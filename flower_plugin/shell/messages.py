"""
The messages between a browser and its shell.

Output and the end of a command are the events of the core's session, with the number of the command.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Struct

from celery_trace.model import ShellLine
from celery_trace.shell.session import Done, Event, FrameInfo

#: A number that JavaScript represents exactly.
Number = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


# --- from the browser -------------------------------------------------------------------------------------


class RunCode(Struct, frozen=True, tag="run"):
    """Run a command."""

    id: Number
    code: str


class Complete(Struct, frozen=True, tag="complete"):
    """Request completions at the cursor."""

    id: Number
    code: str
    cursor: Number


class Interrupt(Struct, frozen=True, tag="interrupt"):
    """Stop the running command."""


class ChooseFrame(Struct, frozen=True, tag="frame"):
    """Select a frame."""

    index: Number


class Ping(Struct, frozen=True, tag="ping"):
    """Keep the connection alive."""


ClientMessage = RunCode | Complete | Interrupt | ChooseFrame | Ping

_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)


class InvalidMessage(ValueError):
    """An invalid message; the text has the reason."""


def read(message: str | bytes) -> ClientMessage:
    """
    Parse a message of a browser.

    Raises:
        InvalidMessage: It is invalid.
    """
    try:
        return _decoder.decode(message)
    except RecursionError:
        raise InvalidMessage("it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidMessage(str(error)) from error


# --- to the browser ---------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """Sent to a user who joined, with the state of the session. ``running`` is the number of the running command."""

    mode: str
    session: str
    user: str
    failure: str
    frames: list[FrameInfo]
    frame: int
    watchers: list[str]
    transcript: list[ShellLine]
    running: int | None
    notices: list[str]


class Watchers(Struct, frozen=True, tag="watchers"):
    """The users in the room."""

    names: list[str]


class Input(Struct, frozen=True, tag="input"):
    """A user runs a command."""

    id: int
    user: str
    code: str


class Remark(Struct, frozen=True, tag="remark"):
    """A user's comment to the others."""

    user: str
    text: str


class Output(Event, frozen=True, tag="output"):
    """A piece of the output of command ``id``; 0 is the room itself."""

    id: int = 0


class Ended(Done, frozen=True, kw_only=True, tag="done"):
    """Command ``id`` has ended."""

    id: int


class Completions(Struct, frozen=True, tag="completions"):
    """Completions at the cursor; they replace the text from ``start``."""

    id: int
    items: list[str]
    start: int


class ModeChanged(Struct, frozen=True, tag="mode"):
    """The session continues in another mode."""

    mode: str
    why: str
    frame: int


class FrameChosen(Struct, frozen=True, tag="frame"):
    """A user selected a frame."""

    index: int
    user: str


class ShellRefusal(Struct, frozen=True, tag="refused"):
    """A request was refused."""

    why: str


class Pong(Struct, frozen=True, tag="pong"):
    """The reply to a ping."""


ServerMessage = (
    Hello | Watchers | Input | Remark | Output | Ended | Completions | ModeChanged | FrameChosen | ShellRefusal | Pong
)
