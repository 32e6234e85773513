"""How an investigation proceeds, and what all investigations of a process share."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from celery_trace.clock import Clock
from celery_trace.model import Window
from celery_trace.probes.gate import FAST, THOROUGH, GateRules
from celery_trace.probes.lease import Lease
from celery_trace.probes.source import OwnCode

#: Censused runs where little evidence is enough.
FAST_CENSUS_RUNS = 4


class Plan(Struct, frozen=True, kw_only=True):
    """How many runs each step takes."""

    gate: GateRules
    census_runs: int
    rare_census_runs: int = 60
    locate_runs: int = 4
    rare_locate_runs: int = 45
    recheck_runs: int
    deep_nframe: int = 16

    @classmethod
    def for_recheck(cls, recheck_runs: int) -> Plan:
        """The thorough plan, or for a re-check within sixty runs the fast one for development."""
        if recheck_runs <= 60:
            return cls(
                gate=FAST,
                census_runs=FAST_CENSUS_RUNS,
                rare_census_runs=40,
                rare_locate_runs=35,
                recheck_runs=recheck_runs,
            )
        return cls(gate=THOROUGH, census_runs=6, recheck_runs=recheck_runs)


class Services(Struct, frozen=True, kw_only=True):
    """What every investigation of a process shares."""

    process: str
    fleet: str
    emit: Callable[[Window], None]
    clock: Clock
    lease: Lease
    own: OwnCode
    plan: Plan
    blocks: Callable[[], int]
    live_bytes: Callable[[], int]
