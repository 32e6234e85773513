"""
A traced process reduced to its spool: a program for the fault tests.

    python -m tests.support.spool_writer FOLDER TAG FAILURES RUNS CAP_BYTES [die | back | big]

Says ``wrote <n>`` after each failure that stands in the spool, then ``done`` with the slowest append of 99 in 100, in
processor time: other programs of the machine do not lengthen that, and that an append waits for nothing is another
test's claim. With ``die`` it ends by SIGKILL without another word, otherwise it waits for its standard input to close
and says goodbye. With ``back`` its clock steps back by an hour after each third of the failures. With ``big`` each
failure takes 2 KB.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from celery_trace.clock import SystemClock
from celery_trace.model import ExceptionInfo, ProcessRecord, Role, new_id
from celery_trace.spool import SpoolWriter
from tests.support.store_records import failure, run


class Clock(SystemClock):
    """The machine's clock, until somebody sets it back."""

    back_s = 0.0

    def now_s(self) -> float:
        return super().now_s() - self.back_s


def main(folder: str, tag: str, failures: int, runs: int, cap_bytes: int, how: str = "") -> None:
    clock = Clock()
    raised = ExceptionInfo("ValueError", "builtins", "x" * 1800 if how == "big" else "no such card")
    process = ProcessRecord(uid=new_id(), host="h", pid=os.getpid(), started_at_s=clock.now_s(), role=Role.CHILD)
    writer = SpoolWriter(Path(folder), process, cap_bytes=cap_bytes, clock=clock)
    took_s = []
    for n in range(failures):
        if how == "back" and n % max(1, failures // 3) == 0:
            clock.back_s += 3600.0
        for m in range(runs):
            record = run(f"{tag}-{n}-{m}", process=process.uid, started_at_s=clock.now_s())
            begun_s = time.thread_time()
            writer.append(record)
            took_s.append(time.thread_time() - begun_s)
        lost = failure(
            f"{tag}-{n}", process=process.uid, at_s=clock.now_s(), fingerprint=f"fp-{n % 7}", exception=raised
        )
        begun_s = time.thread_time()
        safe = writer.append(lost)
        took_s.append(time.thread_time() - begun_s)
        if safe:
            os.write(1, f"wrote {tag}-{n}\n".encode())
    took_s.sort()
    evicted = writer.counters["evicted:run"]
    os.write(1, f"done {took_s[int(len(took_s) * 0.99)] * 1e6:.0f} us, evicted {evicted}\n".encode())
    if how == "die":
        os.kill(os.getpid(), 9)
    sys.stdin.read()
    writer.close("exit")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), *sys.argv[6:])
