"""The rule ``worker_silent``: a worker was killed, or has reported nothing for a while."""

from __future__ import annotations

from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind, link
from celery_trace.alerting.rules.units import SECONDS
from celery_trace.intervals import SAMPLE_IDLE_S, SILENT_S
from celery_trace.model import Role, WorkerView
from celery_trace.text.format import duration

#: Roles of processes that are listed with the workers but are not workers.
NO_WORKERS = frozenset({Role.WEB, Role.SCRIPT, Role.BEAT})
_MAIN_ROLES = {Role.MAIN, Role.SOLO, Role.THREADS, Role.GREEN}


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    for worker in facts.workers:
        if worker.role not in NO_WORKERS and worker.processes and rule.wants(worker.name):
            yield from _silence(worker, facts.now_s, rule)


def _silence(worker: WorkerView, now_s: float, rule: Rule) -> Iterator[Reading]:
    main = max(
        [process for process in worker.processes if process.role in _MAIN_ROLES] or worker.processes,
        key=lambda process: process.started_at,
    )
    killed = main.ended_how == "killed"
    silent_s = now_s - worker.last_seen
    # After the window it counts as gone.
    if silent_s > rule.window_s or (main.ended_at is not None and not killed):
        return
    name = worker.name or worker.host
    yield Reading(
        subject=name,
        value=max(silent_s, rule.above + 1) if killed else silent_s,
        text=f"Worker {name} (pid {main.pid}) was killed and is not back."
        if killed
        else f"Worker {name} has been silent for {duration(silent_s)} and did not exit normally.",
        link=link("workers", worker=name),
    )


KIND = RuleKind(
    name="worker_silent",
    read=_read,
    needs=("workers",),
    unit=SECONDS,
    quantity="Silence",
    shipped=Rule(
        rule="worker_silent", name="worker_silent", above=SILENT_S, window_s=86400, hold_s=0, clear=1,
        severity="critical",
    ),
    meaning="A worker was killed, or reported nothing for more than `above` without exiting normally; given up after "
    "`window`",
    above_at_least=SAMPLE_IDLE_S,
    why_at_least="an idle worker reports no more often than that",
)  # fmt: skip
