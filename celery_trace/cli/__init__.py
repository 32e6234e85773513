"""
The subcommands of ``celery trace``: what the store knows, in a terminal or as JSON.

Each prints a table, or with ``--format json`` the very objects of the JSON API.
"""

import click

from celery_trace.cli.alerting import alerts
from celery_trace.cli.facts import failures, leaks, shell, show, workers
from celery_trace.cli.heaps import kept
from celery_trace.cli.profiling import profile
from celery_trace.cli.upkeep import collect, doctor, export, prune

#: By name, for :mod:`celery_trace.commands`.
COMMANDS: dict[str, click.Command] = {
    str(command.name): command
    for command in (leaks, failures, show, shell, alerts, workers, kept, profile, prune, export, collect, doctor)
}
