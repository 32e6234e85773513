"""The doctor's findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from celery_trace.cli.renderers.style import Style
from celery_trace.cli.renderers.tables import Cell, grid

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


class Examined(Protocol):
    """What :func:`examination` needs of a finding (:class:`celery_trace.cli.doctor.Finding`)."""

    @property
    def level(self) -> str:
        """``ok``, ``warn`` or ``fail``."""

    @property
    def check(self) -> str:
        """The check."""

    @property
    def found(self) -> str:
        """The result."""

    @property
    def advice(self) -> str:
        """What to do about it."""


def examination(findings: Sequence[Examined], style: Style) -> str:
    """The doctor's findings, one line each, with advice below."""
    rows: list[list[Cell]] = []
    for finding in findings:
        rows.append([(finding.level, _COLOURS.get(finding.level, "")), finding.check, finding.found])
        if finding.advice:
            rows.append(["", "", f"→ {finding.advice}"])
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    return grid(rows, style) + f"\n{len(findings)} checks: {failed} failed, {warned} with a warning.\n"
