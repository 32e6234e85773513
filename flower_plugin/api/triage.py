"""What users decide about groups of failures: ``/api/trace/groups/FINGERPRINT/…``."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from celery_trace.model import new_id, plain_text
from celery_trace.model.triage import Comment, GroupDetail
from celery_trace.queries import Queries
from celery_trace.queries.triage import MOST_RETRIED
from celery_trace.stores import state, triage
from flower_plugin.api.changes import ChangeHandler
from flower_plugin.auth.roles import UserRole
from flower_plugin.problems import Problem
from flower_plugin.retries import CannotBegin

#: Characters of a comment, and of the name of a user.
MOST_COMMENT, MOST_NAME = 4000, 200
MOST_SECONDS = 366 * 86_400
#: Groups of one selection.
MOST_GROUPS = 1_000


class GroupChange(ChangeHandler):
    """Base of changes of one group."""

    async def group(self, fingerprint: str) -> GroupDetail:
        """The group, or 404."""
        found = await self.query(Queries.group, fingerprint)
        if found is None:
            raise Problem(404, f"Group {fingerprint[:50]!r} not found.", "It may have been pruned.")
        return found

    def words(self, name: str, most: int, *, empty: bool = False) -> str:
        """A text of the body, without spaces around it."""
        value = self.body().get(name, "")
        if not isinstance(value, str) or len(value) > most or not (value.strip() or empty):
            raise Problem(400, f"Invalid {name}.", f"It must be a text of at most {most} characters.")
        return plain_text(value.strip())


class ReopenHandler(GroupChange):
    """``POST groups/FINGERPRINT/reopen``: a resolved group is no longer resolved."""

    async def change(self, *groups: str) -> dict[str, object]:
        """Reopen it."""
        group = await self.group(groups[0])
        store = self.context.store
        await self.off_loop(store.in_transaction, lambda connection: triage.reopen(connection, group.fingerprint))
        return {"reopened": group.fingerprint}


class AssignHandler(GroupChange):
    """``POST groups/FINGERPRINT/assign``: ``{"to": name}``; an empty name removes the assignment."""

    async def change(self, *groups: str) -> dict[str, object]:
        """Assign it."""
        to, group = self.words("to", MOST_NAME, empty=True), await self.group(groups[0])
        store = self.context.store
        await self.off_loop(store.in_transaction, lambda connection: triage.assign(connection, group.fingerprint, to))
        return {"assigned": group.fingerprint, "to": to}


class IgnoreHandler(GroupChange):
    """``POST groups/FINGERPRINT/ignore``: ``{"seconds": n}``; 0 ends it."""

    async def change(self, *groups: str) -> dict[str, object]:
        """Ignore it."""
        seconds = GroupsHandler.seconds(self.body())
        group, user = await self.group(groups[0]), self.user.name
        until_s = self.context.clock.now_s() + seconds if seconds else None
        store = self.context.store
        await self.off_loop(
            store.in_transaction, lambda connection: triage.ignore(connection, group.fingerprint, until_s, user)
        )
        return {"ignored": group.fingerprint, "until": until_s}


class GroupsHandler(ChangeHandler):
    """``POST groups/resolve`` and ``groups/ignore``: of a selection, ``{"fingerprints": [...], "seconds": n}``."""

    async def change(self, *groups: str) -> dict[str, object]:
        """Change all of them in one transaction."""
        body, action = self.body(), groups[0]
        found = body.get("fingerprints")
        if not isinstance(found, list) or not 0 < len(found) <= MOST_GROUPS:
            raise Problem(400, "Invalid fingerprints.", f"It must be a list of at most {MOST_GROUPS} texts.")
        fingerprints = [str(one)[:64] for one in found if isinstance(one, str)]
        known = await self.query(Queries.known_groups, fingerprints)
        user, now_s = self.user.name, self.context.clock.now_s()
        until_s = now_s + self.seconds(body) if action == "ignore" else 0.0

        def change_all(connection: Connection) -> None:
            for fingerprint in known:
                if action == "ignore":
                    triage.ignore(connection, fingerprint, until_s if until_s > now_s else None, user)
                else:
                    state.resolve_group(connection, fingerprint, user, now_s)

        await self.off_loop(self.context.store.in_transaction, change_all)
        return {"changed": known, "action": action}

    @staticmethod
    def seconds(body: dict[str, object]) -> float:
        """For how long to ignore, from the body."""
        seconds = body.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MOST_SECONDS:
            raise Problem(400, f"Invalid seconds {str(seconds)[:50]!r}.", f"It must be from 0 to {MOST_SECONDS:,}.")
        return float(seconds)


class CommentHandler(GroupChange):
    """``POST groups/FINGERPRINT/comments``: ``{"text": …}``."""

    async def change(self, *groups: str) -> dict[str, object]:
        """Add a comment."""
        text, group = self.words("text", MOST_COMMENT), await self.group(groups[0])
        comment = Comment(
            id=new_id(),
            fingerprint=group.fingerprint,
            at=self.context.clock.now_s(),
            user=self.user.name,
            text=self.context.redactor.text(text),
        )
        store = self.context.store
        await self.off_loop(store.in_transaction, lambda connection: triage.comment(connection, comment))
        return {"comment": msgspec.to_builtins(comment)}


class CommentRemovalHandler(ChangeHandler):
    """``POST comments/ID/remove``: by its author, or with the role ``live``."""

    async def change(self, *groups: str) -> dict[str, object]:
        """Remove it."""
        comment = await self.query(Queries.comment, groups[0])
        if comment is None:
            raise Problem(404, "Comment not found.", "It may have been removed.")
        if comment.user != self.user.name and not self.user.may(UserRole.LIVE):
            raise Problem(403, "This is the comment of another user.", "Removing it needs the role live.")
        store = self.context.store
        await self.off_loop(store.in_transaction, lambda connection: triage.remove_comment(connection, comment.id))
        return {"removed": comment.id, "user": comment.user}


class RetryGroupHandler(GroupChange):
    """
    ``POST groups/FINGERPRINT/retry``: sends failed tasks of the group again, all or ``{"ids": [...]}``.

    All are those that ended without success and were not sent again yet, at most 1000, oldest first.
    """

    change_role = UserRole.LIVE

    async def change(self, *groups: str) -> dict[str, object]:
        """Begin; returns how many."""
        body, group = self.body(), await self.group(groups[0])
        ids = body.get("ids")
        if ids is None:
            wanted = await self.query(Queries.retryable, group.fingerprint)
        elif isinstance(ids, list) and len(ids) <= MOST_RETRIED and all(isinstance(one, str) for one in ids):
            of_group = await self.query(Queries.members, group.fingerprint, [str(one) for one in ids])
            wanted = [one for one in dict.fromkeys(str(one) for one in ids) if one in of_group]
        else:
            raise Problem(400, "Invalid ids.", f"It must be a list of at most {MOST_RETRIED} ids of failures.")
        if not wanted:
            raise Problem(409, "Nothing to retry.", "No failure of this group is a task that was not sent again yet.")
        try:
            order = self.context.retries.begin(group.fingerprint, wanted, self.user.name)
        except CannotBegin as error:
            raise Problem(409, "Can't retry now.", str(error), "Wait until it has ended, or stop it.") from error
        return {"group": group.fingerprint, "retrying": order.total}


class StopRetryHandler(ChangeHandler):
    """``POST groups/FINGERPRINT/retry/stop``: no further task is sent."""

    change_role = UserRole.LIVE

    async def change(self, *groups: str) -> dict[str, object]:
        """Stop it."""
        if not self.context.retries.stop(groups[0], self.user.name):
            raise Problem(409, "No failures of this group are being retried.", "It has ended.")
        return {"stopped": groups[0][:64]}
