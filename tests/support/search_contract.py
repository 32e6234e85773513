"""What every database must find for a search."""

from __future__ import annotations

import pytest

from celery_trace.model import AlertView, ExceptionInfo, Kept, Kind, Outcome, RequestContext, TaskContext
from celery_trace.queries import BadSearch, Queries
from celery_trace.queries.searches import GROUP_STATES
from celery_trace.stores import Store, triage
from tests.support.store_records import NOW_S, failure, process, rollup, run, site, window

HOUR_S = 3600.0


def fill(store: Store) -> None:
    """Four failures of three groups, in two releases."""
    store.write(
        [
            process("p1", worker="w1@h1", host="h1", release="1.8"),
            process("p2", worker="w2@h2", host="h2", release="1.9"),
            failure("t1", at_s=NOW_S - 60, task=TaskContext(queue="pay", root_id="t1"), hostname="h1"),
            failure("t2", at_s=NOW_S - 3 * HOUR_S, worker="w2@h2", hostname="h2", process="p2"),
            failure(
                "t3",
                name="shop.Mail",
                fingerprint="fp-mail",
                outcome=Outcome.LOST,
                exception=ExceptionInfo("KeyError", "builtins", "100% of 'x_y'"),
                at_s=NOW_S - 50 * HOUR_S,
            ),
            failure(
                "t4",
                name="GET /shop",
                kind=Kind.REQUEST,
                fingerprint="fp-web",
                worker="",
                exception=ExceptionInfo("shop.errors.Declined", "shop", "no such card"),
                at_s=NOW_S - 10,
                request=RequestContext(method="GET", path="/shop/1", route="shop/<id>"),
            ),
            Kept(process="p1", failure=failure("t1").id, at_s=NOW_S, until_s=NOW_S + 900, address="q"),
        ]
    )


#: Searches of failures and the tasks that they find.
FAILURES = (
    ("", "t1 t2 t3 t4"), ("task:shop.charge", "t1 t2"), ("task:shop.*", "t1 t2 t3"), ("task:SHOP.*", "t1 t2 t3"),
    ("-task:shop.*", "t4"), ("-task:shop.charge", "t3 t4"), ("task:shop.charge,shop.Mail", "t1 t2 t3"),
    ('task:"GET /shop"', "t4"), ("exception:KeyError", "t3"), ("-exception:KeyError", "t1 t2 t4"),
    ("exception:*Declined", "t4"),
    ("message:card", "t1 t2 t4"), ("-message:card", "t3"), ('message:"100%"', "t3"), ("message:x_y", "t3"),
    ("message:1_0", ""),
    ("outcome:lost", "t3"), ("-outcome:lost,retried", "t1 t2 t4"), ("worker:w2@h2", "t2"), ("worker:w*@h2", "t2"),
    ("host:h1", "t1"), ("queue:pay", "t1"), ("-queue:pay", "t2 t3 t4"), ("release:1.9", "t2"), ("-release:1.8", "t2"),
    ("route:shop/*", "t4"), ("kind:request", "t4"), ("group:fp-mail", "t3"), ("root:t1", "t1"), ("id:t3", "t3"),
    ("is:live", "t1"), ("-is:live", "t2 t3 t4"), ("since:2h", "t1 t4"), ("until:2h", "t2 t3"),
    ("since:2h until:30s", "t1"),
    ("task:shop.* since:1d -host:h1", "t2"), ("card", "t1 t2 t4"), ("card since:2h", "t1 t4"), ("card charge", "t1 t2"),
    ('"such card"', "t1 t2 t4"), ("card KeyError", ""), ("task:nothing", ""), ("task:100%", ""), ("group:'--", ""),
)  # fmt: skip

GROUPS = (
    ("", "fp-value fp-mail fp-web"), ("task:shop.*", "fp-value fp-mail"), ("-exception:KeyError", "fp-value fp-web"),
    ("worker:w2@h2", "fp-value"), ("release:1.9", "fp-value"), ("route:shop/*", "fp-web"), ("assigned:ann", "fp-mail"),
    ("-assigned:ann", "fp-value fp-web"), ("is:resolved", "fp-web"), ("is:resolved,ignored", "fp-web fp-mail"),
    ("-is:resolved", "fp-value fp-mail"), ("is:open", "fp-value"), ("since:1d", "fp-value fp-web"),
    ("card", "fp-value fp-web"),
    ("card task:shop.charge", "fp-value"), ("message:such -task:GET*", "fp-value"), ("-host:h2", "fp-mail fp-web"),
    ("host:h2 queue:pay", ""),
)  # fmt: skip

LEAKS = (
    ("task:shop.mail", ["shop.mail"]), ("task:*charge", ["shop.charge"]), ("place:mail.py", ["shop.mail"]),
    ("-place:mail.py", ["shop.charge"]), ("tasks.py", ["shop.charge"]), ("since:1s", []),
)  # fmt: skip


