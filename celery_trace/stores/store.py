"""One store: opened once, written in transactions, shared by threads."""

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
from typing import Any, TypeVar

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

#: How often a write is tried again when another writer was quicker.
ATTEMPTS = 6

T = TypeVar("T")

logger = logging.getLogger("celery_trace.store")


class Store:
    """
    Reads and writes one database. Thread-safe: each call takes a connection of its own from the pool.

    Every method that touches the database raises :class:`StoreUnavailable` when it can't be reached, is full,
    locked for too long or read-only.
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
        # What happened to the store that was open before, and its id, until it is noted in the next one.
        self._lost: LostStore | None = None
        self._lost_id = ""

    def close(self) -> None:
        """Close the pool's connections; whoever uses the store again opens it again."""
        self._is_open = False
        self.engine.dispose()

    # --- opening, and opening again

    def open(self) -> None:
        """
        Open the database and bring its tables up to date; :func:`open_store` calls it.

        Raises:
            StoreUnavailable: It can't be reached or made, or its schema is newer than this version.
        """
        before = self._id
        for _ in range(ATTEMPTS):
            identity = None
            try:
                engines.prepare_sqlite_file(self._file, self.address, create=self._create and not self._by_django)
                identity = self._file.look() if self._file is not None else None
                self._open_tables()
            except sa.exc.SQLAlchemyError as error:
                self.engine.dispose()
                if not is_damage(error):
                    raise self._unavailable("open", error) from error
                self._lost = self._lost or LostStore(at=self.clock.now_s(), why="damaged")
                self._set_aside(identity, _reason(error))
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
            "its file is replaced again and again",
            "Find out by whom, or set CELERY_TRACE_STORE to another place; records wait in the spool.",
        )

    def _open_tables(self) -> None:
        migration.bring_up_to_date(self.engine, self.address, create=self._create, by_django=self._by_django)
        with self.engine.connect() as connection:
            self._id = lineage.read_id(connection)
        if self._create and not self._id:
            with contextlib.suppress(sa.exc.DBAPIError):  # it can only be read: who writes to it gives it one
                self._once(sizes.begin)
                self._id = self._once(lineage.give_id)

    def token(self) -> str:
        """
        Names the database that writes go to: another one after it was deleted, replaced or made anew.

        Raises:
            StoreUnavailable: As :meth:`open`.
        """
        self._reopen_if_replaced()
        opened = self._file.identity if self._file is not None else None
        return self._id if opened is None else f"{self._id}@{opened[0]:x}:{opened[1]:x}"

    def _reopen_if_replaced(self) -> None:
        """If the file at the path is no longer the one that is open, open what is there, or make it anew."""
        if self._is_open and (self._file is None or not self._file.problem()):
            return
        with self._opening:
            problem = self._file.problem() if self._is_open and self._file is not None else ""
            if problem:
                self._abandon_file(problem, "it does not begin as a database does")
            if not self._is_open:
                self.open()

    def _abandon_file(self, problem: str, why: str) -> None:
        """Close the open file for what happened to it; one that is damaged is set aside."""
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
        """How many records the open file held, as far as it can still be read."""
        try:
            with self.engine.connect() as connection:
                return lineage.records(connection)
        except sa.exc.SQLAlchemyError:
            return None

    def _set_aside(self, damaged: Identity | None, why: str) -> None:
        """
        Set a damaged file aside, so that a new one can be made.

        Raises:
            StoreUnavailable: It is not ours to rename: Django's, perhaps no store at all, or this is only a reader.
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
        """SQLite says that the file is damaged: close all connections, and set it aside if new ones say the same."""
        with self._opening:
            if self._file is None or self._file.identity != identity or not self._is_open:
                return  # another thread was quicker
            if again:
                self._abandon_file("damaged", _reason(error))
            else:
                self.engine.dispose()

    def _save_loss(self) -> None:
        """Say what became of the store before this one, and keep it."""
        lost, before = self._lost, self._lost_id
        self._lost, self._lost_id = None, ""
        if lost is None or (before and before == self._id):  # a copy of the same store was put there
            return
        logger.warning("celery-trace: %s: %s", self.address, lineage.sentence(lost))
        if self._create:
            with contextlib.suppress(sa.exc.SQLAlchemyError):  # the log has it
                self._once(lambda connection: lineage.note(connection, before, lost))

    # --- connections

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection with one consistent view of the store."""
        self._reopen_if_replaced()
        try:
            with self.engine.connect() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise self._unavailable("read from", error) from error

    def in_transaction(self, work: Callable[[sa.Connection], T]) -> T:
        """
        Run ``work`` in a transaction; again from the start when another writer was quicker, or when the database file
        is no longer the one at the path: what was written is in the store that others read.

        Raises:
            StoreUnavailable: The database refused, or was busy for too long.
            sqlalchemy.exc.DBAPIError: It refused the data, not us.
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
                    pass  # it went while we were at it
                elif not (is_passing(error) and attempt < ATTEMPTS - 1):
                    raise self._unavailable("write to", error) from error
            else:
                if self._file is None or not self._file.problem():
                    return result
            time.sleep(0.01 * 2**attempt)
        raise StoreUnavailable(
            f"Can't write to the store {self.address}",
            f"other writers were quicker, or its file was replaced, {ATTEMPTS} times",
            "The same records are tried again later.",
        )

    def _once(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in one transaction."""
        with self.engine.connect().execution_options(writing=True) as connection, connection.begin():
            return work(connection)

    # --- records

    def write(self, records: Sequence[AnyRecord]) -> Written:
        """
        Write a batch, all of it or nothing; writing it again changes nothing.

        A record that the database refuses for what is in it is left out and returned in ``refused``.
        """
        if not records:
            return Written()
        now_s = self.clock.now_s()
        try:
            return self.in_transaction(lambda connection: writing.write(connection, records, now_s))
        except (StoreUnavailable, MemoryError):
            raise
        except Exception as error:  # the database's, about a value, or a mistake of ours: one record stops no other
            with self.reading() as connection:
                # Newer tables may refuse every record of ours for what is not in it: they wait for the update.
                migration.refuse_if_newer(connection, self.address)
            if len(records) == 1:
                return Written(refused=[(records[0], f"{type(error).__name__}: {error}"[:500])])
        middle = len(records) // 2
        written = self.write(records[:middle])
        written.add(self.write(records[middle:]))
        return written

    # --- what the monitor writes

    def save_alert(self, alert: AlertView) -> None:
        """Write an alert's state."""
        self.in_transaction(lambda connection: state.save_alert(connection, alert))

    def save_alert_rules(self, rules: StoredRules | None) -> None:
        """Keep the alert rules that somebody set in the monitor; None goes back to the configured ones."""
        self.in_transaction(lambda connection: state.save_alert_rules(connection, rules))

    def save_delivery(self, delivery: Delivery) -> None:
        """Write an attempt to deliver an alert."""
        self.in_transaction(lambda connection: state.save_delivery(connection, delivery))

    def add_shell(self, shell: ShellView) -> None:
        """Write that a shell session began, with the lines that it has."""
        self.in_transaction(lambda connection: state.add_shell(connection, shell))

    def add_shell_line(self, shell_id: str, line: ShellLine) -> None:
        """Write a line of a session's transcript."""
        self.in_transaction(lambda connection: state.add_shell_line(connection, shell_id, line))

    def end_shell(self, shell_id: str, at_s: float, users: Sequence[str]) -> None:
        """Write that a session ended, and who took part."""
        self.in_transaction(lambda connection: state.end_shell(connection, shell_id, at_s, users))

    def resolve_group(self, fingerprint: str, by: str, at_s: float) -> None:
        """Somebody says that this group of failures is dealt with; the next one makes it ``regressed``."""
        self.in_transaction(lambda connection: state.resolve_group(connection, fingerprint, by, at_s))

    def resolve_leak(self, id: str, by: str, at_s: float) -> None:
        """Somebody says that this leak is dealt with; it is listed again when it is seen again."""
        self.in_transaction(lambda connection: state.resolve_leak(connection, id, by, at_s))

    def prune(self, settings: Settings, now_s: float, *, most_s: float = math.inf) -> Pruned:
        """
        Remove what is older or more than the settings keep, in small batches between which others write.

        Args:
            settings: What is kept.
            now_s: The time, seconds since the epoch.
            most_s: No further batch is begun after this many seconds; the next call goes on.
        """
        return pruning.prune(self.in_transaction, settings, now_s, most_s=most_s)

    def give_back(self, *, most_s: float) -> int:
        """
        Give free space of an SQLite file back to the disk, in steps of a few milliseconds.

        Some is kept for new rows. A file that an older version made can do it only after :meth:`vacuum`.

        Args:
            most_s: No further step is begun after this many seconds.

        Returns:
            How many bytes were given back.
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
        Write an SQLite file anew without its free space, and so that it gives space back from now on.

        Other writers wait while it runs, about a second for each 100 MB; it needs twice the file's size on the disk.

        Returns:
            How many bytes smaller the file is.

        Raises:
            StoreUnavailable: There is not enough room, or the store is no SQLite file of its own.
        """
        what = f"Can't vacuum the store {self.address}"
        if self._own_file is None:
            raise StoreUnavailable(what, "it is no SQLite file of its own", "Its database gives space back by itself.")
        self._reopen_if_replaced()
        path = self._own_file.path
        before = path.stat().st_size
        disk = os.statvfs(path.parent)
        if disk.f_bavail * disk.f_frsize < 2 * before:
            raise StoreUnavailable(
                what,
                f"{size(2 * before)} are needed on the disk for it, and {size(disk.f_bavail * disk.f_frsize)} are free",
                "Free some space first. What was pruned is used for new records meanwhile.",
            )
        try:
            with closing(self.engine.raw_connection()) as connection:
                driver: Any = connection.driver_connection
                driver.execute("PRAGMA auto_vacuum=INCREMENTAL")
                driver.execute("VACUUM")
                driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise unavailable(what, error) from error
        return max(0, before - path.stat().st_size)

    # --- errors

    def _unavailable(self, verb: str, error: sa.exc.SQLAlchemyError) -> StoreUnavailable:
        return unavailable(f"Can't {verb} the store {self.address}", error)


