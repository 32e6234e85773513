"""
The commands that Celery finds by entry point: ``monitor`` and ``trace``.

*Every* ``celery`` command imports this module, including a starting worker. So it imports nothing of ours at the top;
each command imports what it needs when it runs. With ``CELERY_TRACE=1`` in the environment it enables the plugin:
Celery sends ``worker_init`` before it builds the worker, when the app is known and tracing can still start.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from celery.beat import Service
    from celery.worker import WorkController

#: The subcommands of ``trace``, in the order of the help.
SUBCOMMANDS = (
    "leaks", "failures", "show", "shell", "alerts", "workers", "running", "top", "queues", "timeline", "diagnose",
    "flame", "profile", "make-test", "replay", "prune", "export", "collect", "doctor",
)  # fmt: skip


class _Lazy(click.Group):
    """A group that imports its subcommands on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in SUBCOMMANDS:
            return None
        # By name: `cli` is on the same layer, and import-linter would read an import statement as a dependency.
        command: click.Command = importlib.import_module("celery_trace.cli").COMMANDS[cmd_name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.format_message()} Commands: {', '.join(SUBCOMMANDS)}.", ctx) from None


@click.command(cls=_Lazy)
def trace() -> None:
    """Find leaking tasks and inspect failed ones."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def monitor(ctx: click.Context, options: tuple[str, ...]) -> None:
    """
    Run Flower with leaks, failures, shells and alerts.

    Takes Flower's options (--port, --address, --url-prefix, --basic-auth …) as Flower does, and
    --trace_roles=ada:live,*:look (who may do what), --trace_hosts=NAME and --trace_trusted_proxies=ADDRESS (behind
    a proxy), --trace_read_only and --trace_session_hours=12.

    It requires a login: if you configure none, it generates a password and prints it with a one-time link. Set your
    own with CELERY_TRACE_MONITOR_PASSWORD and CELERY_TRACE_MONITOR_TOKEN in the environment, or several users with
    FLOWER_BASIC_AUTH; every user of the machine can read a command line.
    """
    try:
        # By name: the core must not depend on the monitor.
        command = importlib.import_module("flower_plugin.command")
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"flower", "tornado", "pygments", "prometheus_client"}:
            raise
        raise click.ClickException(
            f"Can't start the monitor: it extends Flower, and {missing} is not installed here. "
            'Run: pip install "celery-trace[monitor]"'
        ) from None
    from celery_trace.alerting import channels, rules
    from celery_trace.settings import SettingError, from_app

    try:
        # Alerts are evaluated in the background later; report mistakes in the rules now.
        settings = from_app(ctx.obj.app)
        rules.configured(settings.alert_rules)
        channels.channels(settings.alert_channels)
        command.run(ctx.obj.app, list(options))
    except SettingError as error:
        raise click.ClickException(str(error)) from None


def _truthy(text: str) -> bool:
    return text.strip().lower() not in {"", "0", "false", "no", "off"}


def _switch_on_beat(sender: Service, **_: object) -> None:
    """A scheduler starts."""
    from celery_trace.runtime.plugin import install

    install(sender.app).on_beat_init(sender=sender)


def _switch_on(sender: WorkController, **_: object) -> None:
    """A worker starts. An invalid setting ends it here (SystemExit) with the reason."""
    from celery_trace.runtime.plugin import install

    # The plugin's own receiver, connected while this signal is being sent, may or may not receive it; a second call
    # does no harm.
    install(sender.app).on_worker_init(sender=sender)


if _truthy(os.environ.get("CELERY_TRACE", "")):
    from celery.signals import beat_init, worker_init

    worker_init.connect(_switch_on, weak=False, dispatch_uid="celery_trace.install")
    beat_init.connect(_switch_on_beat, weak=False, dispatch_uid="celery_trace.install")
