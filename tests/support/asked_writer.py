"""
A traced process reduced to its spool, which writes as many failures as it is asked for and lives on.

    python -m tests.support.asked_writer FOLDER TAG

Reads a number from each line of its standard input, writes so many failures, and says how many it has written so far.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from celery_trace.clock import SystemClock
from celery_trace.model import ProcessRecord, Role, new_id
from celery_trace.spool import SpoolWriter
from tests.support.store_records import failure


def main(folder: str, tag: str) -> None:
    clock = SystemClock()
    process = ProcessRecord(uid=new_id(), host="h", pid=os.getpid(), started_at_s=clock.now_s(), role=Role.CHILD)
    writer = SpoolWriter(Path(folder), process, cap_bytes=64 * 1024 * 1024, clock=clock)
    written = 0
    for line in sys.stdin:
        for _ in range(int(line)):
            written += writer.append(failure(f"{tag}-{written}", process=process.uid, at_s=clock.now_s()))
        os.write(1, f"{written}\n".encode())
    writer.close("exit")


if __name__ == "__main__":
    main(*sys.argv[1:3])
