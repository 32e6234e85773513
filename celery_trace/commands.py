"""
The commands that Celery finds by entry point: ``monitor`` and ``trace``.

*Every* ``celery`` command imports this module, also at a worker's start. So it imports nothing of ours, and a command's
imports happen when it runs. With ``CELERY_TRACE=1`` in the environment it switches the plugin on: Celery sends
``worker_init`` before it builds the worker, late enough to know the app and early enough to trace it.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

#: The subcommands of ``trace``, in the order of the help.
SUBCOMMANDS = (
    "leaks", "failures", "show", "shell", "alerts", "workers", "kept", "profile", "prune", "export", "collect",
    "doctor",
)  # fmt: skip


class _Lazy(click.Group):
    """A group that imports its subcommands when one of them is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in SUBCOMMANDS:
            return None
        # By name: an import statement would count as a dependency on `cli`, which is on the same floor.
        command: click.Command = importlib.import_module("celery_trace.cli").COMMANDS[cmd_name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.format_message()} Commands are: {', '.join(SUBCOMMANDS)}.", ctx) from None


@click.command(cls=_Lazy)
def trace() -> None:
    """Leaks, failures, shells and alerts of Celery tasks."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def monitor(ctx: click.Context, options: tuple[str, ...]) -> None:
    """
    Flower, with leaks, failures, shells and alerts.

    Takes Flower's options (--port, --address, --url-prefix, --basic-auth …) as Flower does, and
    --trace_roles=ada:live,*:look (who may do what), --trace_hosts=NAME and --trace_trusted_proxies=ADDRESS (behind
    a proxy), --trace_read_only and --trace_session_hours=12.

    It requires a login: unless you configure one, it makes a password and prints it with a link that works once.
    CELERY_TRACE_MONITOR_PASSWORD and CELERY_TRACE_MONITOR_TOKEN in the environment set your own, and
    FLOWER_BASIC_AUTH several people's: a command line can be read by every user of the machine.
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
        # Alerts are evaluated later, in the background; errors in their settings are reported now.
        settings = from_app(ctx.obj.app)
        rules.configured(settings.alert_rules)
        channels.channels(settings.alert_channels)
        command.run(ctx.obj.app, list(options))
    except SettingError as error:
        raise click.ClickException(str(error)) from None


def _truthy(text: str) -> bool:
    return text.strip().lower() not in {"", "0", "false", "no", "off"}


def _switch_on_beat(sender: Any = None, **_: Any) -> None:
    """A scheduler starts."""
    from celery_trace.runtime.plugin import install

    install(sender.app).on_beat_init(sender=sender)


def _switch_on(sender: Any = None, **_: Any) -> None:
    """A worker starts. An invalid setting stops it here (SystemExit), with the reason."""
    from celery_trace.runtime.plugin import install

    # Connected while this signal is being sent, the plugin's own receiver may or may not be called; a second call
    # is harmless.
    install(sender.app).on_worker_init(sender=sender)


if _truthy(os.environ.get("CELERY_TRACE", "")):
    from celery.signals import beat_init, worker_init

    worker_init.connect(_switch_on, weak=False, dispatch_uid="celery_trace.install")
    beat_init.connect(_switch_on_beat, weak=False, dispatch_uid="celery_trace.install")
