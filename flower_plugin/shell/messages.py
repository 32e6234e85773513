"""
The messages between a browser and its shell.

What a command says, and how it ends, is what the core's session tells, with the number of the command.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Struct

from celery_trace.model import ShellLine
from celery_trace.shell.session import Done, Event, FrameInfo

#: A number that JSON carries back as it came.
Number = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


# --- from the browser -------------------------------------------------------------------------------------


class RunCode(Struct, frozen=True, tag="run"):
    """Run a command."""

    id: Number
    code: str


class Complete(Struct, frozen=True, tag="complete"):
    """What could stand at the cursor?"""

    id: Number
    code: str
    cursor: Number


class Interrupt(Struct, frozen=True, tag="interrupt"):
    """Stop the running command."""


class ChooseFrame(Struct, frozen=True, tag="frame"):
    """Choose a frame."""

    index: Number


class Ping(Struct, frozen=True, tag="ping"):
    """Are you there?"""


Asked = RunCode | Complete | Interrupt | ChooseFrame | Ping

_decoder: msgspec.json.Decoder[Asked] = msgspec.json.Decoder(Asked)


class NotUnderstood(ValueError):
    """A message that is none of the shell's; the text says why."""


def read(message: str | bytes) -> Asked:
    """
    A message of a browser.

    Raises:
        NotUnderstood: It is none of these.
    """
    try:
        return _decoder.decode(message)
    except RecursionError:
        raise NotUnderstood("it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotUnderstood(str(error)) from error


# --- to the browser ---------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """Somebody has joined: all that the page needs to begin. ``running`` is the number of the running command."""

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
    """Who is in the room."""

    names: list[str]


class Input(Struct, frozen=True, tag="input"):
    """Somebody runs a command."""

    id: int
    user: str
    code: str


class Remark(Struct, frozen=True, tag="remark"):
    """Somebody says something to the others."""

    user: str
    text: str


class Output(Event, frozen=True, tag="output"):
    """A piece of what command ``id`` says; 0 is the room itself."""

    id: int = 0


class Ended(Done, frozen=True, kw_only=True, tag="done"):
    """Command ``id`` is over."""

    id: int


class Completions(Struct, frozen=True, tag="completions"):
    """What could stand at the cursor; it replaces the text from ``start``."""

    id: int
    items: list[str]
    start: int


class ModeChanged(Struct, frozen=True, tag="mode"):
    """The session goes on in another mode."""

    mode: str
    why: str
    frame: int


class FrameChosen(Struct, frozen=True, tag="frame"):
    """Somebody chose a frame."""

    index: int
    user: str


class ShellRefusal(Struct, frozen=True, tag="refused"):
    """Something is not done."""

    why: str


class Pong(Struct, frozen=True, tag="pong"):
    """The line is alive."""


Told = (
    Hello | Watchers | Input | Remark | Output | Ended | Completions | ModeChanged | FrameChosen | ShellRefusal | Pong
)
