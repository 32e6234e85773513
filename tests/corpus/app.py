"""The Celery app of the corpus: ``celery -A tests.corpus.app worker -c 1``."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from celery import Celery

app = Celery("corpus", include=["tests.corpus.leaks", "tests.corpus.decoys"])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=1,
)


@app.task(name="corpus.next_case", acks_late=False, ignore_result=True)
def next_case() -> None:
    """End this child, so that the next case begins in a fresh one: as the kernel does it, without a farewell."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="corpus.last_case")
def last_case(path: str) -> None:
    """Say that all cases have run."""
    Path(path).touch()
