"""
Runs the benchmarks and writes their page: ``python -m benchmarks [names] [--quick]``.

Without names all run and ``docs/overhead.md`` is written; with names those run and are printed. Each runs in a separate
process, as by hand, so that none is measured with another's leftover memory.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msgspec import Struct

from benchmarks import leak_sections, run_cost
from benchmarks.overhead import WAYS
from benchmarks.sections import Reach, Section, table, us

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "overhead.md"


class Benchmark(Struct, frozen=True):
    """A script, its arguments for full and quick runs, and how its figures become a section."""

    name: str
    script: str
    full: list[str]
    quick: list[str]
    section: Callable[[Any], Section]
    timeout_s: float = 1500.0


_TASKS = {"noop": "No-op tasks", "allocate": "Allocation-heavy tasks"}


# --- the sections ---------------------------------------------------------------------------------------


def workers(figures: dict[str, Any]) -> Section:
    """Tasks a second and CPU a task of a real worker."""
    return Section(
        "A prefork worker on Redis, all configurations",
        f"`-c 2`, {figures['heap_blocks']:,} allocated blocks in each child, medians of {figures['rounds']} rounds in "
        "which all configurations alternate; ratios are paired within a round. Expensive configurations ran fewer "
        "rounds and tasks. The parent process limits the rate of no-op tasks, so the children's CPU time is more "
        "meaningful. The two snapshots trace from before the heap was built, as `PYTHONTRACEMALLOC` does.",
        _by_way(figures),
        [],
    )


def _by_way(figures: dict[str, Any]) -> list[str]:
    tables = []
    for task, words in _TASKS.items():
        rows = []
        for way, row in figures[task].items():
            low, high = row["of_bare_spread"]
            rows.append(
                (
                    WAYS[way],
                    f"{row['rate']:,.1f}",
                    f"{row['of_bare']:.3f}",
                    f"{low:.2f} to {high:.2f}",
                    us(row["cpu_us"]),
                    us(row["cpu_us_over_bare"]),
                )
            )
        heads = [words, "tasks/s", "of bare", "middle half", "children's CPU a task", "above bare"]
        tables.append(table(heads, rows))
    return tables


def auto_alone(figures: dict[str, Any]) -> Section:
    """The default mode, in many turns next to a bare worker."""
    reach = []
    for task, words in _TASKS.items():
        auto = figures[task]["auto"]
        reach.append(
            Reach(f"`auto`, {words.lower()}, tasks/s of bare", "at least 0.98", f"{auto['of_bare']:.3f}",
                  auto["of_bare"] >= 0.98)
        )  # fmt: skip
    more_us = figures["noop"]["auto"]["cpu_us_over_bare"]
    reach.append(
        Reach(
            "`auto`, CPU of the child a no-op task, with Celery's dispatch, in a worker",
            "at most 20 µs",
            us(more_us),
            more_us <= 20,
        )
    )
    return Section(
        "A prefork worker on Redis, `auto`",
        f"As below, of three workers in {figures['rounds']} shorter rounds, which show smaller differences; they were "
        f"restarted {figures['generations']} times, because two equal workers differ for their whole life. The "
        "difference between the two bare workers is the noise of this machine.",
        _by_way(figures),
        reach,
    )


def runs(figures: dict[str, Any]) -> Section:
    """What a run costs in one process."""
    rows = [
        (words, us(figures[way]["bare_us"]), us(figures[way]["traced_us"]), us(figures[way]["over_bare_us"]))
        for way, words in run_cost.WAYS.items()
    ]
    more_us = figures["auto"]["over_bare_us"]
    return Section(
        "A no-op task in one process",
        "CPU time from the message to the stored result, Celery's dispatch included, in pool processes without a "
        "broker. Bare runs and runs of each configuration alternate by the hundred; reported: the fastest 10 % of the "
        "batches. The code stays in the processor's caches here; between the tasks of a worker other code uses them.",
        [table(["Way", "bare", "with it", "above bare"], rows)],
        [
            Reach(
                "`auto`, CPU of a no-op task, with Celery's dispatch, in one process",
                "at most 20 µs",
                us(more_us),
                more_us <= 20,
            )
        ],
    )


def tiers(figures: dict[str, Any]) -> Section:
    """What measuring costs a run, by heap."""
    heaps = {f"{int(heap):,} blocks": found for heap, found in figures.items()}
    names = list(heaps)
    rows: list[list[str]] = []

    def row(words: str, read: Callable[[Any], str]) -> None:
        rows.append([words, *(read(heaps[name]) for name in names)])

    def ratio(found: dict[str, float]) -> str:
        return f"× {found['ratio']:.3f} ± {found['ratio_error']:.3f} of {us(found['bare_us'])}"

    row("sampled (`auto`), run that does nothing", lambda found: us(found["noop"]["sampled_us"]))
    row("sampled (`auto`), run that builds 3,000 objects, paired", lambda found: ratio(found["build"]))
    row("traced (`always`), run that does nothing", lambda found: us(found["traced"]["noop_us"]))
    row("traced (`always`), run that builds 3,000 objects", lambda found: us(found["traced"]["build_us"]))
    row("sample of the process (RSS), every 10 s", lambda found: us(found["sample_us"]))
    row("full sample (USS, handles), once a minute", lambda found: us(found["full_sample_us"]))
    row("psutil RSS", lambda found: us(found["psutil_rss_us"]))
    row("psutil USS", lambda found: us(found["psutil_uss_us"]))
    row("two snapshots and `compare_to`", lambda found: us(found["naive_us"]))
    searches = [
        [
            name,
            found["search"]["steps"],
            f"{found['search']['total_ms']:.0f} ms",
            f"{found['search']['longest_pause_ms']:.0f} ms",
            " → ".join(found["search"]["holder"][:2]),
        ]
        for name, found in heaps.items()
    ]
    largest = max(figures, key=int)
    longest = figures[largest]["search"]["longest_pause_ms"]
    return Section(
        "What measuring costs a run",
        "One process, otherwise idle; medians, of CPU time where sampling is compared. A run makes two calls of the "
        "sampler, and its allocations pass the hooks. The verdict and the search for a holder are steps on a separate "
        "thread, about one a second.",
        [
            table(["A run", *names], rows),
            table(["One leak, until its holder is known", "steps", "in all", "longest", "holder"], searches),
        ],
        [
            Reach(
                f"longest pause on a heap of {int(largest):,} blocks",
                "at most 200 ms",
                f"{longest:.0f} ms",
                longest <= 200,
            )
        ],
    )


def capture(figures: dict[str, Any]) -> Section:
    """What a failure costs."""
    ratio = figures["ours_over"]["sentry-sdk"]
    rows = [[name, us(value)] for name, value in figures["median_us"].items()]
    reach = [Reach("capture, of sentry-sdk's time", "at most 0.2", f"{ratio:.3f}", ratio <= 0.2)]
    tables = [table([f"{figures['frames']} frames of 10 locals", "CPU time"], rows)]
    worker = figures.get("worker")
    if worker:
        tables.append(
            table(
                ["A worker with only failing tasks", "tasks/s"],
                [
                    ["bare", worker["bare_per_s"]],
                    ["traced", worker["traced_per_s"]],
                    ["traced of bare, paired", worker["rate_over_bare"]],
                ],
            )
        )
        rate = worker["rate_over_bare"]
        reach.append(Reach("tasks/s where every task fails, of bare", "at least 0.9", f"{rate:.3f}", rate >= 0.9))
    return Section("Capturing a failure", "Medians; the variants alternate in one process.", tables, reach)


def failing(figures: dict[str, Any]) -> Section:
    """A worker with only failing tasks, without the memory probe."""
    rows = [
        ["bare", figures["bare_per_s"]],
        ["traced", figures["traced_per_s"]],
        ["of bare, paired", figures["rate_over_bare"]],
    ]
    return Section(
        "A worker with only failing tasks, capturing alone",
        f"`trace_memory` off, {figures['tasks']} tasks in {figures['pairs']} turns of each worker; half of the paired "
        f"ratios are from {figures['middle_half'][0]:.2f} to {figures['middle_half'][1]:.2f}.",
        [table(["Worker", "tasks/s"], rows)],
        [],
    )


def shell(figures: dict[str, Any]) -> Section:
    """The live shell."""
    rows = [
        [name, f"{figures[key]['p50_ms']:.2f} ms", f"{figures[key]['p95_ms']:.2f} ms"]
        for key, name in (("ping", "bare message there and back"), ("command", "`1+1` in the failed process"))
    ]
    above, idle = figures["above_ms"], figures["idle_share"]
    reached = [
        Reach("a command above a bare message", "at most 2 ms", f"{above:.2f} ms", above <= 2),
        Reach("an idle session over a kept failure", "at most 1 % of a core", f"{idle:.2%}", idle <= 0.01),
    ]
    if loaded := figures.get("throughput"):
        taken = loaded["share"]
        words = "an open session over a kept failure, of a child that works without a pause"
        reached.append(Reach(words, "less than 1 % of its processor time", f"{taken:.2%}", taken < 0.01))
    return Section(
        "The live shell",
        "Over a real broker on loopback.",
        [table(["Round trip", "p50", "p95"], rows)],
        reached,
    )


def stored(figures: dict[str, Any]) -> Section:
    """Writing and reading the store."""
    rows = [
        [what.replace("_", " "), f"{value:,.1f}" if isinstance(value, int | float) else value]
        for key, found in figures.items()
        if ":" in key and isinstance(found, dict)
        for what, value in found.items()
        if not isinstance(value, dict)
    ]
    read = [
        [what, f"{value['p50_ms']:.2f} ms", f"{value['p95_ms']:.2f} ms"]
        for key, found in figures.items()
        if key.startswith("pages")
        for what, value in found.items()
    ]
    tables = [table(["Spool to SQLite", "figure"], rows)] if rows else []
    tables += [table(["A page's query", "p50", "p95"], read)] if read else []
    return Section("The store", "SQLite in a temporary folder.", tables, [])


def pages(figures: dict[str, Any]) -> Section:
    """The monitor's pages over a large store while events arrive, and Flower's own compared with a stock Flower."""
    first, seen, theirs = figures["first_byte"], figures["usable"], figures["flower"]
    rows = [
        [
            name,
            f"{row['p50_ms']:.0f} ms",
            f"{row['p95_ms']:.0f} ms",
            f"{seen[name]['p50_ms']:.0f} ms" if name in seen else "–",
            f"{seen[name]['p95_ms']:.0f} ms" if name in seen else "–",
        ]
        for name, row in first.items()
    ]
    compared = [
        [
            f"`{address}`",
            f"{row['here']['p50_ms']:.1f} ms",
            f"{row['stock']['p50_ms']:.1f} ms",
            f"{row['ratio']:.2f}",
        ]
        for address, row in theirs.items()
    ]
    slowest_name, slowest = max(first.items(), key=lambda pair: pair[1]["p95_ms"])
    worst_ms = max((row["p95_ms"] for row in seen.values()), default=None)
    ratios = sorted(row["ratio"] for row in theirs.values())
    middle = ratios[len(ratios) // 2]
    return Section(
        "The monitor's pages",
        f"{figures['rows']:,} rows in SQLite and {figures['events_per_s']:,} events a second, with one page requested "
        f"after the other; the monitor took {figures['monitor_cpu']:.0%} of a core and {figures['monitor_rss_mib']} "
        "MiB, Flower's memory of tasks included. Usable: Chromium has parsed the page and run its scripts. Flower's "
        "own pages are requested from the monitor and from a stock Flower in turn, while both receive the same events.",
        [
            table(["Page", "first byte p50", "p95", "usable p50", "p95"], rows),
            table(["Flower's own", "in the monitor, p50", "stock Flower, p50", "paired"], compared),
        ],
        [
            Reach(
                f"first byte of the slowest page ({slowest_name}), p95",
                "under 150 ms",
                f"{slowest['p95_ms']:.0f} ms",
                slowest["p95_ms"] < 150,
            ),
            Reach(
                "usable in Chromium, the slowest page, p95",
                "within 1 s",
                "–" if worst_ms is None else f"{worst_ms:.0f} ms",
                None if worst_ms is None else worst_ms <= 1000,
            ),
            Reach("Flower's own pages, of stock Flower's time, median", "at most 1.1", f"{middle:.2f}", middle <= 1.1),
        ],
    )


BENCHMARKS = (
    Benchmark(
        "auto", "overhead.py",
        ["--ways", "bare,auto,control", "--rounds", "32", "--generations", "8", "--tasks", "800", "--json"],
        ["--ways", "bare,auto,control", "--rounds", "5", "--tasks", "400", "--json"], auto_alone,
    ),
    Benchmark(
        "overhead", "overhead.py", ["--rounds", "7", "--json"], ["--rounds", "2", "--tasks", "300", "--json"], workers
    ),
    Benchmark("run_cost", "run_cost.py", ["--json"], ["--rounds", "60", "--json"], runs),
    Benchmark(
        "memory_cost", "memory_cost.py", ["--runs", "3000", "--json"], ["--runs", "600", "--json"], tiers
    ),
    Benchmark(
        "mixed", "mixed.py", ["--rounds", "600", "--json"],
        ["--rounds", "220", "--ways", "1", "--loads", "waiting", "--json"], leak_sections.mixed, timeout_s=7200.0,
    ),
    Benchmark(
        "paced", "paced.py", ["--json"], ["--rounds", "2", "--runs", "300", "--json"], leak_sections.paced
    ),
    Benchmark("idle", "idle.py", ["--json"], ["--seconds", "20", "--json"], leak_sections.idle),
    Benchmark("profile_cost", "profile_cost.py", ["--json"], ["--samples", "1000", "--json"], leak_sections.profiles),
    Benchmark("stack_requests", "stack_requests.py", ["--json"], ["--requests", "40", "--json"], leak_sections.stacks),
    Benchmark("big_heap", "big_heap.py", ["--json"], ["--most-runs", "800", "--json"], leak_sections.big_heap),
    Benchmark(
        "main_process", "main_process.py", ["--json"], ["--most-s", "50", "--json"], leak_sections.main_process
    ),
    Benchmark(
        "few_and_huge", "few_and_huge.py", ["--json"], ["--most-runs", "12", "--every-s", "1", "--json"],
        leak_sections.few_and_huge,
    ),
    Benchmark(
        "recycled_children", "recycled_children.py", ["--json"], ["--most-runs", "600", "--json"],
        leak_sections.recycled_children,
    ),
    Benchmark(
        "one_in_a_thousand", "one_in_a_thousand.py", ["--json"], ["--every", "200", "--events", "20", "--json"],
        leak_sections.one_in_a_thousand,
    ),
    Benchmark(
        "healthy_week", "healthy_week.py", ["--json"], ["--days", "0.5", "--shapes", "90", "--json"],
        leak_sections.healthy_week,
    ),
    Benchmark(
        "failure_capture", "failure_capture.py",
        ["--rounds", "40", "--worker", "--tasks", "6000", "--pairs", "20", "--json"], ["--rounds", "15", "--json"],
        capture,
    ),
    Benchmark(
        "failing_worker", "failing_worker.py", ["--tasks", "6000", "--pairs", "20", "--memory", "off"],
        ["--tasks", "1500", "--pairs", "5", "--memory", "off"], failing,
    ),
    Benchmark("shell", "shell.py", ["--rounds", "300", "--throughput", "--json"], ["--rounds", "100", "--json"], shell),
    Benchmark("pages", "pages.py", ["--json"], ["--rows", "100000", "--repeat", "15", "--json"], pages),
    Benchmark("store", "store.py", ["write", "--records", "20000"], ["write", "--records", "3000"], stored),
)  # fmt: skip


# --- running them -----------------------------------------------------------------------------------------


def run(benchmark: Benchmark, *, quick: bool) -> Any:
    """
    The figures of one benchmark.

    Raises:
        RuntimeError: It printed none; with the end of its output.
    """
    words = [sys.executable, str(FOLDER / benchmark.script), *(benchmark.quick if quick else benchmark.full)]
    with tempfile.TemporaryDirectory(prefix="trace-bench-") as folder:
        written = Path(folder) / "figures.json"
        if benchmark.name == "store":
            words += ["--json", str(written)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]),
        }
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=benchmark.timeout_s, check=False, env=environment
        )
        text = written.read_text() if written.exists() else done.stdout
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise RuntimeError(f"{benchmark.name} ended with {done.returncode}: {done.stderr[-1500:]}") from None


def machine() -> str:
    """The machine, without host names."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = f", {models[0]}" if models else ""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = []
    for package in ("celery", "kombu", "sentry-sdk", "memray"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{model}, {memory_bytes / 2**30:.0f} GiB; "
        f"{platform.python_implementation()} {platform.python_version()}, {platform.libc_ver()[0]}; {', '.join(found)}"
    )


