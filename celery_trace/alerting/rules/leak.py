"""The rule ``leak``: a task, request or block keeps memory or other resources from run to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from celery_trace.alerting.rules.rule import Facts, Reading, Rule, RuleKind
from celery_trace.alerting.rules.units import BYTES
from celery_trace.model import Leak, Verdict
from celery_trace.text.format import moment, size

# A leaked descriptor, thread or child process has no size. For the comparison with `above` it counts as the least that
# the kernel holds for it: about 1 KiB for an open file or socket, the kernel stack and structures for a thread or a
# process.
_COUNTABLE = {"fds": "descriptors", "threads": "threads", "children": "child processes"}
_WEIGHTS_BYTES = {"fds": 1024, "threads": 32 * 1024, "children": 32 * 1024}


def holder_of(path: Sequence[str]) -> str:
    """
    The holder of a leak, with its attribute: ``shop.tasks._receipts (list)``.

    Args:
        path: ``retained_by`` of a leak, root first.
    """
    if not path:
        return ""
    name = path[0].partition(" (")[0]
    kind = ""
    for step in path[1:]:
        attribute, colon, what = step.partition(": ")
        if not colon or attribute.startswith("["):  # a key is data
            break
        name, kind = f"{name}.{attribute}", what.partition("[")[0]
    return f"{name} ({kind})" if kind else name


def _read(facts: Facts, rule: Rule) -> Iterator[Reading]:
    for leak in facts.leaks:
        if leak.verdict is not Verdict.LEAKING or leak.runs < rule.runs or not rule.wants(leak.name):
            continue
        no_line = f"native memory ({leak.resource or 'malloc'})" if leak.native else "a line not found yet"
        where = f"{leak.file}:{leak.line}" if leak.file else no_line
        yield Reading(
            # A line that is found later is the same leak.
            subject=f"{leak.kind} {leak.name} at {no_line if leak.native else where}",
            value=leak.kept_bytes_per_run + leak.kept_blocks_per_run * _WEIGHTS_BYTES.get(leak.resource, 0),
            text=f"{leak.kind} {leak.name} keeps {_amount(leak)} each run at {where} over {leak.runs} runs"
            f"{_holder(leak)}.{_beginning(leak)}",
            link=f"leaks/{leak.id}",
        )


def _amount(leak: Leak) -> str:
    countable = _COUNTABLE.get(leak.resource)
    return f"{leak.kept_blocks_per_run:.3g} {countable}" if countable else size(leak.kept_bytes_per_run)


def _holder(leak: Leak) -> str:
    holder = holder_of(leak.retained_by)
    return f", held by {holder}" if holder else ", its holder was not found" if leak.note else ""


def _beginning(leak: Leak) -> str:
    if not leak.began_with:
        return ""
    return f" It began with release {leak.began_with}{f', {moment(leak.began_at)}' if leak.began_at else ''}."


KIND = RuleKind(
    name="leak",
    read=_read,
    needs=("leaks",),
    unit=BYTES,
    quantity="Kept per run",
    shipped=Rule(rule="leak", name="leak", above=512, runs=20, hold_s=900, severity="warning"),
    meaning="A task, request or block keeps more than `above` a run, over at least `runs` runs, and the verdict is "
    "leaking",
)
