"""Flame graphs of kept memory: the sum of processes, differences, the tree, and files for other tools."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from celery_trace.model import UNSEEN, HeapProfile, HeapStack, Kind, Line, Measure, TimeProfile, TimeStack
from celery_trace.profiles import files, flames
from celery_trace.profiles.flames import ProfileView, StackSum

TASK = Line("/srv/shop/tasks.py", 7, "remember", "seen.append(order)")
ORDER = Line("/srv/shop/orders.py", 20, "Order.__init__", "self.text = text")
DUMPS = Line("/usr/lib/json/__init__.py", 231, "dumps")


def profile(process: str = "p1", stacks: dict[tuple[Line, ...], int] | None = None, **values: Any) -> HeapProfile:
    rows = {(TASK, ORDER): 900, (TASK, DUMPS): 100} if stacks is None else stacks
    frames = list(dict.fromkeys(line for stack in rows for line in stack))
    known: dict[str, Any] = {
        "kind": Kind.TASK, "name": "shop.remember", "at_s": 50.0, "runs": 10,
        "bytes": sum(rows.values()) + values.get("other_bytes", 0),
    }  # fmt: skip
    found = [HeapStack([frames.index(line) for line in stack], value) for stack, value in rows.items()]
    return HeapProfile(process=process, frames=frames, stacks=found, **known | values)


def kept(stacks: dict[tuple[Line, ...], float], runs: int = 10) -> StackSum:
    return StackSum(stacks=stacks, total=sum(stacks.values()), runs=runs, processes=1, at=1.0)


def test_processes_add_up_and_what_is_not_listed_is_told_as_other_stacks() -> None:
    found = flames.together([profile(), profile("p2", {(TASK, ORDER): 50}, other_bytes=30, at_s=70.0)], Measure.MEMORY)
    assert found.stacks == {(TASK, ORDER): 950, (TASK, DUMPS): 100, (flames.OTHERS,): 30}
    assert (found.total, found.runs, found.processes, found.at) == (1080, 20, 2, 70.0)


def test_a_line_is_one_frame_though_one_process_could_not_read_the_source() -> None:
    bare = Line(TASK.file, TASK.line, TASK.function)
    found = flames.together([profile("p1", {(bare,): 1}), profile("p2", {(TASK,): 2})], Measure.MEMORY)
    assert found.stacks == {(TASK,): 3}


def test_a_frame_holds_what_is_below_it() -> None:
    root = flames.tree(flames.together([profile()], Measure.MEMORY))
    assert (root.value, root.width) == (1000, 1000)
    (task,) = root.children()
    assert (task.frame, task.value) == (TASK, 1000)
    assert [(node.frame, node.value) for node in task.children()] == [(ORDER, 900), (DUMPS, 100)]


def test_a_difference_is_as_wide_as_the_larger_of_both() -> None:
    root = flames.tree(kept({(TASK, ORDER): 900.0}), kept({(TASK, ORDER): 300.0, (TASK, DUMPS): 200.0}))
    assert (root.value, root.before, root.width) == (900, 500, 1100)
    order, dumps = root.children()[0].children()
    assert (order.value, order.before, order.width) == (900, 300, 900)
    assert (dumps.value, dumps.before, dumps.width) == (0, 200, 200)


def test_a_difference_tells_more_and_less_and_leaves_out_what_is_the_same() -> None:
    before = kept({(TASK, ORDER): 300.0, (TASK, DUMPS): 200.0, (TASK,): 5.0})
    assert flames.difference(kept({(TASK, ORDER): 900.0, (TASK,): 5.0}), before) == {
        (TASK, ORDER): 600.0,
        (TASK, DUMPS): -200.0,
    }


def test_releases_are_compared_a_run_and_by_function_as_lines_move() -> None:
    moved = Line(TASK.file, 12, TASK.function, TASK.code)
    after, before = (
        flames.by_function(flames.per_run(one)) for one in (kept({(moved,): 1000.0}, runs=100), kept({(TASK,): 100.0}))
    )
    assert flames.difference(after, before) == {}
    assert after.total == before.total == 10.0


def test_the_page_is_given_each_frame_once_and_no_part_too_small_to_see() -> None:
    frames, (place, total, before, width, below) = flames.flat(
        flames.tree(kept({(TASK, ORDER): 100_000.0, (TASK, DUMPS): 1.0}))
    )
    assert [line.function for line in frames] == ["all", "remember", "Order.__init__"]
    assert (place, total, before, width) == (0, 100_001.0, 0.0, 100_001.0)
    assert below == [[1, 100_001.0, 0.0, 100_001.0, [[2, 100_000.0, 0.0, 100_000.0, []]]]]


def test_lines_are_told_by_what_was_allocated_there() -> None:
    one = kept({(TASK, ORDER): 5.0, (ORDER,): 3.0, (TASK,): 9.0})
    assert flames.lines_of(one) == [(TASK, 9.0, 0.0), (ORDER, 8.0, 0.0)]
    other = kept({(TASK,): 1000.0, (ORDER,): 7.0})
    assert [line for line, _, _ in flames.lines_of(one, other)] == [TASK, ORDER]


def test_collapsed_stacks_are_a_line_each() -> None:
    odd = Line("/srv/a;b.py", 1, "f\ng")
    text = files.collapsed({(TASK, ORDER): 900.4, (odd,): 3.0})
    assert text == (
        "remember (/srv/shop/tasks.py:7);Order.__init__ (/srv/shop/orders.py:20) 900\nf g (/srv/a,b.py:1) 3\n"
    )


def test_a_speedscope_file_has_weights_for_its_samples() -> None:
    file = json.loads(
        json.dumps(files.speedscope({(TASK, ORDER): 900.0, (TASK, DUMPS): -5.0, (TASK,): 7.0}, "t", Measure.MEMORY))
    )
    (one,) = file["profiles"]
    assert file["shared"]["frames"] == [
        {"name": "remember", "file": "/srv/shop/tasks.py", "line": 7},
        {"name": "Order.__init__", "file": "/srv/shop/orders.py", "line": 20},
    ]
    assert (one["samples"], one["weights"], one["endValue"]) == ([[0, 1], [0]], [900, 7], 907)


def read_fields(data: bytes) -> list[tuple[int, Any]]:
    """A protobuf message, field by field."""
    found: list[tuple[int, Any]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            found.append((key >> 3, varint()))
        else:
            length = varint()
            found.append((key >> 3, data[at : at + length]))
            at += length
    return found


def test_a_pprof_file_reads_back() -> None:
    message = read_fields(gzip.decompress(files.pprof({(TASK, ORDER): 900.0, (TASK,): -5.0}, Measure.MEMORY, 12.5)))
    texts = [content.decode() for field, content in message if field == 6]
    assert texts[0] == ""
    (kind,) = (dict(read_fields(content)) for field, content in message if field == 1)
    assert (texts[kind[1]], texts[kind[2]]) == ("inuse_space", "bytes")
    functions = {}
    for field, content in message:
        if field == 5:
            function = dict(read_fields(content))
            functions[function[1]] = (texts[function[2]], texts[function[4]])
    places = {}
    for field, content in message:
        if field == 4:
            location = dict(read_fields(content))
            line = dict(read_fields(location[4]))
            places[location[1]] = (functions[line[1]][0], line[2])
    samples = []
    for field, content in message:
        if field == 2:
            sample = dict(read_fields(content))
            value = read_fields(b"\x08" + sample[2])[0][1]
            samples.append(([places[number] for number in sample[1]], value - (1 << 64) * (value >> 63)))
    assert samples == [([("Order.__init__", 20), ("remember", 7)], 900), ([("remember", 7)], -5)]
    assert dict(message)[9] == 12_500_000_000


def in_time(wall_us: int = 1000, **values: Any) -> TimeProfile:
    """A profile with one stack that computes, one that waits, and some time that is not listed."""
    known: dict[str, Any] = {
        "process": "p1", "kind": Kind.TASK, "name": "shop.remember", "began_s": 1.0, "at_s": 50.0, "runs": 4,
        "wall_us": wall_us, "cpu_us": 420, "lock_us": 100, "measures": [Measure.WALL, Measure.CPU, Measure.LOCK],
        "frames": [TASK, ORDER, DUMPS, UNSEEN], "stacks": [
            TimeStack([0, 1], 500, 400, 0), TimeStack([0, 2], 300, 0, 100), TimeStack([3], 100, 20, 0),
        ],
    }  # fmt: skip
    return TimeProfile(**known | values)


def test_each_measure_of_time_has_its_own_stacks_that_add_up_to_its_total() -> None:
    profiles = [in_time(), in_time(process="p2", at_s=60.0)]
    wall = flames.together(profiles, Measure.WALL)
    assert wall.stacks == {(TASK, ORDER): 1000, (TASK, DUMPS): 600, (UNSEEN,): 200, (flames.OTHERS,): 200}
    assert (wall.total, wall.runs, wall.processes, wall.at) == (2000, 8, 2, 60.0)
    assert flames.together(profiles, Measure.CPU).stacks == {(TASK, ORDER): 800, (UNSEEN,): 40}
    assert flames.together(profiles, Measure.LOCK).stacks == {(TASK, DUMPS): 200}


def test_times_have_the_units_that_each_tool_expects() -> None:
    stacks = flames.together([in_time()], Measure.CPU).stacks
    assert files.collapsed(stacks).splitlines()[-1] == "runs that ended before their stack was read 20"
    assert files.speedscope(stacks, "t", Measure.CPU)["profiles"][0]["unit"] == "microseconds"
    message = read_fields(gzip.decompress(files.pprof(stacks, Measure.CPU, 1.0)))
    texts = [content.decode() for field, content in message if field == 6]
    (kind,) = (dict(read_fields(content)) for field, content in message if field == 1)
    assert (texts[kind[1]], texts[kind[2]]) == ("cpu", "nanoseconds")
    values = [read_fields(b"\x08" + dict(read_fields(content))[2])[0][1] for field, content in message if field == 2]
    assert values == [400_000, 20_000]


def columns_have_one_length(table: dict[str, Any]) -> bool:
    return all(len(column) == table["length"] for column in table.values() if isinstance(column, list))


def test_a_file_for_the_firefox_profiler_refers_to_its_own_tables() -> None:
    stacks = flames.together([in_time()], Measure.WALL).stacks
    file = json.loads(json.dumps(files.firefox(stacks, "shop.remember: wall", Measure.WALL, 12.5)))
    (thread,) = file["threads"]
    assert (file["meta"]["preprocessedProfileVersion"], file["meta"]["startTime"]) == (48, 12_500)
    for table in ("samples", "stackTable", "frameTable", "funcTable", "markers", "resourceTable", "nativeSymbols"):
        assert columns_have_one_length(thread[table]), table
    samples, nodes, words = thread["samples"], thread["stackTable"], thread["stringArray"]

    def names(node: int | None) -> list[str]:
        if node is None:
            return []
        assert nodes["prefix"][node] is None or nodes["prefix"][node] < node, "a caller is before what it calls"
        function = thread["frameTable"]["func"][nodes["frame"][node]]
        return [*names(nodes["prefix"][node]), words[thread["funcTable"]["name"][function]]]

    shown = [(names(node), weight) for node, weight in zip(samples["stack"], samples["weight"], strict=True)]
    assert (["remember", "Order.__init__"], 0.5) in shown
    assert (["remember", "dumps"], 0.3) in shown
    assert samples["weightType"] == "tracing-ms"
    assert samples["time"] == pytest.approx([0.0, 0.5, 0.8, 0.9])
    place = thread["frameTable"]["line"][nodes["frame"][samples["stack"][0]]]
    assert place == ORDER.line
    memory = files.firefox({(TASK,): 9.0, (ORDER,): -4.0}, "t", Measure.MEMORY, 1.0)["threads"][0]["samples"]
    assert (memory["weightType"], memory["weight"]) == ("bytes", [9])


def test_the_json_has_folded_stacks_and_says_what_it_is_compared_with() -> None:
    one = ProfileView(measure=Measure.MEMORY, after=kept({(TASK,): 9.0}))
    assert files.as_json(one)["stacks"] == [(["remember (/srv/shop/tasks.py:7)"], 9)]
    both = ProfileView(
        measure=Measure.MEMORY,
        after=kept({(TASK,): 9.0}),
        before=kept({(TASK,): 12.0}),
        after_is="now",
        before_is="1h ago",
        a_run=False,
    )
    found = files.as_json(both)
    assert found["stacks"] == [(["remember (/srv/shop/tasks.py:7)"], -3)]
    assert (found["is"], found["compared"]["with"], found["compared"]["total"]) == ("now", "1h ago", 12)