_REPAIR = (
    "Restore a backup, or move the file away: a new one is made. The sqlite3 program's .recover may read the old one. "
    "Tasks go on, records wait in the spool."
)


def is_damage(error: Exception) -> bool:
    """Whether SQLite says that the file is damaged, or no database at all."""
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _reason(error: Exception) -> str:
    why = str(getattr(error, "orig", None) or error).strip().splitlines()
    return why[0] if why else type(error).__name__


def unavailable(what: str, error: Exception) -> StoreUnavailable:
    """The refusal that tells what an error of the database means."""
    reason = _reason(error)
    low = reason.lower()
    if is_damage(error):
        advice = _REPAIR
    elif "no such table" in low or "doesn't exist" in low or "does not exist" in low or "no such column" in low:
        advice = "Its tables are missing or of another version: celery -A proj trace doctor tells which."
    elif "i/o error" in low:
        advice = "The disk, or the file system on it, reports errors: see the system's log. Records wait in the spool."
    elif "disk" in low or "full" in low or "no space" in low:
        advice = "Make room, or prune with celery -A proj trace prune; tasks go on, records wait in the spool."
    elif "readonly" in low or "read-only" in low or "permission" in low or "denied" in low or "unable to open" in low:
        advice = "Give this user the right to write there, or set CELERY_TRACE_STORE; records wait in the spool."
    elif "locked" in low or "lock wait" in low or "deadlock" in low:
        advice = "Another program holds it; records wait in the spool and are tried again."
    else:
        advice = "Records wait in the spool and are tried again; check that the database runs and accepts this user."
    return StoreUnavailable(what, reason, advice)


