"""The page's sections of the benchmarks in real workers, and of what always runs in them."""

from __future__ import annotations

from typing import Any

from benchmarks import big_heap as heap
from benchmarks import few_and_huge as few
from benchmarks import idle as idling
from benchmarks import paced as pace
from benchmarks import profile_cost as profiling
from benchmarks import stack_requests
from benchmarks.sections import Reach, Section, table


def mixed(figures: dict[str, Any]) -> Section:
    """Leaks named among all kinds of tasks in turns."""
    rows, reach, faults = [], [], ""
    for name, way in figures["ways"].items():
        runs_of = way["named_at_run"]
        rows.append(
            [
                name,
                f"{way['right']} of {way['leaks']}",
                f"{len(way['accused'])} of {way['look_alikes']}",
                f"{runs_of['median']:g} / {runs_of['worst']}" if runs_of else "–",
                f"{way['spent']:.2%}" if way["spent"] is not None else "–",
            ]
        )
        words = f"{figures['kinds']} kinds of task in turns, {name}: "
        reach += [
            Reach(f"{words}leaks at their line, with rate and holder", "all", f"{way['right']} of {way['leaks']}",
                  way["right"] == way["leaks"]),
            Reach(f"{words}look-alikes that are ever `leaking`", "none",
                  f"{len(way['accused'])} of {way['look_alikes']}", not way["accused"]),
        ]  # fmt: skip
        faults += "".join(f"\n- {name}, `{leak}`: {'; '.join(said)}" for leak, said in way["faults"].items())
        faults += "".join(f"\n- {name}, {said}" for said in [*way["accused"], *way["strangers"]])
    not_due = max(len(way["not_due"]) for way in figures["ways"].values())
    return Section(
        "All kinds of task in turns",
        f"The corpus of the tests in a real prefork worker, {figures['rounds']} runs of each task a child, "
        f"{figures['seeds']} seed(s). A rate is right within 15 %, or within four deviations if it is based on few "
        f"picks. Not due were {not_due} leaks, which had kept too little by then. Spent is the share of time for "
        "sampling and verdicts, in the process with the highest."
        + (f"\n\nWrong verdicts:\n{faults}" if faults else ""),
        [table(["Worker", "leaks named", "look-alikes reported", "named by run (median / worst)", "spent"], rows)],
        reach,
    )


def healthy_week(figures: dict[str, Any]) -> Section:
    """Whether a healthy task is ever reported as leaking."""
    accused, growing = figures["accused"], figures["growing_for_a_while"]
    wrong = "".join(f"\n- {text}" for text in accused)
    return Section(
        "Healthy tasks over days",
        f"{figures['shapes']} shapes of healthy tasks, {figures['days']:g} days of their runs, simulated, with a "
        f"verdict at each interval as in a process. {len(growing)} were `growing` for a while, which fires no alert."
        + (f"\n\nWrong verdicts:\n{wrong}" if wrong else ""),
        [],
        [
            Reach(f"healthy shapes that are ever `leaking`, in {figures['days']:g} simulated days", "none",
                  f"{len(accused)} of {figures['shapes']}", not accused),
        ],
    )  # fmt: skip


def paced(figures: dict[str, Any]) -> Section:
    """The cost of a child's first seconds, and of later ones."""
    rows, reach = [], []
    for name in pace.BLOCKS:
        found = figures[name]
        low, high = found["ratio_interval"]
        rows.append(
            [
                f"{name} {figures['runs']:,} runs",
                f"{found['off']['cpu_s']:.2f} s",
                f"{found['on']['cpu_s']:.2f} s",
                f"× {found['ratio']:.3f} ({low:.3f} to {high:.3f})",
                *(f"{found[on]['p99_s'] * 1e3:.1f} / {found[on]['longest_s'] * 1e3:.1f} ms" for on in ("off", "on")),
            ]
        )
        if name == "between":
            continue
        longer_s = found["longest_longer_s"]
        reach += [
            Reach(f"CPU of a paced worker, {name} runs, of bare", f"at most {pace.GOAL_RATIO}", f"{found['ratio']:.3f}",
                  found["ratio"] <= pace.GOAL_RATIO),
            Reach(f"longest run of a task that never leaks, {name} runs, above bare",
                  f"at most {pace.GOAL_LONGER_S * 1e3:.0f} ms", f"{longer_s * 1e3:+.1f} ms",
                  longer_s <= pace.GOAL_LONGER_S),
        ]  # fmt: skip
    return Section(
        "First seconds, and later ones",
        f"Two children, {figures['per_s']:g} tasks a second of a task that never leaks; medians of {figures['rounds']} "
        "pairs of workers, which alternate with the same blocks. The interval of a ratio contains the true median in "
        "95 of 100 cases, from six pairs on.",
        [table(["Both children", "CPU, off", "CPU, on", "paired", "p99 / longest, off", "on"], rows)],
        reach,
    )


