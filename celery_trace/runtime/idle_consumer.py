"""
Why a worker takes no messages although it has a free process: in the worker's main process.

Only attributes of Celery's consumer and of the broker's client are read. What a client has under other names is
unknown, and then there is no reason.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from celery_trace.text.format import plural

#: From when on a broker that sends nothing is a reason, seconds: Redis answers within a second while a worker waits for
#: messages. Of others, it only counts if messages wait.
SILENT_S: Final = 30.0
#: Milliseconds since data was received last, in Linux's `struct tcp_info`.
_LAST_DATA: Final = struct.Struct("=I")
_LAST_DATA_AT: Final = 52


class Idle(Struct, frozen=True):
    """Why a worker takes no messages, as a clause; and since when, seconds since the epoch, None if unknown."""

    because: str
    since_s: float | None = None


def why_idle(consumer: object, *, active: int, held: int, scheduled: int, now_s: float) -> Idle | None:
    """
    Why a worker takes no messages; None if it may take some, or if all of its processes are busy.

    Args:
        consumer: Celery's consumer. If it is not known how many tasks it runs at a time, there is no reason.
        active: Its runs in progress.
        held: Messages that it has received and not acknowledged.
        scheduled: Those of them that wait for their ETA.
        now_s: The time, seconds since the epoch.
    """
    slots = _slots(consumer)
    if not slots or active >= slots:
        return None
    prefetch = _number(getattr(getattr(consumer, "qos", None), "value", None))
    held = max(held, _unacknowledged(consumer))
    if prefetch and held >= prefetch:
        eta = f", and {plural(scheduled, 'message')} in it wait for their ETA" if scheduled else ""
        return Idle(f"its prefetch of {plural(prefetch, 'message')} is full{eta}")
    return _silence(consumer, now_s)


def _slots(consumer: object) -> int:
    """How many tasks the worker can run at a time; 0 if that is unknown."""
    pool = getattr(consumer, "pool", None)
    return _number(getattr(pool, "num_processes", None)) or _number(getattr(pool, "limit", None))


def _unacknowledged(consumer: object) -> int:
    """Counted by the client itself, where kombu implements the broker's protocol (Redis, SQS)."""
    qos = getattr(_channel(consumer), "_qos", None)
    delivered, dirty = getattr(qos, "_delivered", None), getattr(qos, "_dirty", None)
    return len(delivered) - len(dirty) if isinstance(delivered, dict) and isinstance(dirty, set) else 0


def _channel(consumer: object) -> object:
    return getattr(getattr(consumer, "task_consumer", None), "channel", None)


def _silence(consumer: object, now_s: float) -> Idle | None:
    if _channel(consumer) is None:
        return Idle("it has no connection to the broker")
    peers = [found for known in _sockets(consumer) if (found := _received(known)) is not None]
    if not peers:
        return None
    silent_s, peer = min(peers)
    return Idle(f"nothing arrives from the broker {peer}", now_s - silent_s) if silent_s > SILENT_S else None


def _sockets(consumer: object) -> Iterator[socket.socket]:
    """The sockets on which messages arrive."""
    channel = _channel(consumer)
    amqp = getattr(getattr(channel, "connection", None), "_transport", None)
    clients = [getattr(channel, "__dict__", {}).get(name) for name in ("client", "subclient")]
    found = [
        getattr(amqp, "sock", None),
        *(getattr(getattr(one, "connection", None), "_sock", None) for one in clients),
    ]
    for one in found:
        if isinstance(one, socket.socket):
            yield one


def _received(known: socket.socket) -> tuple[float, str] | None:
    """For how long a connection has received nothing, seconds, and its peer; None if that is unknown."""
    if not sys.platform.startswith("linux") or known.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        info = known.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_AT + _LAST_DATA.size)
        host, port = known.getpeername()[:2]
        (last_ms,) = _LAST_DATA.unpack_from(info, _LAST_DATA_AT)
    except (OSError, struct.error, ValueError):
        return None
    return last_ms / 1000, f"{host}:{port}"


def _number(value: object) -> int:
    return value if type(value) is int else 0
