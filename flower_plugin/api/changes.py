"""What changes something, under ``/api/trace/``: a handler each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import msgspec
from kombu.exceptions import OperationalError

from celery_trace.alerting import rules
from celery_trace.settings import SettingError
from flower_plugin.api.retry import CannotRetry, retry
from flower_plugin.auth.roles import Role
from flower_plugin.trouble import Trouble
from flower_plugin.web import wire
from flower_plugin.web.handlers import JsonHandler

logger = logging.getLogger("celery_trace.monitor")

T = TypeVar("T")

#: More alert rules than this are nobody's.
MOST_RULES = 200
#: The greatest body that is read, bytes: that many rules, written out at length.
MOST_BODY_BYTES = 256 * 1024


class ChangeHandler(JsonHandler):
    """Base of everything that changes something: what is done is written to the audit log."""

    change_role = Role.LOCALS

    def body(self) -> dict[str, object]:
        """The JSON body; an empty one is an empty object."""
        if not self.request.body:
            return {}
        try:
            body = wire.read(self.request.body, MOST_BODY_BYTES)
        except wire.BadJson as error:
            raise Trouble(400, "The body can't be read.", str(error), "Send one JSON object.") from error
        if not isinstance(body, dict):
            raise Trouble(400, "The body is no JSON object.", next="Send one, such as {}.")
        return body

    async def post(self, *groups: str) -> None:
        """Do, note."""
        answer = await self.change(*groups)
        self.gatekeeper.audit.done(who=self.user.name, what=f"POST {self.request.path}", answer=str(answer)[:300])
        self.answer(answer)

    async def change(self, *groups: str) -> dict[str, object]:
        """What it does; returns what it answers."""
        raise NotImplementedError

    async def over_the_broker(self, call: Callable[[], T]) -> T:
        """
        Run blocking work that needs the broker.

        Raises:
            Trouble: 503, the broker does not answer.
        """
        try:
            return await self.off_loop(call)
        except (OperationalError, OSError) as error:
            raise Trouble(
                503, "The broker does not answer.", str(error), "Try again when the banner on top is gone."
            ) from error


class AlertHandler(ChangeHandler):
    """``POST /api/trace/alerts/ID/ack | silence``; silence takes ``{"seconds": n}``."""

    async def change(self, *groups: str) -> dict[str, object]:
        """Acknowledge or silence."""
        identifier, action = groups
        user = self.user.name
        if await self.off_loop(lambda: self.context.queries.alert(identifier)) is None:
            raise Trouble(404, f"There is no alert {identifier[:50]!r}.", "It may have been pruned.")
        if action == "ack":
            await self.off_loop(lambda: self.context.engine.acknowledge(identifier, user))
        else:
            seconds = self.body().get("seconds", 3600)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 30 * 86_400:
                raise Trouble(400, f"seconds is {seconds!r}.", "It must be a number from 0 to 2,592,000 (30 days).")
            await self.off_loop(lambda: self.context.engine.silence(identifier, float(seconds), user))
        alert = await self.off_loop(lambda: self.context.queries.alert(identifier))
        return {"alert": msgspec.to_builtins(alert)}


class ChannelTestHandler(ChangeHandler):
    """``POST /api/trace/alerts/test``: sends a test message, to all channels or to ``{"channel": n}``."""

    async def change(self, *_: str) -> dict[str, object]:
        """Deliver, and say how it went."""
        engine = await self.off_loop(lambda: self.context.engine)
        channels = engine.channel_labels
        if not channels:
            raise Trouble(
                409, "No channel is configured.", "trace_alert_channels is empty.", "Set it; see docs/alerts.md."
            )
        chosen = self.body().get("channel")
        if chosen is not None and (type(chosen) is not int or not 0 <= chosen < len(channels)):
            raise Trouble(400, f"There is no channel {chosen!r}.", f"Channels are numbered 0 to {len(channels) - 1}.")
        wanted = channels if chosen is None else (channels[chosen],)
        deliveries = [await self.off_loop(engine.test, channel) for channel in wanted]
        return {"deliveries": [msgspec.to_builtins(delivery) for delivery in deliveries]}


class AlertRulesHandler(ChangeHandler):
    """
    ``GET /api/trace/alerts/rules``: the rules in force. ``POST``: ``{"rules": [...]}`` sets them for every monitor
    over this store, in the form of ``trace_alert_rules``; ``{"rules": null}`` goes back to the configured ones.
    """

    role = Role.LOOK
    change_role = Role.LIVE

    async def get(self) -> None:
        """Each as :func:`celery_trace.alerting.rules.describe` tells it, and who set them, if somebody did."""
        setting = self.context.settings.alert_rules
        context = self.context
        # The lambda also keeps the opening of the store off the loop.
        stored = await self.off_loop(lambda: context.queries.alert_rules())  # noqa: PLW0108
        try:
            found = rules.in_force(setting, stored)
        except SettingError as error:
            raise Trouble(409, "The rules that were set here can't be used.", str(error)) from error
        set_by = stored.by if stored else None
        self.answer({"rules": [rules.describe(rule) for rule in found], "set_by": set_by})

    async def change(self, *_: str) -> dict[str, object]:
        """Check them as those of the configuration, then keep them."""
        body = self.body()
        entries = body.get("rules", ())
        if "rules" not in body or not (entries is None or isinstance(entries, list)):
            raise Trouble(400, "rules is missing.", "It must be a list of rules, or null for the configured ones.")
        stored = None
        if entries is not None:
            if len(entries) > MOST_RULES or not all(isinstance(entry, dict) for entry in entries):
                raise Trouble(400, "rules is no list of rules.", f"It takes at most {MOST_RULES} objects.")
            # A form has every field; an empty list of names means all of them.
            given = [{key: value for key, value in entry.items() if (key, value) != ("names", "")} for entry in entries]
            try:
                rules.configured(given)
            except SettingError as error:
                raise Trouble(400, "The rules were not taken.", str(error)) from error
            stored = rules.StoredRules(given, self.user.name, self.context.clock.now_s())
        await self.off_loop(lambda: self.context.store.save_alert_rules(stored))
        return {"rules": entries, "set_by": self.user.name if stored else None}


class ResolveHandler(ChangeHandler):
    """``POST /api/trace/leaks/ID/resolve`` and ``/api/trace/groups/FINGERPRINT/resolve``."""

    async def change(self, *groups: str) -> dict[str, object]:
        """Mark it resolved; it comes back by itself when it is seen again."""
        noun, identifier = groups
        user, at_s = self.user.name, self.context.clock.now_s()
        method = "resolve_leak" if noun == "leaks" else "resolve_group"
        await self.off_loop(lambda: getattr(self.context.store, method)(identifier, user, at_s))
        return {"resolved": identifier, "by": user, "at": at_s}


class RetryHandler(ChangeHandler):
    """``POST /api/trace/failures/ID/retry``: send the task again with the arguments that were captured."""

    change_role = Role.LIVE

    async def change(self, *groups: str) -> dict[str, object]:
        """Send it; the new task's id is the answer."""
        identifier = groups[0]
        failure = await self.off_loop(lambda: self.context.queries.failure_record(identifier))
        if failure is None:
            raise Trouble(404, f"There is no failure {identifier[:50]!r}.", "It may have been pruned.")
        try:
            task_id = await self.over_the_broker(lambda: retry(self.context.capp, failure))
        except CannotRetry as error:
            raise Trouble(409, "This task can't be sent again from here.", str(error)) from error
        return {"task_id": task_id, "name": failure.name}