def is_about_data(error: Exception) -> bool:
    """Whether the database refused a value, not us: too long, out of range, not of its encoding."""
    if getattr(error, "connection_invalidated", False):
        return False  # PyMySQL says of a lost connection that it can't be used like this: InterfaceError (0, '')
    if isinstance(error, sa.exc.DataError | sa.exc.IntegrityError | sa.exc.StatementError):
        return not isinstance(error, sa.exc.DBAPIError) or isinstance(
            error, sa.exc.DataError | sa.exc.IntegrityError | sa.exc.InterfaceError
        )
    return False


def is_passing(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether the same transaction may succeed at once: deadlock, serialization, a lost connection of the pool."""
    original: Any = getattr(error, "orig", None)
    code = getattr(original, "sqlstate", None) or (original.args[0] if original is not None and original.args else None)
    if code in ("40P01", "40001", 1213, 1205, 1020):
        return True
    return bool(getattr(error, "connection_invalidated", False))


def open_store(settings: Settings, *, create: bool = True, clock: Clock | None = None) -> Store:
    """
    Open the store of these settings, and bring its tables up to date.

    Args:
        settings: ``store_url`` names it.
        create: Make the database file and the tables if they are missing; a reader says False.
        clock: Tells when a record was written.

    Raises:
        StoreUnavailable: It can't be reached or made, or its schema is newer than this version.
    """
    store = Store(engines.make_engine(settings.store_url), settings, create=create, clock=clock or SystemClock())
    store.open()
    return store