def page(sections: Sequence[Section], command: str, loads: Sequence[float], missing: Sequence[str]) -> str:
    """The whole page."""
    lines = [
        "# What measuring costs",
        "",
        "Written by `make bench`. Ratios apply to other machines; absolute times do not.",
        "",
        f"- Machine: {machine()}",
        f"- Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"- Command: `{command}`",
        f"- Load of the machine (one minute) between the benchmarks: {min(loads):.1f} to {max(loads):.1f}. Above the "
        "number of cores, other processes ran too, and rates and pauses are worse than on a quiet machine; paired "
        "ratios and CPU times are less affected.",
        "",
        "## Targets",
        "",
        table(
            ["What", "target", "measured", ""],
            [
                [
                    one.what,
                    one.promised,
                    one.measured,
                    {True: "met", False: "**not met**", None: "not measured"}[one.held],
                ]
                for section in sections
                for one in section.reach
            ],
        ),
    ]
    for name in missing:
        lines += ["", f"`{name}` did not finish this time; its figures are missing."]
    for section in sections:
        lines += ["", f"## {section.title}", "", section.words]
        for text in section.tables:
            lines += ["", text]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the chosen benchmarks; 1 if one failed."""
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What measuring costs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(names)}; all by default")
    parser.add_argument("--quick", action="store_true", help="few rounds: under ten minutes, less precise")
    parser.add_argument("--output", type=Path, default=None, help="the page; docs/overhead.md when all of them run")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for each benchmark's figures as JSON")
    parser.add_argument("--from", dest="kept", type=Path, default=None, help="write the page from figures kept before")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; known are {', '.join(names)}")
    chosen = [benchmark for benchmark in BENCHMARKS if not options.names or benchmark.name in options.names]
    sections, missing, loads = [], [], [os.getloadavg()[0]]
    for benchmark in chosen:
        print(f"{benchmark.name} …", file=sys.stderr, flush=True)
        begun_s = time.monotonic()
        try:
            if options.kept is not None:
                figures = json.loads((options.kept / f"{benchmark.name}.json").read_text())
            else:
                figures = run(benchmark, quick=options.quick)
            if options.keep is not None:
                options.keep.mkdir(exist_ok=True)
                (options.keep / f"{benchmark.name}.json").write_text(json.dumps(figures))
            sections.append(benchmark.section(figures))
        except (RuntimeError, subprocess.TimeoutExpired, OSError, KeyError) as error:
            print(f"{benchmark.name}: {type(error).__name__}: {error}", file=sys.stderr)
            missing.append(benchmark.name)
        loads.append(os.getloadavg()[0])
        print(f"{benchmark.name}: {time.monotonic() - begun_s:.0f} s", file=sys.stderr, flush=True)
    if options.kept is not None:
        loads = json.loads((options.kept / "loads.json").read_text())
    if options.keep is not None:
        (options.keep / "loads.json").write_text(json.dumps(loads))
    command = " ".join(["make bench", *(["ARGS=--quick"] if options.quick else [])])
    text = page(sections, command, loads, missing)
    output = options.output or (None if options.names else PAGE)
    if output is not None:
        output.write_text(text)
        print(f"{output} was written.", file=sys.stderr)
    else:
        print(text)
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
