"""``celery trace alerts``: list, acknowledge, silence and test alerts."""

from __future__ import annotations

import click

from celery_trace.alerting import channels, rules
from celery_trace.alerting.engine import AlertEngine
from celery_trace.cli.context import CommandContext, Duration, Refusal, command, listing, unknown, user
from celery_trace.cli.renderers import alerts as rendered
from celery_trace.clock import SystemClock
from celery_trace.errors import Unavailable
from celery_trace.text.escape import escaped


@command
@listing(
    click.option("--state", type=click.Choice(["pending", "firing", "resolved"]), default=None),
    click.option("--ack", metavar="ID", default=None, help="Acknowledge: no repeats until it fires again."),
    click.option("--silence", metavar="ID", default=None, help="Deliver nothing about it for the time of --for."),
    click.option("--for", "for_s", type=Duration(), default="1h", show_default=True, help="How long to silence it."),
    click.option("--evaluate", is_flag=True, help="Evaluate the rules once and deliver, as the monitor does."),
    click.option("--test", metavar="CHANNEL", default=None, help="Send a test message; 'all' tests every channel."),
    click.option("--rules", "rules_", is_flag=True, help="Show the rules in force, and the channels."),
    click.option("--deliveries", is_flag=True, help="Show the delivery log."),
)  # fmt: skip
def alerts(
    context: CommandContext, state: str | None, ack: str | None, silence: str | None, for_s: float, evaluate: bool,
    test: str | None, rules_: bool, deliveries: bool, limit: int, cursor: str | None,
) -> None:  # fmt: skip
    """List, acknowledge, silence and test alerts."""
    style = context.style
    if sum(map(bool, (ack, silence, evaluate, test, rules_, deliveries))) > 1:
        raise Refusal("Use only one of --ack, --silence, --evaluate, --test, --rules and --deliveries.")
    if rules_:
        _show_rules(context)
        return
    with context.store(create=evaluate) as (store, queries):
        if ack or silence or evaluate or test:
            engine = AlertEngine(store, queries, context.settings, SystemClock())
        if test:
            _test_channels(context, engine, test)
        elif ack or silence:
            alert = engine.acknowledge(ack, user()) if ack else engine.silence(str(silence), for_s, user())
            if alert is None:
                raise unknown(str(ack or silence), "alert")
            context.show(rendered.alerts([alert], style), alert)
        elif evaluate:
            found = engine.evaluate()
            context.show(rendered.alerts(found, style), {"alerts": found, "next": None})
        elif deliveries:
            delivered = queries.deliveries(limit=limit, cursor=cursor)
            context.page(delivered, rendered.deliveries(delivered.rows, style))
        else:
            listed = queries.alerts(state=state, limit=limit, cursor=cursor)
            context.page(listed, rendered.alerts(listed.rows, style))


def _show_rules(context: CommandContext) -> None:
    try:
        with context.store() as (_, queries):
            stored = queries.alert_rules()
    except Unavailable:  # a store that is down or does not exist yet has no rules
        stored = None
    in_force = rules.in_force(context.settings.alert_rules, stored)
    labels = [channel.label for channel in channels.channels(context.settings.alert_channels)]
    text = rendered.rules(((rule, rules.kind_of(rule)) for rule in in_force), context.style)
    named = ", ".join(labels) or "none; set trace_alert_channels, see docs/alerts.md"
    origin = f"The rules were set in the monitor by {escaped(stored.by or 'an unknown user')}.\n" if stored else ""
    context.show(
        f"{text}\n{origin}Channels: {escaped(named)}\n",
        {"rules": list(map(rules.describe, in_force)), "channels": labels, "set_by": stored.by if stored else None},
    )


def _test_channels(context: CommandContext, engine: AlertEngine, test: str) -> None:
    labels = engine.channel_labels
    if not labels:
        raise Refusal("No channel is configured. Set trace_alert_channels, for example to log: (see docs/alerts.md).")
    if test != "all" and test not in labels:
        raise Refusal(f"Unknown channel {escaped(test)}. Channels: {', '.join(labels)}, or all.")
    done = [engine.test(label) for label in (labels if test == "all" else [test])]
    context.show(rendered.deliveries(done, context.style), {"deliveries": done, "next": None})
    if not all(delivery.ok for delivery in done):
        raise click.exceptions.Exit(1)
