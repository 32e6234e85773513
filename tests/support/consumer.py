"""
A monitor reduced to its reading of the broker: a program that a test can kill.

    python -m tests.support.consumer BROKER QUEUE FOLDER [hang]

Writes what it takes into the store of ``FOLDER`` and says ``took <records>`` before each write; with ``hang``
it never comes back from the first one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from celery import Celery

from celery_trace.settings import Settings
from celery_trace.stores import open_store
from celery_trace.transports import broker

#: After so long without a word of it, what it had taken from Redis goes to the next one, seconds.
LEASE_S = 2.0


def main(url: str, queue: str, folder: str, *, hang: bool) -> None:
    settings = Settings(dir=folder)
    store = open_store(settings)

    class Telling:
        def write(self, records: Sequence[Any]) -> Any:
            print("took", len(records), flush=True)
            if hang:
                time.sleep(600)
            return store.write(records)

    app = Celery("monitor", broker=url, set_as_current=False)
    facts = SimpleNamespace(store=Telling())
    broker.BrokerConsumer(app, facts, settings, queue=queue, lease_s=LEASE_S).start()
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:4], hang=sys.argv[4:] == ["hang"])
