"""A project of which the messages wait: few processes, slow tasks, a schedule."""

from __future__ import annotations

import os
import time

from celery import Celery

app = Celery("flowing")
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": int(os.environ.get("FLOW_VISIBILITY_S", "3600"))},
    worker_prefetch_multiplier=4,
    worker_eta_task_limit=int(os.environ.get("FLOW_ETA_LIMIT", "0")) or None,
    beat_schedule={"every-second": {"task": "flowing.nothing", "schedule": 1.0}},
)


@app.task(name="flowing.nap")
def nap(seconds: float) -> None:
    time.sleep(seconds)


@app.task(name="flowing.late_nap", acks_late=True)
def late_nap(seconds: float) -> None:
    time.sleep(seconds)


@app.task(name="flowing.nothing")
def nothing() -> None:
    return None


@app.task(name="flowing.passes_on", bind=True, max_retries=1)
def passes_on(self) -> None:  # type: ignore[no-untyped-def]
    if not self.request.retries:
        nothing.delay()
        raise self.retry(countdown=2)
