"""Keeps the last log records of each run in memory, for its failure."""

from __future__ import annotations

from celery_trace.failures.run_logs import RunLogs, task_in_progress
from celery_trace.model import RUN_NOTHING
from celery_trace.redaction import Redactor
from celery_trace.runtime.probes.probe import Host, Probe


class LogProbe(Probe):
    """The log records of runs, unless ``trace_log_records`` is 0. A run that logs nothing costs nothing."""

    name = "log records"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        settings = host.settings
        wanted = settings.failures and host.process.role not in RUN_NOTHING
        self.logs = RunLogs(settings.log_records if wanted else 0, Redactor(settings.redact))

    def start(self) -> None:
        """Look at log records from now on."""
        self.logs.find.append(task_in_progress)
        self.logs.attach()

    def close(self) -> None:
        """Look at no further ones."""
        self.logs.detach()

    def after_fork(self) -> None:
        """The child's recorder has its own."""
        self.logs.detach()

    @property
    def overhead_s(self) -> float:
        """Seconds that keeping records has cost."""
        return self.spent_s + self.logs.spent_s
