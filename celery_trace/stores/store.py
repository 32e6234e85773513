"""One store: opened once, written in transactions, shared by threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from celery_trace.clock import Clock, SystemClock
from celery_trace.model import AlertView, AnyRecord, Delivery, ShellLine, ShellView
from celery_trace.rules import StoredRules
from celery_trace.settings import Settings
from celery_trace.stores import engine as engines
from celery_trace.stores import migration, pruning, state, writing
from celery_trace.stores.errors import Interrupted, StoreUnavailable
from celery_trace.stores.pruning import Pruned
from celery_trace.stores.writing import Written

#: How often a write is tried again when another writer was quicker.
ATTEMPTS = 6

T = TypeVar("T")


class Store:
    """
    Reads and writes one database. Thread-safe: each call takes a connection of its own from the pool.

    Every method that touches the database raises :class:`StoreUnavailable` when it can't be reached, is full,
    locked for too long or read-only.
    """

    def __init__(self, engine: Engine, settings: Settings, *, address: str, clock: Clock) -> None:
        self.engine = engine
        self.settings = settings
        #: The address without its password.
        self.address = address
        self.clock = clock

    def close(self) -> None:
        """Close the pool's connections."""
        self.engine.dispose()

    # --- connections

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection with one consistent view of the store."""
        try:
            with self.engine.connect() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise self._unavailable("read from", error) from error

    def in_transaction(self, work: Callable[[sa.Connection], T]) -> T:
        """
        Run ``work`` in a transaction; again from the start when another writer was quicker.

        Raises:
            StoreUnavailable: The database refused, or was busy for too long.
            sqlalchemy.exc.DBAPIError: It refused the data, not us.
        """
        for attempt in range(ATTEMPTS):
            try:
                with self.engine.connect().execution_options(writing=True) as connection, connection.begin():
                    return work(connection)
            except Interrupted:
                pass
            except sa.exc.SQLAlchemyError as error:
                if is_about_data(error):
                    raise
                if not (is_passing(error) and attempt < ATTEMPTS - 1):
                    raise self._unavailable("write to", error) from error
            time.sleep(0.01 * 2**attempt)
        raise StoreUnavailable(
            f"Can't write to the store {self.address}",
            f"other writers were quicker {ATTEMPTS} times",
            "The same records are tried again later.",
        )

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

    def prune(self, settings: Settings, now_s: float) -> Pruned:
        """Remove what is older or more than the settings keep, in small batches between which others write."""
        return pruning.prune(self, settings, now_s)

    # --- errors

    def _unavailable(self, verb: str, error: sa.exc.SQLAlchemyError) -> StoreUnavailable:
        return unavailable(f"Can't {verb} the store {self.address}", error)


def unavailable(what: str, error: Exception) -> StoreUnavailable:
    """The refusal that tells what an error of the database means."""
    why = str(getattr(error, "orig", None) or error).strip().splitlines()
    reason = why[0] if why else type(error).__name__
    low = reason.lower()
    if "no such table" in low or "doesn't exist" in low or "does not exist" in low or "no such column" in low:
        advice = "Its tables are missing or of another version: celery -A proj trace doctor tells which."
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
    address = engines.shown(settings.store_url)
    engine = engines.make_engine(settings.store_url)
    by_django = settings.store_url.partition(":")[0] == "django"
    try:
        engines.prepare_sqlite_file(engine, create=create and not by_django)
        migration.bring_up_to_date(engine, address, create=create, by_django=by_django)
    except sa.exc.SQLAlchemyError as error:
        engine.dispose()
        raise unavailable(f"Can't open the store {address}", error) from error
    except StoreUnavailable:
        engine.dispose()
        raise
    return Store(engine, settings, address=address, clock=clock or SystemClock())
