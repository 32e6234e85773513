"""What the other processes of a worker know of a name: asked before it is investigated, told when it is not over."""

from __future__ import annotations

from celery_trace.model import Kind, Stage, Verdict, Window, new_id
from celery_trace.probes.census import Kept
from celery_trace.probes.lease import Note
from celery_trace.probes.plan import Services

#: How long what one child of a worker has settled counts for the others, seconds; a cache that was seen to grow in so
#: many of them is settled too.
_SETTLED_FOR_S = 30.0
_SEEN_BY = 4


class Others:
    """
    The other processes of the same worker, by the notes that they left under a lease.

    A worker that replaces its children every few runs would otherwise pay for the same answer in each, or never
    come to one.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def word(self, kind: Kind, name: str) -> Note | None:
        """What was left last about a name, by whomever on this host."""
        return self._services.lease.note(kind, name)

    def have_settled(self, kind: Kind, name: str) -> bool:
        """Whether another child of this worker has lately settled what would be asked here."""
        word = self.word(kind, name)
        if word is None or word.fleet != self._services.fleet or word.process == self._services.process:
            return False
        settled = word.stage == "decided" or (bool(word.bounded) and word.processes >= _SEEN_BY)
        return settled and 0 <= self._services.clock.now_s() - word.at_s < _SETTLED_FOR_S

    def warn(self, kind: Kind, name: str, last: Kept) -> None:
        """Processes may be recycled before a suspicion is complete: leave word of the first signs."""
        if self.word(kind, name) is not None:
            return
        services = self._services
        note = Note(
            investigation=new_id(),
            fleet=services.fleet,
            process=services.process,
            at_s=services.clock.now_s(),
            stage="suspect",
            kept_blocks=last.blocks,
            kept_bytes=last.bytes,
        )
        services.lease.leave(kind, name, note)

    def take_back(self, kind: Kind, name: str, word: Note, *, runs: int, run_number: int) -> None:
        """It does not grow here: a verdict that an earlier process left holds no more."""
        if word.stage != "decided":
            return
        services = self._services
        services.lease.leave(kind, name, None)
        services.emit(
            Window(
                id=new_id(),
                investigation=word.investigation,
                process=services.process,
                kind=kind,
                name=name,
                stage=Stage.VERDICT,
                verdict=Verdict.STEADY,
                at_s=services.clock.now_s(),
                runs=runs,
                run_number=run_number,
                note="an earlier process saw it leak; here it does not grow",
            )
        )