def a_search_of_failures_finds_what_it_says(store: Store) -> None:
    fill(store)
    queries = Queries(store)
    wrong = {}
    for search, expected in FAILURES:
        found = sorted(row.task_id for row in queries.failures(query=search).rows)
        if found != expected.split():
            wrong[search] = found
    assert not wrong, wrong


def a_search_of_groups_finds_what_it_says(store: Store) -> None:
    fill(store)
    store.in_transaction(lambda connection: triage.assign(connection, "fp-mail", "ann"))
    store.in_transaction(lambda connection: triage.ignore(connection, "fp-mail", NOW_S + 1e6, "ann"))
    store.resolve_group("fp-web", "ann", NOW_S)
    queries = Queries(store)
    wrong = {}
    for search, expected in GROUPS:
        found = {row.fingerprint for row in queries.groups(query=search).rows}
        if found != set(expected.split()):
            wrong[search] = found
    assert not wrong, wrong
    for state in GROUP_STATES:
        alike = [
            [row.fingerprint for row in queries.groups(**how).rows]
            for how in ({"state": state}, {"query": f"is:{state}"})
        ]
        assert alike[0] == alike[1]


def the_pages_of_a_search_are_the_list(store: Store) -> None:
    store.write(
        [failure(f"t{n}", at_s=NOW_S - n, name=f"shop.task{n % 2}", fingerprint=f"fp{n % 2}") for n in range(9)]
    )
    queries = Queries(store)
    found, cursor = [], None
    while True:
        page = queries.failures(query="task:shop.*1 card", limit=2, cursor=cursor)
        found += [row.task_id for row in page.rows]
        cursor = page.next
        if cursor is None:
            break
    assert found == ["t1", "t3", "t5", "t7"]


def a_search_of_leaks_runs_names_and_alerts_finds_what_it_says(store: Store) -> None:
    leaks = (("shop.charge", "/srv/shop/tasks.py"), ("shop.mail", "/srv/shop/mail.py"))
    store.write([window(name, name=name, at_s=NOW_S - 9, sites=[site(file, bytes=4096)]) for name, file in leaks])
    store.write([process("p1", worker="w1@h1"), rollup(1, 5)])
    store.write([run("r1", queue="pay"), run("r2", name="shop.mail", state="FAILURE")])
    for number, state in enumerate(("firing", "resolved")):
        store.save_alert(
            AlertView(
                id=f"a{number}", rule="leak", subject=f"shop.task{number}", state=state, severity="warning", text="",
                value=1.0, threshold=0.0, since=NOW_S, fired_at=NOW_S, resolved_at=None,
            )
        )  # fmt: skip
    queries = Queries(store)
    for worker in ("", " worker:w1@h1"):
        for search, expected in LEAKS:
            assert [row.name for row in queries.leaks(query=search + worker).rows] == expected, search + worker
    assert [row.id for row in queries.runs(query="queue:pay").rows] == ["r1"]
    assert [row.id for row in queries.runs(query="-task:*mail state:*").rows] == ["r1"]
    assert [row.id for row in queries.runs(query="mail").rows] == ["r2"]
    assert [row[1] for row in queries.names(query="task:*char*")] == ["shop.charge"]
    assert queries.names(query="other") == []
    assert [row.id for row in queries.alerts(query="is:firing rule:leak").rows] == ["a0"]
    assert [row.id for row in queries.alerts(query="task1").rows] == ["a1"]


def completions_come_from_the_store(store: Store) -> None:
    fill(store)
    store.write([rollup(1, 5), rollup(2, 1, name="shop.Mail")])
    queries = Queries(store)

    def offered(text: str, noun: str = "failures") -> list[str]:
        return [one.text for one in queries.suggestions(noun, text)]

    assert "task:" in offered("")
    assert offered("since:1h ex") == ["exception:"]
    assert offered("since:1h -ex") == ["-exception:"]
    assert offered("task:") == ["task:shop.Mail ", "task:shop.charge "] or offered("task:") == [
        "task:shop.charge ",
        "task:shop.Mail ",
    ]
    assert offered("task:MAIL") == ["task:shop.Mail "]
    assert offered("-worker:w2") == ["-worker:w2@h2 "]
    assert offered("outcome:re") == ["outcome:retried ", "outcome:rejected ", "outcome:revoked "]
    assert offered("is:re", "groups") == ["is:regressed ", "is:resolved "]
    assert offered("exception:key") == ["exception:KeyError "]
    assert offered("message:x") == []
    assert offered("nothing:x") == []
    assert queries.suggestions("failures", "a task:shop.ch")[0].start == 2
    with pytest.raises(BadSearch):
        queries.failures(query="nothing:x")


SEARCHES = (
    a_search_of_failures_finds_what_it_says,
    a_search_of_groups_finds_what_it_says,
    the_pages_of_a_search_are_the_list,
    a_search_of_leaks_runs_names_and_alerts_finds_what_it_says,
    completions_come_from_the_store,
)
