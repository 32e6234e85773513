"""Handlers for changes under ``/api/trace/``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import msgspec
from kombu.exceptions import OperationalError

from celery_trace.alerting import rules
from celery_trace.queries import Queries
from celery_trace.settings import SettingError
from celery_trace.stores import rows
from flower_plugin.auth.roles import UserRole
from flower_plugin.problems import Problem
from flower_plugin.retries import CannotRetry, retry
from flower_plugin.web import wire
from flower_plugin.web.handlers import JsonHandler

logger = logging.getLogger("celery_trace.monitor")

T = TypeVar("T")

#: Maximum number of alert rules.
MOST_RULES = 200
#: Maximum body, bytes: enough for that many rules.
MOST_BODY_BYTES = 256 * 1024


class ChangeHandler(JsonHandler):
    """Base of all handlers that change something; each change is written to the audit log."""

    change_role = UserRole.LOCALS

    def body(self) -> dict[str, object]:
        """The JSON body; an empty one is an empty object."""
        if not self.request.body:
            return {}
        try:
            body = wire.read(self.request.body, MOST_BODY_BYTES)
        except wire.BadJson as error:
            raise Problem(400, "Invalid body.", str(error), "Send one JSON object.") from error
        if not isinstance(body, dict):
            raise Problem(400, "The body is not a JSON object.", next="Send an object, such as {}.")
        return body

    async def post(self, *groups: str) -> None:
        """Make the change, log it, answer."""
        answer = await self.change(*groups)
        self.gatekeeper.audit.done(who=self.user.name, what=f"POST {self.request.path}", answer=str(answer)[:300])
        self.answer(answer)

    async def change(self, *groups: str) -> dict[str, object]:
        """Make the change; returns the response."""
        raise NotImplementedError

    def order(self, usual_s: float, *, stops: bool = False) -> tuple[str, float]:
        """
        The task's name and the seconds that an order to workers lasts, from the body.

        Args:
            usual_s: The seconds where the body has none.
            stops: Whether 0 seconds are allowed.
        """
        body = self.body()
        name, seconds = body.get("name"), body.get("seconds", usual_s)
        if not isinstance(name, str) or not name or len(name) > 500:
            raise Problem(400, "name is missing.", "It must be the name of a task.")
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, int | float)
            or not (1 <= seconds <= 3600 or (stops and seconds == 0))
        ):
            allowed = "It must be a number from 1 to 3600" + (", or 0 to stop." if stops else ".")
            raise Problem(400, f"Invalid seconds {seconds!r}.", allowed)
        return name, seconds

    async def over_the_broker(self, call: Callable[[], T]) -> T:
        """
        Run a blocking call that needs the broker.

        Raises:
            Problem: 503, the broker is not responding.
        """
        try:
            return await self.off_loop(call)
        except (OperationalError, OSError) as error:
            raise Problem(503, "The broker is not responding.", str(error), "Try again when it is back.") from error


class AlertHandler(ChangeHandler):
    """``POST /api/trace/alerts/ID/ack | silence``; silence takes ``{"seconds": n}``."""

    async def change(self, *groups: str) -> dict[str, object]:
        """Acknowledge or silence."""
        identifier, action = groups
        user = self.user.name
        if await self.query(Queries.alert, identifier) is None:
            raise Problem(404, f"Alert {identifier[:50]!r} not found.", "It may have been pruned.")
        if action == "ack":
            await self.off_loop(lambda: self.context.engine.acknowledge(identifier, user))
        else:
            seconds = self.body().get("seconds", 3600)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 30 * 86_400:
                raise Problem(400, f"Invalid seconds {seconds!r}.", "It must be from 0 to 2,592,000 (30 days).")
            await self.off_loop(lambda: self.context.engine.silence(identifier, float(seconds), user))
        alert = await self.query(Queries.alert, identifier)
        return {"alert": msgspec.to_builtins(alert)}


class ChannelTestHandler(ChangeHandler):
    """``POST /api/trace/alerts/test``: sends a test message, to all channels or to ``{"channel": n}``."""

    async def change(self, *_: str) -> dict[str, object]:
        """Send test messages and return the results."""
        engine = await self.off_loop(lambda: self.context.engine)
        channels = engine.channel_labels
        if not channels:
            raise Problem(409, "No channels are configured.", "trace_alert_channels is empty.", "See docs/alerts.md.")
        chosen = self.body().get("channel")
        if chosen is not None and (type(chosen) is not int or not 0 <= chosen < len(channels)):
            raise Problem(400, f"Unknown channel {chosen!r}.", f"Channels are numbered 0 to {len(channels) - 1}.")
        wanted = channels if chosen is None else (channels[chosen],)
        deliveries = [await self.off_loop(engine.test, channel) for channel in wanted]
        return {"deliveries": [msgspec.to_builtins(delivery) for delivery in deliveries]}


class AlertRulesHandler(ChangeHandler):
    """
    ``GET /api/trace/alerts/rules``: the rules in force. ``POST``: ``{"rules": [...]}`` sets them for every monitor
    over this store, in the form of ``trace_alert_rules``; ``{"rules": null}`` goes back to the configured ones.
    """

    role = UserRole.LOOK
    change_role = UserRole.LIVE

    async def get(self) -> None:
        """The rules in the form of :func:`celery_trace.alerting.rules.describe`, and the user who set them, if any."""
        setting = self.context.settings.alert_rules
        stored = await self.query(Queries.alert_rules)
        try:
            found = rules.in_force(setting, stored)
        except SettingError as error:
            raise Problem(409, "The stored rules are invalid.", str(error)) from error
        set_by = stored.by if stored else None
        self.answer({"rules": [rules.describe(rule) for rule in found], "set_by": set_by})

    async def change(self, *_: str) -> dict[str, object]:
        """Validate the rules, then store them."""
        body = self.body()
        entries = body.get("rules", ())
        if "rules" not in body or not (entries is None or isinstance(entries, list)):
            raise Problem(400, "rules is missing.", "It must be a list of rules, or null for the configured rules.")
        stored = None
        if entries is not None:
            if len(entries) > MOST_RULES or not all(isinstance(entry, dict) for entry in entries):
                raise Problem(400, "Invalid rules.", f"It must be a list of at most {MOST_RULES} objects.")
            # The form sends all fields; empty names mean all names.
            given = [{key: value for key, value in entry.items() if (key, value) != ("names", "")} for entry in entries]
            try:
                rules.configured(given)
            except SettingError as error:
                raise Problem(400, "Invalid rules.", str(error)) from error
            stored = rules.StoredRules(given, self.user.name, self.context.clock.now_s())
        await self.off_loop(lambda: self.context.store.save_alert_rules(stored))
        return {"rules": entries, "set_by": self.user.name if stored else None}


class ResolveHandler(ChangeHandler):
    """``POST /api/trace/leaks/ID/resolve`` and ``/api/trace/groups/FINGERPRINT/resolve``."""

    async def change(self, *groups: str) -> dict[str, object]:
        """Mark as resolved; it reopens when it is seen again."""
        noun, identifier = groups
        user, at_s = self.user.name, self.context.clock.now_s()
        method = "resolve_leak" if noun == "leaks" else "resolve_group"
        await self.off_loop(lambda: getattr(self.context.store, method)(identifier, user, at_s))
        return {"resolved": identifier, "by": user, "at": at_s}


class RetryHandler(ChangeHandler):
    """``POST /api/trace/failures/ID/retry``: send the task again with the arguments that were captured."""

    change_role = UserRole.LIVE

    async def change(self, *groups: str) -> dict[str, object]:
        """Send the task; returns the new id."""
        identifier = groups[0]
        failure = await self.query(Queries.failure_record, identifier)
        if failure is None:
            raise Problem(404, f"Failure {identifier[:50]!r} not found.", "It may have been pruned.")
        try:
            task_id = await self.over_the_broker(lambda: retry(self.context.capp, failure))
        except CannotRetry as error:
            raise Problem(409, "This task can't be retried from the monitor.", str(error)) from error
        user = self.user.name
        await self.off_loop(lambda: self.context.retries.note(failure, user, task_id, rows.fingerprint(failure)))
        return {"task_id": task_id, "name": failure.name}


class DropHandler(ChangeHandler):
    """``POST /api/trace/failures/ID/drop``: release the failure's live objects in the process."""

    change_role = UserRole.LIVE

    async def change(self, *groups: str) -> dict[str, object]:
        """Send a signed order to the workers."""
        from celery_trace.control.orders import drop

        identifier = groups[0]
        settings, user = self.context.settings, self.user.name
        if await self.query(Queries.kept, identifier) is None:
            raise Problem(409, "The failure is no longer kept live.", "It was released, or its process ended.")
        answers = await self.over_the_broker(lambda: drop(self.context.capp, settings, identifier, user=user))
        return {"failure": identifier, "workers": answers}


class TraceNowHandler(ChangeHandler):
    """
    ``POST /api/trace/tasks/trace``: ``{"name": task, "seconds": n}`` traces each run of a task for a while; 0 seconds
    stop it.
    """

    change_role = UserRole.LIVE

    async def change(self, *_: str) -> dict[str, object]:
        """Send a signed order to the workers."""
        name, seconds = self.order(120, stops=True)
        from celery_trace.control.orders import arm

        settings, user = self.context.settings, self.user.name
        # An order replaces an earlier one of its kind, so stopping means switching to the configured mode.
        mode, lasts_s = ("always", float(seconds)) if seconds else (settings.memory, 1.0)
        answers = await self.over_the_broker(
            lambda: arm(self.context.capp, settings, name, lasts_s, user=user, mode=mode)
        )
        return {"name": name, "seconds": seconds, "workers": answers}
