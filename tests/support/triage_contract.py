"""What every database must do for groups of failures and what users decide about them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from celery_trace.model import Outcome, RequestContext, Role, TaskContext
from celery_trace.model.triage import Comment, Retried, TagShare
from celery_trace.queries import Queries
from celery_trace.settings import Settings
from celery_trace.stores import Store, triage
from tests.support.store_records import NOW_S, failure, process

HOUR_S = 3600


def decide(store: Store, call: Callable[..., None], *arguments: Any) -> None:
    store.in_transaction(lambda connection: call(connection, *arguments))


def the_tags_of_a_group_have_their_shares(store: Store) -> None:
    store.write(
        [process("p1", release="1.8"), process("p2", release="1.9"), process("p3")]
        + [
            failure(
                f"t{n}",
                process="p1" if n < 2 else "p2",
                worker="w1@h1" if n < 3 else "w2@h2",
                hostname="h1" if n < 3 else "h2",
                at_s=NOW_S - 100 + n,
                task=TaskContext(queue="mails" if n else ""),
            )
            for n in range(4)
        ]
        + [failure("other", fingerprint="fp-other", process="p3")]
    )
    group = Queries(store).group("fp-value")
    assert group is not None
    assert (group.tagged, group.first_release, group.last_release) == (4, "1.8", "1.9")
    tags = {tag.name: tag.values for tag in group.tags}
    assert tags == {
        "worker": [TagShare("w1@h1", 3, 0.75), TagShare("w2@h2", 1, 0.25)],
        "queue": [TagShare("mails", 3, 0.75), TagShare("", 1, 0.25)],
        "release": [TagShare("1.8", 2, 0.5), TagShare("1.9", 2, 0.5)],
        "host": [TagShare("h1", 3, 0.75), TagShare("h2", 1, 0.25)],
    }
    other = Queries(store).group("fp-other")
    assert other is not None
    assert (other.first_release, [tag.name for tag in other.tags]) == ("", ["worker"])
    assert Queries(store).group("nobody") is None


def a_route_is_a_tag_and_rare_values_are_added_up(store: Store) -> None:
    store.write(
        [process("p1", role=Role.WEB)]
        + [
            failure(
                f"t{n}", hostname=f"h{n}", worker="", request=RequestContext(method="GET", path="/", route="shop/<id>")
            )
            for n in range(8)
        ]
    )
    group = Queries(store).group("fp-value")
    assert group is not None
    tags = {tag.name: tag for tag in group.tags}
    assert tags["route"].values == [TagShare("shop/<id>", 8, 1.0)]
    assert (len(tags["host"].values), tags["host"].more) == (5, 3)
    assert "worker" not in tags


def the_trend_of_a_group_has_all_of_its_failures(store: Store) -> None:
    store.write([failure(f"t{n}", at_s=NOW_S - n * HOUR_S / 2) for n in range(40)])
    queries = Queries(store)
    for slices in (5, 7, 60):
        trend = queries.group_trend("fp-value", NOW_S - 20 * HOUR_S, slices)
        assert len(trend) <= slices
        assert sum(count for _, count in trend) == 40
        assert len({round(after[0] - before[0]) for before, after in pairwise(trend)}) <= 1
    assert sum(count for _, count in queries.group_trend("fp-value", NOW_S - HOUR_S, 60)) < 40
    assert all(count == 0 for _, count in queries.group_trend("nobody", NOW_S - HOUR_S, 60))


def a_failure_knows_the_ones_before_and_after_it_in_its_group(store: Store) -> None:
    # Two at the same time, which their ids put in order.
    store.write([failure(f"t{n}", at_s=NOW_S + n // 2) for n in range(5)] + [failure("x", fingerprint="fp-other")])
    queries = Queries(store)
    newest_first = queries.failures(fingerprint="fp-value").rows
    for place, row in enumerate(newest_first):
        found = queries.neighbours(row)
        before = newest_first[place + 1].id if place + 1 < len(newest_first) else None
        after = newest_first[place - 1].id if place else None
        assert (found.previous and found.previous.id, found.next and found.next.id) == (before, after)


def what_users_decide_about_a_group_outlives_its_next_failure(store: Store) -> None:
    store.write([failure("t1", at_s=NOW_S - 1)])
    queries = Queries(store)
    decide(store, triage.assign, "fp-value", "ann")
    decide(store, triage.ignore, "fp-value", NOW_S + 1e6, "bob")
    store.write([failure("t2")])
    group = queries.group("fp-value")
    assert group is not None
    assert (group.assigned_to, group.state, group.ignored_by, group.count) == ("ann", "ignored", "bob", 2)
    assert [one.assigned_to for one in queries.groups(state="ignored").rows] == ["ann"]
    assert [one.fingerprint for one in queries.groups(assigned_to="ann").rows] == ["fp-value"]
    assert queries.groups(assigned_to="bob").rows == []
    assert queries.groups(state="open").rows == []
    assert queries.assignees() == ["ann"]
    decide(store, triage.ignore, "fp-value", None, "bob")
    decide(store, triage.assign, "fp-value", "")
    (one,) = queries.groups(state="open").rows
    assert (one.assigned_to, one.ignored_until, one.state) == ("", None, "new")
    assert queries.assignees() == []


def a_group_that_was_ignored_for_a_time_comes_back(store: Store) -> None:
    store.write([failure("t1")])
    decide(store, triage.ignore, "fp-value", NOW_S - 1, "ann")
    assert [one.state for one in Queries(store).groups(state="open").rows] == ["new"]


def a_resolved_group_can_be_reopened(store: Store) -> None:
    store.write([failure("t1")])
    store.resolve_group("fp-value", "ann", NOW_S + 1)
    decide(store, triage.reopen, "fp-value")
    group = Queries(store).group("fp-value")
    assert group is not None
    assert (group.state, group.resolved_at, group.resolved_by) == ("new", None, "")


def comments_are_read_in_their_order_and_can_be_removed(store: Store) -> None:
    store.write([failure("t1")])
    queries = Queries(store)
    written = [
        Comment(id=f"c{n}", fingerprint="fp-value", at=NOW_S + n, user="ann", text=f"it is\nthe ünïcode ☂ {n}")
        for n in range(3)
    ]
    for comment in reversed(written):
        decide(store, triage.comment, comment)
    group = queries.group("fp-value")
    assert group is not None
    assert group.comments == written
    decide(store, triage.remove_comment, "c1")
    assert (queries.comment("c1"), queries.comment("c0")) == (None, written[0])


def what_was_sent_again_is_not_offered_again(store: Store) -> None:
    store.write(
        [failure(f"t{n}", at_s=NOW_S + n) for n in range(3)]
        + [failure("retried", outcome=Outcome.RETRIED), failure("lost", outcome=Outcome.LOST, at_s=NOW_S + 9)]
    )
    queries = Queries(store)
    ids = [failure(name).id for name in ("t0", "t1", "t2", "lost")]
    assert queries.retryable("fp-value") == ids
    assert queries.retryable("fp-value", limit=2) == ids[:2]
    record = Retried(id=ids[1], fingerprint="fp-value", at=NOW_S, user="ann", task_id="new")
    decide(store, triage.retried, [record])
    assert queries.retryable("fp-value") == [ids[0], *ids[2:]]
    assert queries.retried(ids) == {ids[1]: record}
    assert queries.members("fp-value", [*ids, "nobody"]) == set(ids)
    assert queries.members("fp-other", ids) == set()


def what_was_decided_goes_with_the_group(store: Store) -> None:
    settings = Settings(dir=store.settings.dir)
    old_s = NOW_S - 30 * 86_400
    store.write([failure("t1", at_s=old_s), failure("t2", fingerprint="fp-other")])
    for fingerprint in ("fp-value", "fp-other"):
        decide(store, triage.assign, fingerprint, "ann")
        decide(store, triage.retried, [Retried(id=fingerprint, fingerprint=fingerprint, at=0.0, user="a", task_id="n")])
        decide(
            store, triage.comment, Comment(id=fingerprint, fingerprint=fingerprint, at=NOW_S, user="ann", text="it is")
        )
    store.prune(settings, NOW_S)
    queries = Queries(store)
    assert queries.group("fp-value") is None
    assert (queries.comment("fp-value"), set(queries.retried(["fp-value"]))) == (None, set())
    other = queries.group("fp-other")
    assert other is not None
    assert (other.assigned_to, len(other.comments), other.retried) == ("ann", 1, 1)


TRIAGE = (
    the_tags_of_a_group_have_their_shares,
    a_route_is_a_tag_and_rare_values_are_added_up,
    the_trend_of_a_group_has_all_of_its_failures,
    a_failure_knows_the_ones_before_and_after_it_in_its_group,
    what_users_decide_about_a_group_outlives_its_next_failure,
    a_group_that_was_ignored_for_a_time_comes_back,
    a_resolved_group_can_be_reopened,
    comments_are_read_in_their_order_and_can_be_removed,
    what_was_sent_again_is_not_offered_again,
    what_was_decided_goes_with_the_group,
)
