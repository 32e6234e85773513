"""What pages say in words, read from the pages themselves."""

import re
import time

import pytest

from celery_trace.model import (
    AlertView,
    Evidence,
    Holder,
    Kind,
    MemoryState,
    ProcessRecord,
    Role,
    Rollup,
    Sample,
    Site,
    Stage,
    Verdict,
    Window,
    leak_id,
)
from celery_trace.settings import load
from celery_trace.stores import open_store
from tests.support.monitor_app import Client, make_monitor, serving

MIB = 1024 * 1024
SITE = Site(file="/srv/shop/views.py", line=90, bytes=4096, blocks=4)


def processes(now_s):
    """A worker, a child that lives, one too young for a sample, one that was recycled and one that was killed."""
    for uid, role, ended_how in (
        ("main", Role.MAIN, ""),
        ("child", Role.CHILD, ""),
        ("young", Role.CHILD, ""),
        ("recycled", Role.CHILD, "exit"),
        ("killed", Role.CHILD, "killed"),
    ):
        yield ProcessRecord(
            uid=uid, host="h1", pid=1, worker="w1@h1", role=role, started_at_s=now_s - 700,
            ended_at_s=now_s - 100 if ended_how else None, ended_how=ended_how,
        )  # fmt: skip
        if uid != "young":
            memory = MemoryState(rss_bytes=50 * MIB)
            yield Sample(process=uid, at_s=now_s - 200, memory=memory, kept_failures=0 if uid == "main" else 3)


def windows(now_s):
    """Growth with a line, and growth beyond Python's heap."""
    for name, verdict, native, note, sites in (
        ("leak", Verdict.LEAKING, "", "", [SITE]),
        ("beyond", Verdict.GROWING, "malloc", "", []),
    ):
        yield Window(
            id=name,
            investigation=name,
            process="child",
            kind=Kind.TASK,
            name=f"shop.{name}",
            stage=Stage.NATIVE if native else Stage.SAMPLED,
            verdict=verdict,
            at_s=now_s - 60,
            runs=40,
            run_number=90,
            kept_bytes_per_run=4096.0,
            kept_blocks_per_run=4.0,
            native=native,
            note=note,
            sites=sites,
            evidence=None if native else Evidence(40, 20, 20, 40 * 4096.0, 40),
            holder=None if native else Holder(path=["shop.views (module)", "_seen: list[40]"], searched=True),
        )


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    settings = load({"trace_dir": str(folder), "trace_collector": False}, environment={})
    now_s = time.time()
    store = open_store(settings)
    bucket_s = int(now_s) // Rollup.BUCKET_S * Rollup.BUCKET_S
    rollup = Rollup(process="child", kind=Kind.TASK, name="shop.leak", bucket_s=bucket_s, seq=1, runs=9, gated=9)
    web = ProcessRecord(uid="web", host="h2", pid=2, role=Role.WEB, started_at_s=now_s + 60)
    store.write([*processes(now_s), *windows(now_s), rollup, web])
    store.save_alert(
        AlertView(
            id="on", rule="leak", subject="shop.leak", state="firing", severity="warning", text="shop.leak leaks",
            value=4096.0, threshold=1.0, since=now_s, fired_at=now_s, resolved_at=None,
            link=f"leaks/{leak_id(Kind.TASK, 'shop.leak', SITE.file, SITE.line, None)}",
        )
    )  # fmt: skip
    store.close()
    with serving(lambda: make_monitor(folder, settings=settings)) as (base, _):
        found = Client(base)
        found.log_in()
        yield found


def words(client, path):
    """A page's text without its markup, as it is read out."""
    answer = client.get(path)
    assert answer.status == 200
    text = re.sub(r"<(script|style)\b.*?</\1>", "", answer.text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


def test_resident_memory_counts_the_processes_that_it_is_known_of(client):
    assert "100.0 MiB in 2 live processes" in words(client, "/trace/workers")
    worker = next(row for row in client.get("/api/trace/workers").json()["workers"] if row["name"] == "w1@h1")
    assert (worker["rss_bytes"], worker["rss_processes"]) == (100 * MIB, 2)


def test_a_killed_child_is_not_counted_as_one_that_exited_normally(client):
    text = words(client, "/trace/workers")
    assert "Exited normally 1 children, on average after 10 min with 50.0 MiB" in text
    assert "Killed 1 children killed or crashed" in text
    states = re.findall(r'data-label="State">\s*<span\s+class="tr-badge[^>]*>(\w+)', client.get("/trace/workers").text)
    assert sorted(state for state in states if state != "alive") == ["exited", "killed"]
    assert "2 ended processes: 1 exited, 1 killed" in text


def test_a_process_that_ended_holds_nothing_for_the_shell(client):
    assert words(client, "/trace/workers").count("live: 3") == 1


def test_a_process_without_a_sample_has_no_plot_and_says_when_its_first_comes(client):
    page = client.get("/trace/workers?worker=web@h2").text
    assert "data-plot" not in page
    assert "data-series" not in page
    text = words(client, "/trace/workers?worker=web@h2")
    assert re.search(r"No samples yet\. The first is taken in \d+ s \.", text)


def test_unknown_memory_is_not_shown_as_zero(client):
    text = words(client, "/trace/workers?worker=web@h2")
    assert "Resident (RSS) – no data yet" in text
    assert "0 B" not in text


def test_native_growth_is_shown_without_a_line(client):
    text = words(client, "/trace/leaks")
    assert "shop.beyond native memory, no Python line" in text


def test_the_state_of_an_alert_and_its_subject_are_separated(client):
    assert re.search(r"firing · [\d.]+ \w+ kept in 1 process", words(client, "/trace"))


def test_the_page_of_a_name_shows_no_overhead_without_data(client):
    text = words(client, "/trace/runs/task/shop.leak")
    assert "Peak memory, p50 – no data yet" in text
    assert "measuring took" not in text