class DropHandler(ChangeHandler):
    """``POST /api/trace/failures/ID/drop``: let the process go of the failure's live objects."""

    change_role = Role.LIVE

    async def change(self, *groups: str) -> dict[str, object]:
        """Tell the workers, signed."""
        from celery_trace.control.orders import drop

        identifier = groups[0]
        settings, user = self.context.settings, self.user.name
        if await self.off_loop(lambda: self.context.queries.kept(identifier)) is None:
            raise Trouble(409, "No process holds this failure any more.", "It was let go of, or its process ended.")
        answers = await self.over_the_broker(lambda: drop(self.context.capp, settings, identifier, user=user))
        return {"failure": identifier, "workers": answers}


class TraceNowHandler(ChangeHandler):
    """
    ``POST /api/trace/tasks/trace``: ``{"name": task, "seconds": n}`` measures each run of a task for a while; 0 seconds
    end that.
    """

    change_role = Role.LIVE

    async def change(self, *_: str) -> dict[str, object]:
        """Tell the workers, signed."""
        body = self.body()
        name, seconds = body.get("name"), body.get("seconds", 120)
        if not isinstance(name, str) or not name or len(name) > 500:
            raise Trouble(400, "name is missing.", "It must be the name of a task.")
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, int | float)
            or not (seconds == 0 or 1 <= seconds <= 3600)
        ):
            raise Trouble(400, f"seconds is {seconds!r}.", "It must be a number from 1 to 3600, or 0 to stop.")
        from celery_trace.control.orders import arm

        settings, user = self.context.settings, self.user.name
        # An order takes the place of an earlier one of its kind: to stop is to measure as usual, from now on.
        mode, lasts_s = ("always", float(seconds)) if seconds else (settings.memory, 1.0)
        answers = await self.over_the_broker(
            lambda: arm(self.context.capp, settings, name, lasts_s, user=user, mode=mode)
        )
        return {"name": name, "seconds": seconds, "workers": answers}
