"""The rule ``stuck``: a run lasts far longer than its task does, and makes no progress."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind, link
from celery_trace.alerting.rules.units import SECONDS
from celery_trace.model import Role, RunningView, StackLine
from celery_trace.text.code_owner import CodeOwner, innermost_own
from celery_trace.text.format import duration

_UNKNOWN: Final = "what it waits for is not known"


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    yield from _runs(facts, rule)
    yield from _pools(facts, rule)
    for process in facts.stalled:
        name = process.worker or process.hostname
        if rule.wants(name):
            blocked_s = facts.now_s - process.since_s
            what = "Beat sends no tasks" if process.role is Role.BEAT else "It takes no messages"
            yield Reading(
                subject=f"{process.role} of {name} (pid {process.pid})",
                value=blocked_s,
                text=f"The main thread of {name}, pid {process.pid}, has not run for {duration(blocked_s)}: "
                f"{process.waiting_for or _UNKNOWN}. {what}.",
                link=link("workers", worker=process.worker),
            )


def _pools(facts: Facts, rule: Rule) -> Iterator[Reading]:
    """Workers of which every child is stuck."""
    stalled_s = {run.process: run.stalled_s for run in facts.running if run.stuck and run.role is Role.CHILD}
    for worker in facts.workers:
        children = [process.uid for process in worker.processes if process.role is Role.CHILD and not process.ended_at]
        if worker.alive and children and rule.wants(worker.name) and stalled_s.keys() >= set(children):
            yield Reading(
                subject=f"pool of {worker.name}",
                value=min(stalled_s[uid] for uid in children),
                text=f"All children of {worker.name} are stuck ({len(children)}). "
                "It runs no other task until a run ends.",
                link=link("workers", worker=worker.name),
            )


def _runs(facts: Facts, rule: Rule) -> Iterator[Reading]:
    for run in facts.running:
        if run.stuck and rule.wants(run.name):
            # A pid and a thread too: a message that is delivered twice runs twice.
            of_what = f"{run.kind} {run.name}"
            yield Reading(
                subject=f"{of_what} ({run.task_id or 'no id'}, pid {run.pid}, thread {run.thread:x})",
                value=run.stalled_s,
                text=f"{of_what} on {run.worker}, pid {run.pid}, has made no progress for {duration(run.stalled_s)}: "
                f"{run.waiting_for or _UNKNOWN}{_where(run.stack)}. "
                f"It has run for {duration(run.elapsed_s)}{_usual(run)}.",
                link=run.path,
            )


def _where(stack: list[StackLine]) -> str:
    """The innermost of the user's own lines."""
    owner = CodeOwner()
    line = innermost_own(stack, owner)
    return f", in {line.function} at {owner.short(line.file)}:{line.line}" if line is not None else ""


def _usual(run: RunningView) -> str:
    return f"; 99% of its runs take at most {duration(run.p99_s)}" if run.p99_s is not None else ""


KIND = RuleKind(
    name="stuck",
    read=_read,
    needs=("running", "stalled", "workers"),
    unit=SECONDS,
    quantity="Time without progress",
    shipped=Rule(rule="stuck", name="stuck", above=0, hold_s=0, severity="critical"),
    meaning="A run has lasted far longer than its task does and has made no progress for more than `above`; or all "
    "children of a worker have; or a worker's main process or beat was blocked for so long",
    at_zero="A run has lasted far longer than its task does and makes no progress; or this is so in all children of a "
    "worker; or a worker's main process or beat is blocked",
)
