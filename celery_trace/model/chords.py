"""Chords: a body waits for the results of the members."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

from celery_trace.model.records import Record, stable_id

#: Celery's task that waits for the members of a chord, for result backends that can't count them. Each retry is one
#: look.
UNLOCK: Final = "celery.chord_unlock"


class Chord(Record, frozen=True, kw_only=True, tag="chord", omit_defaults=True):
    """
    What is known of a chord with a body that waits.

    Either from its ``celery.chord_unlock``, the task that looks whether the members have ended; then ``members`` are
    the ids of all of them, unless ``complete`` is false. Or, where the result backend counts the members (Redis), from
    one member that lasts or has failed.
    """

    group: str
    at_s: float
    root_id: str = ""
    unlock: str = ""  # the id of that task
    body: str = ""  # the name of the body's task
    body_id: str = ""
    members: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def key(self) -> str:
        return stable_id("chord", self.group, self.unlock or "".join(self.members[:1]))


class ChordCount(Struct, frozen=True, kw_only=True):
    """How many members of a chord have ended, as a result backend counts them, and the states of those that have."""

    size: int
    ended: int
    states: dict[str, str] = {}  # by the id of a member
