"""The rule ``stuck``: a run lasts far longer than its task does, and makes no progress."""

from __future__ import annotations

from collections.abc import Iterator

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind, link
from celery_trace.alerting.rules.units import SECONDS
from celery_trace.model import RunningView, StackLine
from celery_trace.text.code_owner import CodeOwner
from celery_trace.text.format import duration


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    for run in facts.running:
        if run.stuck and rule.wants(run.name):
            # A pid and a thread too: a message that is delivered twice runs twice.
            of_what = f"{run.kind} {run.name}"
            yield Reading(
                subject=f"{of_what} ({run.task_id or 'no id'}, pid {run.pid}, thread {run.thread:x})",
                value=run.stalled_s,
                text=f"{of_what} on {run.worker}, pid {run.pid}, has made no progress for {duration(run.stalled_s)}: "
                f"{run.waiting_for or 'it is not known what it waits for'}{_where(run.stack)}. "
                f"It has run for {duration(run.elapsed_s)}{_usual(run)}.",
                link=link("running"),
            )


def _where(stack: list[StackLine]) -> str:
    """The innermost of the user's own lines."""
    owner = CodeOwner()
    line = next((line for line in stack if owner(line.file)), None)
    return f", in {line.function} at {owner.short(line.file)}:{line.line}" if line is not None else ""


def _usual(run: RunningView) -> str:
    return f"; 99% of its runs take at most {duration(run.p99_s)}" if run.p99_s is not None else ""


KIND = RuleKind(
    name="stuck",
    read=_read,
    needs=("running",),
    unit=SECONDS,
    quantity="Time without progress",
    shipped=Rule(rule="stuck", name="stuck", above=0, hold_s=0, severity="critical"),
    meaning="A run has lasted far longer than its task does, and has made no progress for more than `above`",
    at_zero="A run has lasted far longer than its task does, and makes no progress",
)