def idle(figures: dict[str, Any]) -> Section:
    """The cost of processes without tasks."""
    names = {"bare": "child without it", "child": "child", "collector": "collector of all"}
    rows = [[words, f"{figures[name]['mean']:.4%}", f"{figures[name]['most']:.4%}"] for name, words in names.items()]
    child, collector = figures["child"]["mean"], figures["collector"]["mean"]
    return Section(
        "Idle children",
        f"{figures['children']} children over {figures['seconds']:g} seconds, shares of a core.",
        [table(["Process", "mean", "most"], rows)],
        [
            Reach("an idle child", f"at most {idling.GOAL_CHILD:.2%} of a core", f"{child:.3%}",
                  child <= idling.GOAL_CHILD),
            Reach(f"the collector of {figures['children']} idle children",
                  f"at most {idling.GOAL_COLLECTOR:.1%} of a core", f"{collector:.2%}",
                  collector <= idling.GOAL_COLLECTOR),
        ],
    )  # fmt: skip


def profiles(figures: dict[str, Any]) -> Section:
    """The cost of the profiles of time."""
    rows = [
        [f"a task that {name}", f"{figures[name]['box_us']:.0f} µs", f"{figures[name]['counted_us']:.0f} µs",
         f"{figures[name]['share']:.3%}"]
        for name in ("waits", "computes")
    ]  # fmt: skip
    most = max(figures[name]["share"] for name in ("waits", "computes"))
    return Section(
        "Profiles of time",
        f"One process; processor time of the sampling thread, medians, a stack of {figures['depth']} frames. The share "
        f"of a core includes writing the profiles of {figures['names']} tasks ({figures['written_ms']:.0f} ms).",
        [table(["A sample of", "for the black box", "counting it", "share of a core"], rows)],
        [
            Reach(
                "profiles of time, of a core", f"at most {profiling.GOAL:.1%}", f"{most:.3%}", most <= profiling.GOAL
            ),
        ],
    )


def stacks(figures: dict[str, Any]) -> Section:
    """How long a request for a stack takes."""
    names = {"redis": "over Redis", "same_host": "on the task's own host"}
    rows = [
        [name, *(f"{figures[way][key] * 1e3:.0f} ms" for key in ("p50_s", "p95_s", "longest_s"))]
        for way, name in names.items()
    ]
    p95_s = figures["redis"]["p95_s"]
    return Section(
        "Stacks on request",
        "The stack of a task that waits for a lock, with its local variables.",
        [table(["A request", "p50", "p95", "longest"], rows)],
        [
            Reach(
                "the stack of a running task over Redis, p95", f"at most {stack_requests.GOAL_S * 1e3:.0f} ms",
                f"{p95_s * 1e3:.0f} ms", p95_s <= stack_requests.GOAL_S,
            ),
        ],
    )  # fmt: skip


def big_heap(figures: dict[str, Any]) -> Section:
    """A leak in a process with a large heap and little processor time."""
    pause_s = figures["on"]["longest_pause_cpu_s"] / figures["share"]
    rows = [
        [name, f"{figures[name]['longest_s'] * 1e3:.0f} ms", f"{figures[name]['longest_pause_cpu_s'] * 1e3:.1f} ms"]
        for name in ("off", "on")
    ]
    return Section(
        "A large heap and little processor time",
        f"{figures['objects']:,} objects loaded at import, {figures['share']:g} of a core for the whole worker "
        f"({figures['way']}). A pause is the processor time that other threads took during a run.",
        [_named({"20 KB a run": figures}), table(["Another task", "longest run", "longest pause, CPU"], rows)],
        [
            _reach("a leak on a heap of a million objects and 0.2 of a core", "named", figures, "kept"),
            Reach("longest pause there", f"at most {heap.GOAL_S * 1e3:.0f} ms", f"{pause_s * 1e3:.0f} ms",
                  pause_s <= heap.GOAL_S),
        ],
    )  # fmt: skip


