"""The Celery app of the corpus: ``celery -A tests.corpus.app worker -c 1``."""

from __future__ import annotations

import time
from pathlib import Path

from celery import Celery

MODULES = (
    "leaks", "leaks_of_values", "leaks_of_libraries", "leaks_in_time",
    "decoys", "decoys_of_caches", "decoys_of_buffers", "decoys_of_libraries",
)  # fmt: skip

app = Celery("corpus", include=[f"tests.corpus.{name}" for name in MODULES])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=1,
)


@app.task(name="corpus.pause")
def pause(seconds: float) -> None:
    """Wait, as a task waits for its database."""
    time.sleep(seconds)


@app.task(name="corpus.compute")
def compute(seconds: float) -> int:
    """Compute, as a task does that builds and formats rows."""
    until_s = time.process_time() + seconds
    made = 0
    while time.process_time() < until_s:
        made += len(",".join(f"{row['id']}: {row['tags']}" for row in [{"id": n, "tags": [n, n]} for n in range(500)]))
    return made


@app.task(name="corpus.mark")
def mark(path: str) -> None:
    """Say that what was sent before has run."""
    Path(path).touch()
