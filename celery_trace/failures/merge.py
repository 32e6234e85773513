"""
Merges several records of one failed run into one.

A killed task is reported by its child (frames, but only a ``SystemExit``), by the main process (a time limit, but no
frames) and by the black box (a last stack). Delivery is at least once and in any order, so the merge is a join:
commutative, associative and idempotent. Each group of related fields is taken whole from the record that ranks
highest, and its rank depends on those fields alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from celery_trace.model import Capture, ExceptionInfo, Failure, Kill, Outcome

#: Most kills that are kept of one message, the latest ones.
MOST_KILLS: Final = 200

#: The outcomes, most specific last. For a child that is killed at a time limit, the box only knows "lost".
_OUTCOMES: Final = (
    Outcome.FAILED,
    Outcome.RETRIED,
    Outcome.REJECTED,
    Outcome.INTERNAL_ERROR,
    Outcome.LOST,
    Outcome.REVOKED,
    Outcome.TIME_LIMIT,
)
#: Which witness knows best where it ran.
_WITNESSES: Final = ("", "main", "box", "block", "web", "child")
#: Exceptions that only indicate another event.
_STAND_INS: Final = {
    "WorkerLostError": 1,
    "UnpickleableExceptionWrapper": 1,
    "ExceptionWithTraceback": 1,
    "SystemExit": 2,
    "KeyboardInterrupt": 2,
    "GreenletExit": 2,
}

#: What ranks a record for some of its fields; the greater one wins.
_Rank = tuple[object, ...]

_encode = msgspec.json.Encoder(order="deterministic").encode


def _rank(value: object, order: tuple[object, ...]) -> int:
    return order.index(value) if value in order else -1


def _exception_rank(exception: ExceptionInfo | None) -> int:
    return 0 if exception is None else _STAND_INS.get(exception.type, 3)


def _verdict(failure: Failure) -> _Rank:
    # A box's "lost" ranks below the exception that the run has already reported.
    known = failure.exception is not None
    return (
        known,
        _rank(failure.outcome, _OUTCOMES),
        _exception_rank(failure.exception),
        _encode((failure.exception, failure.outcome, failure.fingerprint)),
    )


def _evidence(failure: Failure) -> _Rank:
    capture = failure.capture
    if capture is None:
        return (0, 0, 0, b"")
    return (sum(len(exception.frames) for exception in capture.exceptions), *_richness(capture))


def _richness(capture: Capture) -> tuple[int, int, bytes]:
    return len(capture.exceptions), len(capture.heap), _encode(capture)


def _place(failure: Failure) -> _Rank:
    return (
        _rank(failure.witness, _WITNESSES),
        failure.pid != 0,
        _encode((failure.witness, failure.process, failure.pid, failure.hostname)),
    )


def _identity(failure: Failure) -> _Rank:
    return (_encode((failure.kind, failure.name, failure.task_id, failure.retries)),)


def _filled(value: object) -> tuple[int, bytes]:
    data = b"" if value is None else _encode(value)
    return len(data), data


def _kills(old: list[Kill], new: list[Kill]) -> list[Kill]:
    """All of both records, oldest first; the first report of each has the best time."""
    known: dict[tuple[str, int], Kill] = {}
    for kill in (*old, *new):
        key = kill.process, kill.pid
        if key not in known or (kill.at_s, kill.worker) < (known[key].at_s, known[key].worker):
            known[key] = kill
    return sorted(known.values(), key=lambda kill: (kill.at_s, kill.process, kill.pid))[-MOST_KILLS:]


def _part(name: str) -> Callable[[Failure], _Rank]:
    return lambda failure: _filled(getattr(failure, name))


def _sample(failure: Failure) -> _Rank:
    sample = failure.last_sample
    return (0.0, 0, b"") if sample is None else (sample.at_s, *_filled(sample))


#: Fields that are taken together, and what ranks them.
_GROUPS: Final[tuple[tuple[tuple[str, ...], Callable[[Failure], _Rank]], ...]] = (
    (("kind", "name", "task_id", "retries"), _identity),
    (("outcome", "exception", "fingerprint"), _verdict),
    (("capture",), _evidence),
    (("witness", "process", "pid", "hostname"), _place),
    (("worker",), _part("worker")),
    (("traceback_text",), _part("traceback_text")),
    (("task",), _part("task")),
    (("request",), _part("request")),
    (("memory",), _part("memory")),
    (("last_sample",), _sample),
    (("note",), _part("note")),
    (("returned",), _part("returned")),
    (("logs",), _part("logs")),
)


def merge(old: Failure, new: Failure) -> Failure:
    """
    One record from two of the same run, or of the same witness twice.

    Args:
        old, new: Records with the same ``id``; their order does not matter.

    Raises:
        ValueError: The records are of different runs.
    """
    if old.id != new.id:
        raise ValueError(f"failures {old.id} and {new.id} are of different runs; only one run's can be merged")
    kills = _kills(old.kills, new.kills)
    # A later witness reports a later end. A redelivered message has several ends.
    at_s = kills[-1].at_s if len(kills) > 1 else min(old.at_s, new.at_s)
    fields: dict[str, object] = {"at_s": at_s, "kills": kills}
    durations = [failure.duration_s for failure in (old, new) if failure.duration_s is not None]
    fields["duration_s"] = max(durations) if durations else None
    for names, rank in _GROUPS:
        better = old if rank(old) >= rank(new) else new
        for name in names:
            fields[name] = getattr(better, name)
    return replace(old, **fields)