def main_process(figures: dict[str, Any]) -> Section:
    """A leak in the worker's main process."""
    row, line = figures.get("row"), figures["line"]
    right = row is not None and row["holder"].endswith("seen") and not figures["strangers"]
    found = f"`{row['holder'] or 'no holder'}` after {line['seconds']:.0f} s" if row and line else "no row of its line"
    return Section(
        "A leak in the main process",
        "A receiver of `task_received` keeps four kilobytes for each of 20 messages a second. It is called a leak "
        "after five minutes.",
        [_named({"4 KB a message": figures})],
        [Reach("a leak in the main process", "line and holder", found, right)],
    )


def few_and_huge(figures: dict[str, Any]) -> Section:
    """Few runs that each leak much."""
    return Section(
        "Few and huge runs",
        "7.6 MB kept a run, one run after the other; on the busy machine twice as many processes compute as it has "
        "cores.",
        [_named({f"{name} machine": one for name, one in figures.items()})],
        [
            _reach(f"7.6 MB kept a run, {name} machine", f"named within {few.GOAL_RUNS} runs", one, "reports",
                   most_runs=few.GOAL_RUNS)
            for name, one in figures.items()
        ],
    )  # fmt: skip


def recycled_children(figures: dict[str, Any]) -> Section:
    """A leak in children that are replaced after ten runs."""
    return Section(
        "Children that are replaced after ten runs",
        "`--max-tasks-per-child=10`, two children, 20 KB kept a run. The rate is right within 15 %.",
        [_named({"20 KB a run": figures})],
        [_reach("a leak in children of ten runs", "line and holder", figures, "kept")],
    )


def one_in_a_thousand(figures: dict[str, Any]) -> Section:
    """A leak in few of many runs."""
    return Section(
        "A leak in one run of many",
        "A megabyte kept in one run of many, at the worker's full rate.",
        [_named({f"1 MB in one run of {int(every):,}": one for every, one in figures.items()})],
        [
            _reach(f"a megabyte in one run of {int(every):,}", "line and holder", one, "failed")
            for every, one in figures.items()
        ],
    )


def _named(cases: dict[str, dict[str, Any]]) -> str:
    """What was found of some leaks, and when."""

    def at(found: dict[str, Any] | None) -> str:
        return "–" if found is None else f"{found['runs']:,} runs, {found['seconds']:.0f} s"

    rows = []
    for name, case in cases.items():
        row = case.get("row")
        waits = f", waits for {row['waits_for']}" if row and row["waits_for"] else ""
        rows.append(
            [
                name,
                at(case["line"]),
                at(case["leaking"]),
                f"{row['verdict']}{waits}" if row else "–",
                f"{row['kept_bytes_per_run']:,}" if row else "–",
                f"`{row['holder']}`" if row and row["holder"] else "–",
            ]
        )
    heads = ["Leak", "line reported after", "`leaking` after", "verdict at the end", "bytes a run", "holder"]
    return table(heads, rows)


def _reach(what: str, promised: str, case: dict[str, Any], holder: str, most_runs: int = 10**9) -> Reach:
    """Whether a leak was named at its line with its holder, in time, and nothing else was."""
    leaking = case["leaking"]
    if leaking is None:
        return Reach(what, promised, f"{case['row']['verdict'] if 'row' in case else 'no row of its line'}", False)
    right = case["row"]["holder"].endswith(holder) and not case["strangers"] and leaking["runs"] <= most_runs
    others = f", and {len(case['strangers'])} others" if case["strangers"] else ""
    return Reach(what, promised, f"`{case['row']['holder']}` after {leaking['runs']:,} runs{others}", right)
