"""The subcommand that profiles the next run of a task with memray."""

from __future__ import annotations

import time

import click

from celery_trace.cli.context import CommandContext, Duration, Refusal, command, user
from celery_trace.heap.flamegraph import NoFlamegraph, Profile, Profiles
from celery_trace.text.escape import escaped
from celery_trace.text.format import count, duration, size

#: How often to check whether the run has ended, seconds.
LOOK_S = 0.25
#: How often to report that it still waits, seconds.
REMIND_S = 15.0


@command
@click.argument("name")
@click.option("--wait", "wait_s", type=Duration(), default="10m", show_default=True, help="How long to wait.")
@click.option("--view", type=click.Choice(["peak", "kept"]), default="peak", show_default=True,
              help="The flamegraph of the run's peak, or of the memory left at its end.")  # fmt: skip
def profile(context: CommandContext, name: str, wait_s: float, view: str) -> None:
    """
    Profile the next run of the task NAME with memray, and create its flamegraph.

    Each running worker profiles one run: this waits for the first on this host. Ctrl-C ends the wait, not the order.
    """
    from celery_trace.control import orders

    profiles = Profiles(context.settings.folder)
    begun_s = time.time()
    try:
        answers = orders.profile(context.app, context.settings, name, user=user(), seconds=wait_s)
    except ValueError as error:
        raise Refusal(f"Invalid order: {error}.") from None
    if not answers:
        raise Refusal(
            "No worker with celery-trace answered. Is one running on this broker with this project? "
            "See celery trace workers."
        )
    for answer in answers:
        if not answer["ok"]:
            click.echo(f"{escaped(answer['worker'])} refused: {escaped(answer['why'])}", err=True)
    if not any(answer["ok"] for answer in answers):
        raise Refusal("No worker accepted the order; see the reasons above.")
    found = _wait(profiles, name, begun_s, wait_s)
    data: dict[str, object] = {"profile": found, "recording": str(profiles.recording(found.id)), "workers": answers}
    if found.state != "done":
        raise Refusal(f"The run of {escaped(name)} was not profiled: {escaped(found.why)}")
    try:
        data["flamegraph"] = str(profiles.flamegraph(found, view))
        where = f"Flamegraph  {data['flamegraph']}\n"
    except NoFlamegraph as error:
        data["flamegraph"] = None
        where = f"No flamegraph: {escaped(str(error))}\n"
    context.show(
        f"{escaped(found.name)}  task {escaped(found.task_id)}  pid {found.pid} on {escaped(found.host)}\n"
        f"Took {duration(found.duration_s)} under memray; {size(found.peak_bytes)} at its peak, "
        f"{count(found.allocations)} allocations\n"
        f"{where}Recording   {data['recording']}\n",
        data,
    )


def _wait(profiles: Profiles, name: str, since_s: float, wait_s: float) -> Profile:
    """Wait for the first profile of a name to end. Progress goes to standard error."""
    click.echo(f"Waiting for the next run of {escaped(name)} …", err=True)
    deadline_s = time.monotonic() + wait_s
    remind_s = time.monotonic() + REMIND_S
    running = ""
    while True:
        found = [one for one in profiles.all() if one.name == name and one.at >= since_s]
        over = [one for one in found if one.state != "running"]
        if over:
            return over[-1]
        if found and found[-1].id != running:
            running = found[-1].id
            click.echo(f"Profiling task {escaped(found[-1].task_id)} in pid {found[-1].pid} …", err=True)
        now_s = time.monotonic()
        if now_s >= deadline_s and not found:
            raise Refusal(
                f"No run of {escaped(name)} started within {duration(wait_s)} on this host. A profile stays on its "
                f"worker's host, in {profiles.folder}."
            )
        if now_s >= remind_s:
            remind_s = now_s + REMIND_S
            click.echo(f"Still waiting, {duration(max(0.0, deadline_s - now_s))} left.", err=True)
        time.sleep(LOOK_S)
