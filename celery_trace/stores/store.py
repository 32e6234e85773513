"""A store: opened once, written in transactions, shared by threads."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TypeVar

import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.engine import Engine

from celery_trace.alerting.rules import StoredRules
from celery_trace.clock import Clock, SystemClock
from celery_trace.model import AlertView, AnyRecord, Delivery, LostStore, ShellLine, ShellView
from celery_trace.settings import Settings
from celery_trace.stores import engine as engines
from celery_trace.stores import lineage, migration, pruning, sizes, state, writing
from celery_trace.stores.database_file import DatabaseFile, Identity
from celery_trace.stores.errors import Interrupted, StoreUnavailable
from celery_trace.stores.pruning import Pruned
from celery_trace.stores.writing import Written
from celery_trace.text.format import size

#: Attempts of a write when other writers change the same rows.
ATTEMPTS = 6
#: How long a file is tried again that another process is just creating, seconds.
_OPENING_S = 2.0

T = TypeVar("T")

logger = logging.getLogger("celery_trace.store")


class Store:
    """
    Reads and writes one database. Thread-safe: each call takes its own connection from the pool.

    Every method that uses the database raises :class:`StoreUnavailable` if it can't be reached, is full, locked for too
    long or read-only.
    """

    def __init__(self, engine: Engine, settings: Settings, *, create: bool, clock: Clock) -> None:
        self.engine = engine
        self.settings = settings
        #: The address without its password.
        self.address = engines.shown(settings.store_url)
        self.clock = clock
        self._by_django = settings.store_url.partition(":")[0] == "django"
        self._create = create
        path = engines.sqlite_path(engine)
        own = engines.is_ours_alone(engine, settings.store_url)
        self._file = None if path is None else DatabaseFile(path.absolute(), has_header=own)
        self._own_file = self._file if own else None
        self._opening = threading.Lock()
        self._is_open = False
        self._id = ""
        # The loss of the store that was open before, and its id, until they are recorded in the next one.
        self._lost: LostStore | None = None
        self._lost_id = ""

    def close(self) -> None:
        """Close the pool's connections; the next use opens the store again."""
        self._is_open = False
        self.engine.dispose()

    # --- opening and reopening

    def open(self) -> None:
        """
        Open the database and migrate its tables; called by :func:`open_store`.

        Raises:
            StoreUnavailable: It can't be reached or created, or its schema is newer than this version.
        """
        before, begun_s = self._id, time.monotonic()
        for attempt in range(ATTEMPTS):
            identity = None
            try:
                engines.prepare_sqlite_file(self._file, self.address, create=self._create and not self._by_django)
                identity = self._file.look() if self._file is not None else None
                self._open_tables()
            except sa.exc.SQLAlchemyError as error:
                self.engine.dispose()
                if is_damage(error):
                    self._lost = self._lost or LostStore(at=self.clock.now_s(), why="damaged")
                    self._set_aside(identity, _reason(error))
                elif _is_busy(error) and attempt < ATTEMPTS - 1 and time.monotonic() - begun_s < _OPENING_S:
                    time.sleep(0.01 * 2**attempt)
                else:
                    raise self._unavailable("open", error) from error
                continue
            except StoreUnavailable:
                self.engine.dispose()
                raise
            if self._file is None or self._file.look() == identity:
                if self._file is not None:
                    self._file.opened(identity)
                self._is_open = True
                if before and self._id != before and self._lost is None:  # emptied, or its tables were dropped
                    self._lost, self._lost_id = LostStore(at=self.clock.now_s(), why="replaced"), before
                self._save_loss()
                return
            self.engine.dispose()
        raise StoreUnavailable(
            f"Can't open the store {self.address}",
            "its file is replaced repeatedly",
            "Find out what replaces it, or set CELERY_TRACE_STORE to another place; records wait in the spool.",
        )

    def _open_tables(self) -> None:
        migration.bring_up_to_date(self.engine, self.address, create=self._create, by_django=self._by_django)
        with self.engine.connect() as connection:
            self._id = lineage.read_id(connection)
        if self._create and not self._id:
            with contextlib.suppress(sa.exc.DBAPIError):  # it is read-only: a writer will create the id
                self._once(sizes.begin)
                self._id = self._once(lineage.give_id)

    def token(self) -> str:
        """
        The id of the database that writes go to; it changes when the database was deleted, replaced or recreated.

        Raises:
            StoreUnavailable: As :meth:`open`.
        """
        self._reopen_if_replaced()
        opened = self._file.identity if self._file is not None else None
        return self._id if opened is None else f"{self._id}@{opened[0]:x}:{opened[1]:x}"

    def _reopen_if_replaced(self) -> None:
        """If the file at the path is no longer the open one, open the new file, or create one."""
        if self._is_open and (self._file is None or not self._file.problem()):
            return
        with self._opening:
            problem = self._file.problem() if self._is_open and self._file is not None else ""
            if problem:
                self._abandon_file(problem, "its header is not that of a database")
            if not self._is_open:
                self.open()

    def _abandon_file(self, problem: str, why: str) -> None:
        """Close a file that was deleted or replaced; set a damaged one aside."""
        assert self._file is not None
        self._lost = LostStore(at=self.clock.now_s(), why=problem, records=self._records_in_old())
        self._lost_id = self._id
        identity = self._file.identity
        self._is_open = False
        self._file.opened(None)
        self.engine.dispose()
        if problem == "damaged":
            self._set_aside(identity, why)

    def _records_in_old(self) -> int | None:
        """The number of records in the open file, if it can still be read."""
        try:
            with self.engine.connect() as connection:
                return lineage.records(connection)
        except sa.exc.SQLAlchemyError:
            return None

    def _set_aside(self, damaged: Identity | None, why: str) -> None:
        """
        Set a damaged file aside, so that a new one can be created.

        Raises:
            StoreUnavailable: We may not rename it: it is Django's, perhaps not a store, or this process only reads.
        """
        file = self._own_file
        ours = file is not None and (not self.settings.store or bool(self._lost_id) or file.holds_our_tables())
        if file is None or not self._create or not ours:
            raise StoreUnavailable(f"Can't use the store {self.address}", f"its file is damaged: {why}", _REPAIR)
        target = file.set_aside(damaged, why)
        if target is not None and self._lost is not None:
            logger.warning("celery-trace: %s is damaged (%s); it was set aside as %s.", file.path, why, target)
            self._lost = replace(self._lost, set_aside=str(target))

    def _check_damage(self, identity: Identity | None, error: sa.exc.SQLAlchemyError, *, again: bool) -> None:
        """SQLite reports damage: close all connections, and set the file aside if new ones report the same."""
        with self._opening:
            if self._file is None or self._file.identity != identity or not self._is_open:
                return  # another thread has handled it
            if again:
                self._abandon_file("damaged", _reason(error))
            else:
                self.engine.dispose()

    def _save_loss(self) -> None:
        """Log the loss of the previous store and record it in this one."""
        lost, before = self._lost, self._lost_id
        self._lost, self._lost_id = None, ""
        if lost is None or (before and before == self._id):  # a copy of the same store was restored
            return
        logger.warning("celery-trace: %s: %s", self.address, lineage.sentence(lost))
        until_s = time.monotonic() + _OPENING_S
        while self._create and time.monotonic() < until_s:
            with contextlib.suppress(sa.exc.SQLAlchemyError):  # the log has it
                self._once(lambda connection: lineage.note(connection, before, lost))
                return
            time.sleep(0.05)

    # --- connections

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection with a consistent view of the store."""
        self._reopen_if_replaced()
        try:
            with self.engine.connect() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise self._unavailable("read from", error) from error

    def in_transaction(self, work: Callable[[sa.Connection], T]) -> T:
        """
        Run ``work`` in a transaction. It is restarted if another writer changed the same rows first, or if the
        database file is no longer the one at the path, so that others can read what was written.

        Raises:
            StoreUnavailable: The database refused, or was busy for too long.
            sqlalchemy.exc.DBAPIError: The database refused the data.
        """
        doubted = False
        for attempt in range(ATTEMPTS):
            self._reopen_if_replaced()
            identity = self._file.identity if self._file is not None else None
            try:
                result = self._once(work)
            except Interrupted:
                pass
            except sa.exc.SQLAlchemyError as error:
                if is_about_data(error):
                    raise
                if is_damage(error) and identity is not None:
                    self._check_damage(identity, error, again=doubted)
                    doubted = True
                elif self._file is not None and self._file.problem():
                    pass  # it was lost meanwhile
                elif not (is_passing(error) and attempt < ATTEMPTS - 1):
                    raise self._unavailable("write to", error) from error
            else:
                if self._file is None or not self._file.problem():
                    return result
            time.sleep(0.01 * 2**attempt)
        raise StoreUnavailable(
            f"Can't write to the store {self.address}",
            f"other writers changed the same rows, or its file was replaced, {ATTEMPTS} times",
            "The same records are retried later.",
        )

    def _once(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in one transaction."""
        with self.engine.connect().execution_options(writing=True) as connection, connection.begin():
            return work(connection)

    # --- records

    def write(self, records: Sequence[AnyRecord]) -> Written:
        """
        Write a batch atomically; writing it again changes nothing.

        A record whose data the database refuses is left out and returned in ``refused``.
        """
        if not records:
            return Written()
        now_s = self.clock.now_s()
        try:
            return self.in_transaction(lambda connection: writing.write(connection, records, now_s))
        except (StoreUnavailable, MemoryError):
            raise
        except Exception as error:  # refused data, or a bug of ours: one record must not stop the others
            with self.reading() as connection:
                # Newer tables may refuse every record of this version: they wait for the update.
                migration.refuse_if_newer(connection, self.address)
            if len(records) == 1:
                return Written(refused=[(records[0], f"{type(error).__name__}: {error}"[:500])])
        middle = len(records) // 2
        written = self.write(records[:middle])
        written.add(self.write(records[middle:]))
        return written

    # --- the monitor's writes

    def save_alert(self, alert: AlertView) -> None:
        """Write an alert's state."""
        self.in_transaction(lambda connection: state.save_alert(connection, alert))

    def save_alert_rules(self, rules: StoredRules | None) -> None:
        """Save the alert rules set in the monitor; None restores the configured ones."""
        self.in_transaction(lambda connection: state.save_alert_rules(connection, rules))

    def save_delivery(self, delivery: Delivery) -> None:
        """Write an attempt to deliver an alert."""
        self.in_transaction(lambda connection: state.save_delivery(connection, delivery))

    def add_shell(self, shell: ShellView) -> None:
        """Write the start of a shell session, with its lines."""
        self.in_transaction(lambda connection: state.add_shell(connection, shell))

    def add_shell_line(self, shell_id: str, line: ShellLine) -> None:
        """Write a line of a session's transcript."""
        self.in_transaction(lambda connection: state.add_shell_line(connection, shell_id, line))

    def end_shell(self, shell_id: str, at_s: float, users: Sequence[str]) -> None:
        """Write the end of a session, and its users."""
        self.in_transaction(lambda connection: state.end_shell(connection, shell_id, at_s, users))

    def resolve_group(self, fingerprint: str, by: str, at_s: float) -> None:
        """Mark a group of failures as resolved; its next failure makes it ``regressed``."""
        self.in_transaction(lambda connection: state.resolve_group(connection, fingerprint, by, at_s))

    def resolve_leak(self, id: str, by: str, at_s: float) -> None:
        """Mark a leak as resolved; it is listed again when it is seen again."""
        self.in_transaction(lambda connection: state.resolve_leak(connection, id, by, at_s))

    def prune(self, settings: Settings, now_s: float, *, most_s: float = math.inf) -> Pruned:
        """
        Remove rows beyond the retention settings, in small batches between which others can write.

        Args:
            settings: The retention settings.
            now_s: The time, seconds since the epoch.
            most_s: Time limit, seconds: no further batch is started after it. The next call continues.
        """
        return pruning.prune(self.in_transaction, settings, now_s, most_s=most_s)

    def give_back(self, *, most_s: float) -> int:
        """
        Shrink an SQLite file by its free space, in steps of a few milliseconds.

        Some free space stays for new rows. A file of an older version can shrink only after :meth:`vacuum`.

        Args:
            most_s: Time limit, seconds: no further step is started after it.

        Returns:
            The number of freed bytes.
        """
        if self._own_file is None:
            return 0
        until_s, given = time.monotonic() + most_s, 0
        while time.monotonic() < until_s:
            more = self.in_transaction(sizes.give_back)
            if not more:
                break
            given += more
        return given

    def vacuum(self) -> int:
        """
        Rewrite an SQLite file without its free space, and so that it can shrink from now on.

        Other writers wait meanwhile, about a second per 100 MB. It needs twice the file's size on the disk.

        Returns:
            By how many bytes the file shrank.

        Raises:
            StoreUnavailable: The disk has too little space, or the store is not its own SQLite file.
        """
        what = f"Can't vacuum the store {self.address}"
        if self._own_file is None:
            raise StoreUnavailable(what, "it is not its own SQLite file", "Its database manages its space itself.")
        self._reopen_if_replaced()
        path = self._own_file.path
        before = path.stat().st_size
        disk = os.statvfs(path.parent)
        if disk.f_bavail * disk.f_frsize < 2 * before:
            raise StoreUnavailable(
                what,
                f"it needs {size(2 * before)} of disk space, and {size(disk.f_bavail * disk.f_frsize)} are free",
                "Free some space first. Meanwhile new records use the pruned space.",
            )
        try:
            with closing(self.engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
                cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
                cursor.execute("VACUUM")
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise unavailable(what, error) from error
        return max(0, before - path.stat().st_size)

    # --- errors

    def _unavailable(self, verb: str, error: sa.exc.SQLAlchemyError) -> StoreUnavailable:
        return unavailable(f"Can't {verb} the store {self.address}", error)


_REPAIR = (
    "Restore a backup, or move the file away: a new one is created. sqlite3's .recover may read the old one. "
    "Tasks go on, records wait in the spool."
)


def is_damage(error: Exception) -> bool:
    """Whether SQLite reports that the file is damaged or not a database."""
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is_busy(error: Exception) -> bool:
    """
    Whether SQLite reports a lock.

    It does so without waiting if two connections switch a new file to WAL at the same time.
    """
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY


def _reason(error: Exception) -> str:
    why = str(getattr(error, "orig", None) or error).strip().splitlines()
    return why[0] if why else type(error).__name__


def unavailable(what: str, error: Exception) -> StoreUnavailable:
    """A :class:`StoreUnavailable` that explains a database error."""
    reason = _reason(error)
    low = reason.lower()
    if is_damage(error):
        advice = _REPAIR
    elif "no such table" in low or "doesn't exist" in low or "does not exist" in low or "no such column" in low:
        advice = "Its tables are missing or of another version: see celery -A proj trace doctor."
    elif "i/o error" in low:
        advice = "The disk or its file system reports errors: see the system's log. Records wait in the spool."
    elif "disk" in low or "full" in low or "no space" in low:
        advice = "Free some space, or run celery -A proj trace prune; tasks go on, records wait in the spool."
    elif "readonly" in low or "read-only" in low or "permission" in low or "denied" in low or "unable to open" in low:
        advice = "Give this user write permission, or set CELERY_TRACE_STORE; records wait in the spool."
    elif "locked" in low or "lock wait" in low or "deadlock" in low:
        advice = "Another program has locked it; records wait in the spool and are retried."
    else:
        advice = "Records wait in the spool and are retried; check that the database runs and accepts this user."
    return StoreUnavailable(what, reason, advice)


def is_about_data(error: Exception) -> bool:
    """Whether the database refused a value: too long, out of range, or not in its encoding."""
    if getattr(error, "connection_invalidated", False):
        return False  # PyMySQL raises InterfaceError (0, '') for a lost connection
    if isinstance(error, sa.exc.DataError | sa.exc.IntegrityError | sa.exc.StatementError):
        return not isinstance(error, sa.exc.DBAPIError) or isinstance(
            error, sa.exc.DataError | sa.exc.IntegrityError | sa.exc.InterfaceError
        )
    return False


def is_passing(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether the same transaction may succeed at once: a deadlock, a serialization failure, a lost connection."""
    original: BaseException | None = getattr(error, "orig", None)
    code = getattr(original, "sqlstate", None) or (original.args[0] if original is not None and original.args else None)
    if code in ("40P01", "40001", 1213, 1205, 1020):
        return True
    return bool(getattr(error, "connection_invalidated", False))


def open_store(settings: Settings, *, create: bool = True, clock: Clock | None = None) -> Store:
    """
    Open the store of these settings, and migrate its tables.

    Args:
        settings: ``store_url`` names it.
        create: Create the database file and the tables if they are missing; False for a reader.
        clock: Timestamps written records.

    Raises:
        StoreUnavailable: It can't be reached or created, or its schema is newer than this version.
    """
    store = Store(engines.make_engine(settings.store_url), settings, create=create, clock=clock or SystemClock())
    store.open()
    return store
