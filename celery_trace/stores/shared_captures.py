"""
Failures of a group are stored as differences to one of them, the base, which is kept in ``captures``.

The first failure of a group is stored whole there; similar ones take a tenth of its space. A capture is used for new
failures for one day only, so that it is not kept much longer than the failures that need it; it is removed with the
last of them.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from celery_trace.model import Failure
from celery_trace.stores import rows as rows_of
from celery_trace.stores import sizes, tables, values
from celery_trace.stores.errors import Interrupted
from celery_trace.stores.mapping import Row
from celery_trace.stores.payloads import DeltaBase, squeeze, unsqueeze
from celery_trace.stores.statements import chunks, insert_new

#: How long a capture is used for new failures, seconds.
SERVES_S = 86_400.0
#: Captures of one group in use at a time. A failure that is similar to none of them is stored whole.
MOST_OF_A_GROUP = 4
#: Smaller records are stored whole, bytes of JSON.
LEAST_BYTES = 600
#: Size limit of the cache of recent captures, bytes of JSON.
REMEMBERED_BYTES = 8 * 1024 * 1024

_table = tables.captures


class _Remembered:
    """A cache of captures by id. A capture never changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[DeltaBase, str]] = OrderedDict()
        self._bytes = 0

    def get(self, id: str) -> tuple[DeltaBase, str] | None:
        with self._lock:
            found = self._known.get(id)
            if found is not None:
                self._known.move_to_end(id)
            return found

    def put(self, id: str, base: DeltaBase, text: str) -> None:
        with self._lock:
            if id not in self._known:
                self._known[id] = (base, text)
                self._bytes += len(base.json)
            while self._bytes > REMEMBERED_BYTES and len(self._known) > 1:
                _, (gone, _) = self._known.popitem(last=False)
                self._bytes -= len(gone.json)


_remembered = _Remembered()


def bases(connection: sa.Connection, ids: Iterable[str]) -> dict[str, DeltaBase]:
    """Captures by id; missing ones are left out."""
    return {id: base for id, (base, _) in _found(connection, ids).items()}


def _found(connection: sa.Connection, ids: Iterable[str]) -> dict[str, tuple[DeltaBase, str]]:
    wanted = set(ids) - {""}
    found = {id: known for id in wanted if (known := _remembered.get(id)) is not None}
    for part in chunks(sorted(wanted - set(found))):
        read = sa.select(_table.c.id, _table.c.payload, _table.c.text).where(_table.c.id.in_(part))
        for id, payload, text in connection.execute(read):
            found[id] = (DeltaBase(unsqueeze(payload)), text)
            _remembered.put(id, *found[id])
    return found


def texts(connection: sa.Connection, ids: Iterable[str]) -> dict[str, str]:
    """The searched texts of captures by id."""
    return {id: text for id, (_, text) in _found(connection, ids).items()}


class Sharing:
    """
    Stores the failures of one transaction.

    Args:
        connection: The transaction's connection.
        fingerprints: Their groups.
        now_s: When it is, seconds since the epoch.
    """

    def __init__(self, connection: sa.Connection, fingerprints: Iterable[str], now_s: float) -> None:
        self._connection = connection
        self._now_s = now_s
        self._changes: Counter[str] = Counter()
        self._fresh: dict[str, Row] = {}
        #: By group: the captures in use, the most recently used first.
        self._serving: dict[str, list[tuple[str, DeltaBase, str]]] = defaultdict(list)
        serving: list[tuple[str, str]] = []
        for part in chunks(sorted(set(fingerprints))):
            young = sa.select(_table.c.fingerprint, _table.c.id)
            young = young.where(_table.c.fingerprint.in_(part), _table.c.at_s > now_s - SERVES_S)
            serving += [(fingerprint, id) for fingerprint, id in connection.execute(young.order_by(_table.c.at_s))]
        found = _found(connection, (id for _, id in serving))
        for fingerprint, id in serving:
            if id in found:
                self._serving[fingerprint].append((id, *found[id]))

    def store(self, record: Failure, before: sa.RowMapping | None = None) -> tuple[Row, Row]:
        """
        A failure's rows, for ``failures`` and for ``failure_values``.

        Args:
            record: The failure.
            before: Its existing row in ``failures``, if any.
        """
        text = values.searchable(record)
        json = rows_of.encoded(record)
        if before is not None and before["shared"]:
            self._changes[before["shared"]] -= 1
        found = self._share(rows_of.fingerprint(record), json, text) if len(json) >= LEAST_BYTES else None
        if found is None:
            return rows_of.failure_row(record, squeeze(json)), {"id": record.id, "text": text}
        id, payload, common = found
        self._changes[id] += 1
        return rows_of.failure_row(record, payload, id), {"id": record.id, "text": values.difference(text, common)}

    def _share(self, fingerprint: str, json: bytes, text: str) -> tuple[str, bytes, str] | None:
        """The capture that a record is similar to, the difference, and its text; a new capture if the limit allows."""
        serving = self._serving[fingerprint]
        for place, (id, base, common) in enumerate(serving):
            payload = base.difference(json)
            if payload is not None:
                serving.insert(0, serving.pop(place))
                return id, payload, common
        if len(serving) >= MOST_OF_A_GROUP:
            return None
        id, base = hashlib.blake2b(json, digest_size=16).hexdigest(), DeltaBase(json)
        payload = base.difference(json)
        if payload is None:
            return None
        self._fresh[id] = {
            "id": id,
            "fingerprint": fingerprint,
            "at_s": self._now_s,
            "failures": 0,
            "text": text,
            "payload": squeeze(json),
        }
        _remembered.put(id, base, text)
        serving.insert(0, (id, base, text))
        return id, payload, text

    def write(self) -> int:
        """
        Write new captures, and how many failures use each.

        Returns:
            By how many bytes the captures have grown.

        Raises:
            Interrupted: Another writer has pruned one meanwhile.
        """
        used = {id: row for id, row in sorted(self._fresh.items()) if self._changes[id] > 0}
        more = sum(len(row["payload"]) + len(row["text"]) + sizes.CAPTURE_BYTES for row in used.values())
        insert_new(self._connection, _table, list(used.values()))
        return more - change(self._connection, self._changes)


def change(connection: sa.Connection, changes: Mapping[str, int]) -> int:
    """
    Change how many failures use captures; unused ones are removed.

    Returns:
        The size of the removed captures, bytes.

    Raises:
        Interrupted: A capture that is to be used is gone.
    """
    for id, by in sorted(changes.items()):
        if by:
            more = sa.update(_table).where(_table.c.id == id).values(failures=_table.c.failures + by)
            if connection.execute(more).rowcount == 0 and by > 0:
                raise Interrupted(_table.name)
    gone_bytes = 0
    for part in chunks(sorted(id for id, by in changes.items() if by < 0)):
        unused = sa.and_(_table.c.id.in_(part), _table.c.failures <= 0)
        gone_bytes += sizes.weight_of_captures(connection, unused)
        connection.execute(sa.delete(_table).where(unused))
    return gone_bytes
