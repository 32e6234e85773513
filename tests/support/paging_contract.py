"""Every list, with each filter and each order: its pages together are the list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_trace.model import AlertView, AuditEntry, Delivery, ShellView
from celery_trace.queries import Queries
from celery_trace.queries.leaks import SORTS
from celery_trace.stores import Store, leak_rows
from tests.support.store_records import NOW_S, failure, process, run, site, window

ROWS = 9


def fill(store: Store) -> None:
    """Nine of each, of two workers; equal in what they are sorted by here and there."""
    store.write(
        [process(f"p{n}", worker=f"w{n % 2}@h", pid=n, started_at_s=NOW_S - n) for n in range(4)]
        + [
            window(
                f"w{n}-{worker}",
                name=f"shop.task{n}",
                process=f"p{worker}",
                at_s=NOW_S + n // 2,
                kept_bytes_per_run=1024.0 * (1 + n % 3),
                sites=[site(f"/srv/shop/tasks{n}.py", bytes=1024 * (1 + n % 3))],
            )
            for n in range(ROWS)
            for worker in range(2)
        ]
        + [
            failure(
                f"t{n}",
                at_s=NOW_S + n // 2,
                fingerprint=f"fp{n}",
                name=f"shop.task{n % 2}",
                worker=f"w{n % 2}@h",
                process=f"p{n % 4}",
            )
            for n in range(ROWS)
        ]
        + [
            run(f"r{n}", started_at_s=NOW_S + n // 2, name=f"shop.task{n % 2}", queue="fast", why="slow")
            for n in range(ROWS)
        ]
        + [run(f"q{n}", name=f"shop.task{n}", queue="fast") for n in range(ROWS)]
        + [
            AuditEntry(
                id=f"a{n}", at_s=NOW_S + n // 2, where="worker", user="ada", command="1", failure="f", session="s"
            )
            for n in range(ROWS)
        ]
    )
    store.write([process(f"n{n}", worker=f"worker{n}@h", started_at_s=NOW_S) for n in range(ROWS)])
    for n in range(ROWS):
        store.save_alert(
            AlertView(
                id=f"alert{n}", rule="r", subject="s", state="firing" if n % 2 else "resolved", severity="warning",
                text="", value=1.0, threshold=1.0, since=NOW_S + n // 2, fired_at=None, resolved_at=None,
            )
        )  # fmt: skip
        store.save_delivery(Delivery(id=f"d{n}", alert="alert1", channel="log:", at=NOW_S + n // 2, ok=True))
        store.add_shell(
            ShellView(id=f"s{n}", failure="f", mode="live", started_at=NOW_S + n // 2, ended_at=None, users=[])
        )


_SINCE = {"since_s": NOW_S + 1}

#: List and the arguments it is asked with.
ASKED: list[tuple[str, dict[str, Any]]] = [
    *(
        ("leaks", {**narrowed, **of, **({"sort": sort} if sort else {})})
        for sort in ("", *SORTS)
        for of in ({}, {"worker": "w0@h"})
        for narrowed in (
            {}, {"kind": "task"}, {"verdict": "leaking"}, {"queue": "fast"}, {"search": "TASKS"}, _SINCE,
        )
    ),
    *(
        ("failures", narrowed)
        for narrowed in (
            {}, {"kind": "task"}, {"name": "shop.task0"}, {"outcome": "failed"}, {"worker": "w0@h"}, _SINCE,
            {"until_s": NOW_S + 3}, {"search": "card"}, {"search": "shop.task1"}, {"live": False},
        )
    ),
    *(
        ("groups", {**narrowed, **({"sort": sort} if sort else {})})
        for sort in ("", "count", "first")
        for narrowed in ({}, {"kind": "task"}, {"name": "shop.task0"}, {"state": "open"}, {"search": "card"}, _SINCE)
    ),
    *(
        ("runs", narrowed)
        for narrowed in ({}, {"kind": "task"}, {"name": "shop.task0"}, {"why": "slow"}, _SINCE)
    ),
    ("workers", {"since_s": 0.0}),
    *(("alerts", narrowed) for narrowed in ({}, {"state": "firing"})),
    *(("deliveries", narrowed) for narrowed in ({}, {"alert_id": "alert1"})),
    *(("shells", narrowed) for narrowed in ({}, {"failure_id": "f"})),
    *(("audit", narrowed) for narrowed in ({}, {"failure_id": "f"}, {"session": "s"})),
]  # fmt: skip


def the_pages_of_every_list_are_the_list(store: Store) -> None:
    """With each filter, in each order, in pages of one and of four."""
    fill(store)
    while leak_rows.refresh(store):
        pass  # a slow database leaves names for the next call
    queries = Queries(store)
    for noun, asked in ASKED:
        ask: Callable[..., Any] = getattr(queries, noun)
        whole = ask(**asked, limit=1000)
        assert whole.next is None
        assert len(whole.rows) > 1, (noun, asked)
        for limit in (1, 4):
            rows: list[Any] = []
            cursor: str | None = None
            for _ in range(len(whole.rows) + 1):
                page = ask(**asked, limit=limit, cursor=cursor)
                rows += page.rows
                cursor = page.next
                if cursor is None:
                    break
            assert rows == whole.rows, (noun, asked, limit)
