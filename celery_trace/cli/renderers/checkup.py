"""The doctor's findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import Cell, grid

if TYPE_CHECKING:
    from celery_trace.cli.findings import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def examination(findings: Sequence[Finding], style: Style) -> str:
    """The doctor's findings, one line each, with advice below."""
    rows: list[list[Cell]] = []
    for finding in findings:
        rows.append([(finding.level, _COLOURS.get(finding.level, "")), finding.check, finding.found])
        if finding.advice:
            rows.append(["", "", f"→ {style.hint(finding.advice)}"])
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    return grid(rows, style) + f"\n{len(findings)} checks: {failed} failed, {warned} with a warning.\n"
