"""
The subcommands of ``celery trace``: the store's contents in a terminal or as JSON.

Each prints a table, or with ``--format json`` the objects of the JSON API.
"""

import click

from celery_trace.cli import alerting, diagnosing, facts, flames, flow, maintenance, profiling, reproducing, running

#: By name, for :mod:`celery_trace.commands`.
COMMANDS: dict[str, click.Command] = {
    str(command.name): command
    for command in (
        facts.leaks, facts.failures, facts.show, facts.shell, alerting.alerts, facts.workers, running.running,
        running.top, flow.queues, flow.timeline, diagnosing.diagnose, flames.flame, profiling.profile,
        reproducing.make_test, reproducing.replay, maintenance.prune, maintenance.export, maintenance.collect,
        maintenance.doctor,
    )
}  # fmt: skip
