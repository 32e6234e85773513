"""A collector's rounds: batches from the spool to the transport, and the cleanup after them."""

from __future__ import annotations

import contextlib
import fcntl
import linecache
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from celery_trace import private_files
from celery_trace.clock import Clock
from celery_trace.collector.adoption import adopt
from celery_trace.collector.status import LOCK_FILE, STATUS_FILE, Status, read_status, write_status
from celery_trace.control import files
from celery_trace.errors import TraceError
from celery_trace.failures.capture.source_lines import SourceLines
from celery_trace.guard import Guard
from celery_trace.model import AnyRecord, Failure, Stats, encode, stable_id
from celery_trace.redaction import Redactor
from celery_trace.running.stalls import Stalls
from celery_trace.running.watch import RunningWatch
from celery_trace.spool import segments
from celery_trace.spool.lines import pack
from celery_trace.spool.reader import Corrupt, SpoolReader
from celery_trace.spool.segments import SpoolListing
from celery_trace.transports import Transport, TransportUnavailable

if TYPE_CHECKING:
    from celery_trace.running.listener import StackListener

logger = logging.getLogger("celery_trace.collector")

#: Pause between rounds that found nothing, seconds: short after records arrived, longer when idle.
IDLE_S = (0.05, 1.0)
#: Share of the time spent in rounds while records keep coming, and the longest pause for that, seconds. A round costs
#: about 3 ms on top of its records: with hundreds of failures a second that is paid once a second, and a record that
#: follows a lone one waits for 0.1 s.
SHARE = 0.03
PACE_S = 1.0
#: Backoff after the store or broker refused, seconds: doubles up to the second number.
BACK_OFF_S = (0.25, 15.0)
#: How often the statistics are written, seconds.
ACCOUNT_S = 5.0
#: How often the black boxes are read for what runs, seconds. Readers see it at most two seconds late.
RUNNING_S = 1.0
#: From this age of a run on, requests for stacks are taken from the broker, seconds.
LISTEN_S = 1.0
#: Time limit of the last round, seconds.
LAST_ROUND_S = 20.0
#: Unreadable lines are set aside in this file, up to this size.
SET_ASIDE_FILE = "set-aside.log"
SET_ASIDE_BYTES = 4 * 1024 * 1024


class AnotherCollector(TraceError):
    """Another collector already has the folder."""


