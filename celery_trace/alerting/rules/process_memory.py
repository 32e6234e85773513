"""The rule ``process_memory``: a process of a worker holds much resident memory."""

from __future__ import annotations

from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind, link
from celery_trace.alerting.rules.units import BYTES
from celery_trace.text.format import size


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    # One subject per worker, its greatest process: children are recycled, and each new pid would page again.
    for worker in facts.workers:
        held = [
            (process.memory.rss_bytes, process)
            for process in worker.processes
            if process.ended_at is None and process.memory is not None
        ]
        if not held or not rule.wants(worker.name):
            continue
        name = worker.name or worker.host
        rss_bytes, process = max(held, key=lambda pair: pair[0])
        running = f", running {process.running}" if process.running else ""
        others = sum(1 for other_bytes, _ in held if other_bytes > rule.above) - 1
        more = f", and {others} more of its processes are over it" if others > 0 else ""
        yield Reading(
            subject=name,
            value=float(rss_bytes),
            text=f"Process {process.pid} of {name} holds {size(rss_bytes)}{running}; "
            f"threshold {size(rule.above)}{more}.",
            link=link("workers", worker=name),
        )


KIND = RuleKind(
    name="process_memory",
    read=_read,
    needs=("workers",),
    unit=BYTES,
    quantity="Resident memory",
    shipped=Rule(rule="process_memory", name="process_memory", above=1024**3, for_s=60, clear=0.9, severity="warning"),
    meaning="A process holds more than `above` of resident memory",
)
