"""Profiles the next run of a task with memray, where that is ordered (:mod:`celery_trace.heap.profile`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from celery_trace.heap.profile import NextRunProfile, ProfiledRun
from celery_trace.model import RUN_NOTHING
from celery_trace.process.open_runs import Token
from celery_trace.runtime.probes.probe import Host, Probe


class ProfileProbe(Probe):
    """Runs under memray. They are not traced as well: what memray allocates would count as the run's."""

    name = "profile"
    exclusive = True

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._profile = NextRunProfile(host.settings.folder, host.process, host.clock)

    def arm(self, name: str, claim: Callable[[], bool], seconds: float) -> None:
        """Profile the next run of ``name`` that begins within ``seconds``, if ``claim()`` grants it to this process."""
        if self.host.process.role not in RUN_NOTHING:
            self._profile.arm(name, claim, seconds)
            self.host.offer_runs()

    @property
    def wants_runs(self) -> bool:
        """Whether an order waits for its run."""
        return bool(self._profile.armed)

    def before_run(self, token: Token) -> ProfiledRun | None:
        """Start memray, if this is the run that an order waits for."""
        if token.totals.name not in self._profile.armed:
            return None
        run = self._profile.started(token.totals.name, token.task_id)
        if not self._profile.armed:
            self.host.offer_runs()
        return run

    def after_run(self, token: Token, observed: object) -> None:  # noqa: ARG002 - the recording has all of it
        """Stop memray."""
        if isinstance(observed, ProfiledRun):
            self._profile.ended(observed)

    def counters(self) -> Mapping[str, int]:
        """Profiles taken and failed."""
        return dict(self._profile.counters)

    def close(self) -> None:
        """End a recording in progress."""
        self._profile.close()