class Collector:
    """
    Drains one spool folder.

    Delivery is at-least-once: a batch is sent, then the files' cursors move. A crash in between sends the batch again,
    which the records' keys make harmless. Memory is bounded by the size of a batch, however long the store was down.

    Args:
        folder: The spool folder.
        transport: Delivers the records.
        clock: Timestamps the collector's own records.
        name: Distinguishes this folder's statistics from those of other hosts.
        redact: Further names of secrets, for source lines.
        stalls: Judges which runs make no progress.
        listen: Makes what takes requests for stacks from the broker; called when the first run lasts.

    Raises:
        AnotherCollector: Another collector holds the folder's lock.
        OSError: The folder can't be created or written to.
    """

    def __init__(
        self,
        folder: Path,
        transport: Transport,
        clock: Clock,
        *,
        name: str = "",
        redact: Sequence[str] = (),
        stalls: Stalls | None = None,
        listen: Callable[[], StackListener] | None = None,
    ) -> None:
        self._folder = folder
        self._transport = transport
        self._clock = clock
        self._source = SourceLines(Redactor(redact))
        self._reader = SpoolReader(folder)
        self._name = name or f"{socket.gethostname()}:{stable_id(str(folder))[:6]}"
        private_files.make_part(folder)
        self._lock_fd = self._take_folder()
        self._clear_old()
        self._reported_dropped: dict[str, tuple[int, int]] = {}  # by dropper: its last reported sequence number and sum
        before = read_status(folder.parent)
        self.status = Status(
            pid=os.getpid(),
            started_at_s=clock.now_s(),
            transport=transport.name,
            store=before.store if before is not None else "",
        )
        self._running = RunningWatch(folder, self._name, clock, self._source, stalls or Stalls())
        self._running_due_s = 0.0
        self._listen = listen
        self._listener: StackListener | None = None
        self._accounted: dict[str, int] = {}
        self._accounted_at_s = -ACCOUNT_S
        self._incarnation = int(clock.now_s() * 1000)

    def _take_folder(self) -> int:
        fd = private_files.open_file(self._folder / LOCK_FILE, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise AnotherCollector(
                f"Another collector already serves {self._folder}", next="One is enough: nothing to do."
            ) from None
        return fd

    def close(self) -> None:
        """Release the folder and write the last status."""
        if self._listener is not None:
            self._listener.stop()
        self._transport.close()
        if self._lock_fd < 0:  # another collector has the folder and its status
            return
        self.status.state = "ended"
        self._save_status()
        os.close(self._lock_fd)

    # --- rounds

    def round(self) -> int:
        """
        Deliver everything in the folder, then clean up.

        Returns:
            The number of delivered records.

        Raises:
            TransportUnavailable: It stopped half-way; the cursors have what was delivered.
        """
        handed_on = 0
        self._recreate_folder()
        while True:
            self._notice_another_store()
            listing = self._reader.list()
            living = {uid for uid in listing.locks if segments.lives(self._folder, uid)}
            with self._reader.read(listing, living) as batch:
                if not batch:
                    break
                self._send(batch.records)
                if self._transport.destination() != self.status.store:  # no cursor moves: all is sent again
                    raise TransportUnavailable(
                        "It is unknown whether records were stored",
                        "the store was replaced while they were written",
                        "They are sent again, with all records that the spool still has.",
                    )
                for corrupt in batch.corrupt:
                    self._set_aside(corrupt)
                batch.commit()
                handed_on += len(batch.records)
                # Records that came meanwhile wait for the next round: one by one each would be a batch.
                if not batch.full:
                    break
        self._clean_up(listing, living)
        self._account(listing)
        self._watch_running(living, listing)
        if self.status.state != "ready":
            self.status.state, self.status.why = "ready", ""
            self._save_status()
        self._transport.maintain(idle=not handed_on)
        return handed_on

    def _notice_another_store(self) -> None:
        """
        Send everything that the spool still has again, if the store is not the one that the cursors belong to.

        The store was deleted, replaced or found damaged, perhaps while no collector ran.
        """
        store = self._transport.destination()
        if store == self.status.store:
            return
        if self.status.store:
            again = self._reader.rewind(self._reader.list())
            self.status.sent_again += again
            logger.warning("The store was replaced; %d records that the spool still has are sent again.", again)
        self.status.store = store
        self._save_status()

    def _recreate_folder(self) -> None:
        """Recreate a removed folder: running processes create new files there."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._lock_fd), os.stat(self._folder / LOCK_FILE)):
                return
        os.close(self._lock_fd)
        self._lock_fd = -1
        private_files.make_part(self._folder)
        self._lock_fd = self._take_folder()
        self.status.folders_lost += 1
        logger.warning("%s was removed while in use. It was recreated; its contents are lost.", self._folder)

    def _send(self, records: list[AnyRecord]) -> None:
        if not records:
            return
        refused = self._transport.send(records)
        for record, why in refused:
            self._set_aside(Corrupt("refused by the store", 0, why, pack(encode(record))))
        self.status.delivered += len(records) - len(refused)

    def _clean_up(self, listing: SpoolListing, living: set[str]) -> None:
        """Remove delivered files, and adopt killed processes."""
        newest = listing.newest()
        for name in listing.dropped:
            self._report_dropped(name)
        self._adopt(sorted(listing.locks - living), listing)
        for segment in listing.segments:
            finished = segment.uid not in living or newest[segment.lane] != segment.number
            if finished and not self._reader.remove_if_delivered(segment):
                self._refuse_foreign(segment.name, segment)
        known = {segment.uid for segment in listing.segments}
        for uid in (listing.boxes - known | listing.reserves) - listing.locks:
            if not segments.lives(self._folder, uid):  # it may have started while the folder was listed
                self._forget_process(uid)
        for name in listing.foreign:
            self._refuse_foreign(name, None)

    def _report_dropped(self, name: str) -> None:
        """
        A name counts all that its dropper lost so far; the store keeps the one with the highest number.

        Records that wait in the memory of a living process are not lost yet: the name stays until they are.
        """
        dropper, times = segments.dropper_of(name)
        dead = not segments.lives(self._folder, segments.process_of(dropper))
        counts, waiting = segments.dropped_counts(name), segments.dropped_counts(name, waiting=True)
        account = 2 * times + dead
        if dead:
            counts = waiting
        reported, before = self._reported_dropped.get(dropper, (0, 0))
        if counts and account > reported:
            counters = {f"dropped:{tag}": count for tag, count in counts.items()}
            self._send([Stats(process=f"dropped:{dropper}", seq=account, at_s=self._clock.now_s(), counters=counters)])
            self._reported_dropped[dropper] = (account, max(before, counts.total()))
            self.status.dropped += max(0, counts.total() - before)
        if counts == waiting:
            (self._folder / name).unlink(missing_ok=True)

    def _adopt(self, uids: list[str], listing: SpoolListing) -> None:
        """Processes that did not end in order were killed: record what they were doing."""
        records: list[AnyRecord] = []
        for uid in uids:
            with Guard("adopting a killed process"):  # a damaged black box must not stop the others
                process = self._reader.process_of(uid, listing)
                records += adopt(process, self._folder / f"{uid}.box", self._clock.now_s(), self._source)
        if not uids:
            return
        linecache.clearcache()  # kills are rare, and each may be of a different project
        self._send(records)
        self.status.adopted += len(uids)
        lost = sum(isinstance(record, Failure) for record in records)
        logger.info("%d processes were killed, %d of them during a run.", len(uids), lost)
        for uid in uids:
            self._forget_process(uid)
        self._clear_old()
        self._save_status()

    def _clear_old(self) -> None:
        """Remove old files of killed processes with names that don't identify them."""
        files.forget_old(self._folder.parent)
        private_files.clear_drafts(self._folder.parent)
        private_files.clear_drafts(self._folder)

    def _forget_process(self, uid: str) -> None:
        """Remove the other files of an ended process."""
        for ending in ("box", "reserve", "dump", "request", "stack", "lock"):
            (self._folder / f"{uid}.{ending}").unlink(missing_ok=True)
        files.forget(self._folder.parent, uid)

    def _refuse_foreign(self, name: str, segment: segments.Segment | None) -> None:
        """Rename a file that has a spool name but isn't ours, once, and leave it alone."""
        if segment is not None and self._reader.is_ours(segment) is not False:
            return
        path = self._folder / name
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime < 1.0:
                return  # it may be under construction
            aside = private_files.set_aside(path)
            self.status.foreign += 1
            logger.warning("%s is not a spool file of celery-trace; it was renamed to %s.", path, aside.name)

    def _set_aside(self, corrupt: Corrupt) -> None:
        self.status.corrupt += 1
        if self.status.corrupt <= 10:
            logger.warning(
                "A record of %s at byte %d was set aside in %s: %s.",
                corrupt.file, corrupt.offset, SET_ASIDE_FILE, corrupt.why,
            )  # fmt: skip
        path = self._folder / SET_ASIDE_FILE
        try:
            fd = private_files.open_file(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            try:
                if os.fstat(fd).st_size < SET_ASIDE_BYTES:
                    head = f"{corrupt.file}:{corrupt.offset}: {corrupt.why}: ".encode("utf-8", "backslashreplace")
                    os.write(fd, head + repr(corrupt.start).encode() + b"\n")
            finally:
                os.close(fd)
        except OSError as error:
            logger.warning("It could not be set aside: %s.", error)

    # --- what runs

    def _watch_running(self, living: set[str], listing: SpoolListing) -> None:
        """Every few seconds, send what runs in the living processes if it has changed."""
        monotonic_s = self._clock.monotonic_s()
        if monotonic_s < self._running_due_s:
            return
        self._running_due_s = monotonic_s + RUNNING_S
        if self._listener is not None:
            self._running.address = self._listener.reachable_at
        snapshot = None
        with Guard("reading what runs"):
            snapshot = self._running.look(living, lambda uid: self._reader.process_of(uid, listing))
        if snapshot is None:
            return
        self._transport.send([snapshot])
        self._running.sent(snapshot)
        if self._listen is not None and any(snapshot.at_s - run.started_at_s > LISTEN_S for run in snapshot.runs):
            listen, self._listen = self._listen, None
            with Guard("requests for stacks"):
                self._listener = listen()
                self._listener.start()

    # --- statistics

    def _account(self, listing: SpoolListing, *, now: bool = False) -> None:
        """Every few seconds, send statistics of the spool and the collector to the store if they changed."""
        monotonic_s = self._clock.monotonic_s()
        if monotonic_s - self._accounted_at_s < ACCOUNT_S and not now:
            return
        self._accounted_at_s = monotonic_s
        self.measure(listing)
        counters = {
            "spool:bytes": self.status.spool_bytes,
            "spool:records": self.status.spool_records,
            "corrupt:lines": self.status.corrupt,
            "collector:delivered": self.status.delivered,
            "collector:adopted": self.status.adopted,
            "collector:foreign": self.status.foreign,
            "collector:retries": self.status.retries,
            "collector:sent_again": self.status.sent_again,
            "collector:folders_lost": self.status.folders_lost,
        }
        if counters != self._accounted:
            seq = self._incarnation + self.status.accounts
            self.status.accounts += 1
            account = Stats(
                process=f"collector:{self._name}:{self._incarnation}", seq=seq, at_s=self._clock.now_s(),
                counters=counters,
            )  # fmt: skip
            self._transport.send([account])
            self._accounted = counters
        self._save_status()

    def measure(self, listing: SpoolListing) -> None:
        """Measure the backlog."""
        self.status.spool_bytes, self.status.spool_records = self._reader.backlog(listing)
        self.status.processes = len(listing.locks)

    def _save_status(self) -> None:
        self.status.at_s = self._clock.now_s()
        write_status(self._folder.parent / STATUS_FILE, self.status)

    # --- the main loop

    def run(self, should_end: Callable[[], bool], wait: Callable[[float], object]) -> None:
        """
        Run rounds until asked to end; then a last one.

        Args:
            should_end: Called between rounds.
            wait: Waits the given seconds, or less when it is time to end.
        """
        idle_s, back_off_s = IDLE_S[0], BACK_OFF_S[0]
        while not should_end():
            begun_s = self._clock.monotonic_s()
            try:
                idle_s = IDLE_S[0] if self.round() else min(idle_s * 1.5, IDLE_S[1])
                back_off_s = BACK_OFF_S[0]
                took_s = self._clock.monotonic_s() - begun_s
                running_due_s = max(IDLE_S[0], self._running_due_s - self._clock.monotonic_s())
                wait(max(min(idle_s, running_due_s), min(took_s * (1 / SHARE - 1), PACE_S)))
            except TransportUnavailable as error:
                self._refused(error)
                wait(back_off_s)
                back_off_s = min(back_off_s * 2, BACK_OFF_S[1])
        self.last_round()

    def last_round(self) -> None:
        """Deliver what is left, within a time limit."""
        until_s = time.monotonic() + LAST_ROUND_S
        try:
            while self.round() and time.monotonic() < until_s:
                pass
            self._account(self._reader.list(), now=True)
        except TransportUnavailable as error:
            self._refused(error)

    def _refused(self, error: TransportUnavailable) -> None:
        self.status.retries += 1
        self.measure(self._reader.list())
        if self.status.state != "waiting" or self.status.why != str(error):
            logger.warning("%s (%d records wait in the spool.)", error, self.status.spool_records)
        self.status.state, self.status.why = "waiting", str(error)
        self._save_status()
