"""The sampled heap: one contract for the extension module and for tracemalloc, and what each adds to it."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import random
import statistics
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from celery_trace.heap import sampler as sampler_module
from celery_trace.heap import traced as traced_module
from celery_trace.heap.differences import TracedRun
from celery_trace.heap.needs import bucket_bytes
from celery_trace.heap.picks import IGNORED, UNTAGGED, CannotSample, Pick
from celery_trace.heap.sampler import Sampler, availability, open_sampler
from celery_trace.heap.traced import TracedSampler
from tests.support.processes import REPOSITORY, clean_environment
from tests.support.waiting import wait_until

AnySampler = Sampler | TracedSampler
#: None that a watch in the same process gives to a name.
TAG = 2007


def opened(kind: type[AnySampler]) -> AnySampler:
    try:
        return kind()
    except CannotSample as error:
        if os.environ.get("CI"):
            raise  # CI may not run without the extension module
        pytest.skip(str(error))


@pytest.fixture(params=[Sampler, TracedSampler], ids=["extension", "tracemalloc"])
def sampler(request: pytest.FixtureRequest) -> Iterator[AnySampler]:
    found = opened(request.param)
    yield found
    found.restore(UNTAGGED)
    found.stop()


@pytest.fixture
def extension() -> Iterator[Sampler]:
    found = opened(Sampler)
    assert isinstance(found, Sampler)
    yield found
    found.restore(UNTAGGED)
    found.stop()


@pytest.fixture
def traced() -> Iterator[TracedSampler]:
    found = TracedSampler()
    yield found
    found.stop()
    tracemalloc.stop()


def keep_blocks(kept: list[Any], number: int, size: int) -> None:
    for _ in range(number):
        kept.append(bytearray(size))


def keep_texts(kept: list[str], number: int, size: int) -> None:
    for index in range(number):
        kept.append(f"{index:{size}}")


def tagged(sampler: AnySampler, tag: int = TAG) -> list[Pick]:
    return [pick for pick in sampler.picks() if pick.tag == tag]


def weight(sampler: AnySampler, tag: int = TAG) -> float:
    return sum(pick.weight for pick in tagged(sampler, tag))


def python(program: str, *options: str, **environment: str) -> str:
    """What a programme prints in an interpreter of its own; fails with its errors."""
    words = [sys.executable, *options, "-c", program]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=50, cwd=REPOSITORY, env=clean_environment(environment)
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return done.stdout


# --- the contract ------------------------------------------------------------------------------------------


def test_it_is_off_until_it_is_started(sampler: AnySampler) -> None:
    assert not sampler.is_on()
    assert list(sampler.picks()) == []
    assert sampler.cost_s() == 0.0
    sampler.start(64)
    assert sampler.is_on()
    assert 0 < sampler.cost_s() < 1e-4


def test_what_is_kept_is_picked_with_its_line_task_and_run(sampler: AnySampler) -> None:
    assert sampler.mark(keep_blocks.__code__, TAG)
    sampler.start(4096)
    kept: list[Any] = []
    sampler.run(TAG)
    sampler.restore(UNTAGGED)
    keep_blocks(kept, 200, 5000)
    picks = tagged(sampler)
    assert sum(pick.weight for pick in picks) == pytest.approx(200 * 5000, rel=0.15)
    assert {pick.run for pick in picks} == {sampler.runs(TAG)}
    here = keep_blocks.__code__
    lines = {sampler.stack(pick.stack)[0] for pick in picks if pick.weight > 4000}
    assert (__file__, here.co_firstlineno + 2, here.co_qualname) in lines


def test_what_is_released_is_picked_no_longer(sampler: AnySampler) -> None:
    sampler.mark(keep_blocks.__code__, TAG)
    sampler.start(64)
    kept: list[Any] = []
    keep_blocks(kept, 100, 5000)
    before = weight(sampler)
    del kept[50:]
    assert weight(sampler) == pytest.approx(before / 2, rel=0.1)
    kept.clear()
    assert weight(sampler) < 5000


def test_a_pick_keeps_its_birth(sampler: AnySampler) -> None:
    sampler.mark(keep_blocks.__code__, TAG)
    sampler.start(64)
    kept: list[Any] = []
    keep_blocks(kept, 20, 5000)
    first = {pick.serial: (pick.born_s, pick.run) for pick in tagged(sampler)}
    sampler.run(TAG)
    sampler.restore(UNTAGGED)
    keep_blocks(kept, 20, 5000)
    after = {pick.serial: (pick.born_s, pick.run) for pick in tagged(sampler)}
    still = first.keys() & after.keys()
    assert still
    assert all(after[serial] == first[serial] for serial in still)
    newest = max(after)
    assert newest not in first
    assert after[newest] > max(first.values())


def test_the_outermost_marked_function_gives_the_tag(sampler: AnySampler) -> None:
    def outer() -> bytearray:
        return inner()

    def inner() -> bytearray:
        return bytearray(100_000)

    sampler.mark(inner.__code__, TAG + 1)
    sampler.mark(outer.__code__, TAG + 2)
    sampler.start(64)
    kept = [outer(), inner(), inner()]
    assert weight(sampler, TAG + 2) == pytest.approx(100_000, rel=0.1)
    assert weight(sampler, TAG + 1) == pytest.approx(200_000, rel=0.1)
    assert len(kept) == 3


def test_runs_are_counted_by_tag(sampler: AnySampler) -> None:
    before = sampler.runs(TAG)
    assert sampler.run(TAG) == UNTAGGED
    assert sampler.run(TAG + 1) == TAG
    sampler.restore(TAG)
    assert sampler.run(IGNORED) == TAG
    sampler.restore(UNTAGGED)
    assert sampler.runs(TAG) == before + 1


def test_full_collections_are_counted(sampler: AnySampler) -> None:
    before = sampler.stats()["collections"]
    gc.callbacks.append(sampler.note_collection)
    try:
        gc.collect()
        gc.collect(0)
    finally:
        gc.callbacks.remove(sampler.note_collection)
    assert sampler.stats()["collections"] == before + 1


def test_referrers_names_what_holds_a_text(sampler: AnySampler) -> None:
    sampler.mark(keep_texts.__code__, TAG)
    sampler.start(64)
    gc.disable()  # a collection may leave the holder behind the whole heap, which takes tracemalloc longer than it may
    try:
        holder: list[str] = []
        keep_texts(holder, 30, 3000)
        blocks = [(pick.address, pick.size) for pick in tagged(sampler) if pick.size >= 3000]
        # No more than there are: tracemalloc would look for others in the whole heap, for seconds.
        found = [(address, referent) for address, referent, by in sampler.referrers(blocks, 30) if by is holder]
    finally:
        gc.enable()
    assert len(found) == 30
    assert all(referent in holder for _, referent in found)
    assert {address for address, _ in found} <= {address for address, _ in blocks}
    assert len(sampler.referrers(blocks[:1], 1)) == 1


def test_stop_forgets_and_start_begins_anew(sampler: AnySampler) -> None:
    sampler.mark(keep_blocks.__code__, TAG)
    kept: list[Any] = []
    for _ in range(3):
        sampler.start(64)
        sampler.start(64)
        keep_blocks(kept, 10, 5000)
        assert weight(sampler) == pytest.approx(50_000, rel=0.1)
        sampler.stop()
        sampler.stop()
        assert list(sampler.picks()) == []
        assert not sampler.is_on()


def test_a_forked_child_begins_off_and_can_start(sampler: AnySampler) -> None:
    sampler.mark(keep_blocks.__code__, TAG)
    sampler.start(64)
    kept: list[Any] = []
    keep_blocks(kept, 10, 5000)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            begins_off = not sampler.is_on() and list(sampler.picks()) == []
            kept.clear()
            sampler.start(64)
            keep_blocks(kept, 20, 5000)
            code = 0 if begins_off and abs(weight(sampler) - 100_000) < 10_000 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert sampler.is_on()
    assert weight(sampler) == pytest.approx(50_000, rel=0.1)


def test_both_have_the_same_counters_and_methods() -> None:
    extension, traced = opened(Sampler), TracedSampler()
    assert extension.stats().keys() == traced.stats().keys()
    names = {name for name in dir(extension) if not name.startswith("_")}
    assert names == {name for name in dir(traced) if not name.startswith("_")}


# --- which one ---------------------------------------------------------------------------------------------


def test_this_interpreter_has_the_extension_module_under_ci() -> None:
    opened(Sampler)
    assert availability() == ""
    assert isinstance(open_sampler(), Sampler)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("import sysconfig; sysconfig.get_config_vars()['Py_GIL_DISABLED'] = 1", "free-threaded"),
        ("sys.version_info = (3, 42)", "Python 3.42"),
        ("sys.modules['celery_trace.heap._sampler'] = None", "can't be loaded"),
    ],
)
def test_without_the_extension_module_it_is_tracemalloc_and_says_why(what: str, says: str) -> None:
    told = python(
        f"import sys; from celery_trace.heap.sampler import availability, open_sampler; {what}\n"
        "print(type(open_sampler()).__name__, availability())"
    )
    assert told.startswith("TracedSampler")
    assert says in told


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "celery_trace.heap._sampler", None)
    monkeypatch.setattr(sampler_module, "_compiler", lambda: None)
    assert "install a C compiler" in availability()


# --- the extension module ----------------------------------------------------------------------------------

MALLOC, REALLOC, FREE = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p


def allocator(prefix: str) -> tuple[Callable[..., int], Callable[..., int], Callable[..., None]]:
    """Malloc, realloc and free of a domain; those of RAW are called without the GIL."""
    library = ctypes.CDLL(None) if prefix == "PyMem_Raw" else ctypes.PyDLL(None)
    found = [getattr(library, prefix + name) for name in ("Malloc", "Realloc", "Free")]
    address, size = ctypes.c_void_p, ctypes.c_size_t
    for function, result, arguments in zip(
        found, (address, address, None), ((size,), (address, size), (address,)), strict=True
    ):
        function.restype, function.argtypes = result, arguments
    return tuple(found)  # type: ignore[return-value]


def live_after(rng: random.Random, prefix: str, steps: int) -> dict[int, int]:
    """Address and size of what a random sequence of allocations, resizes and releases leaves alive."""
    malloc, realloc, free = allocator(prefix)
    live: dict[int, int] = {}
    for _ in range(steps):
        choice = rng.random()
        if choice < 0.4 or not live:
            size = rng.choice([16, 48, 200, 512, 513, 3000, 20_000, rng.randrange(1, 60_000)])
            live[malloc(size)] = size
            continue
        address = rng.choice(list(live))
        size = live.pop(address)
        if choice < 0.8:
            size = min(300_000, rng.choice([size * 9 // 8, size + rng.randrange(1, 200), size // 2 + 1]))
            live[realloc(address, size)] = size
        else:
            free(address)
    return live


@pytest.mark.parametrize("prefix", ["PyMem_", "PyObject_", "PyMem_Raw"])
def test_the_estimate_is_unbiased_and_no_pick_is_lost_or_stale(extension: Sampler, prefix: str) -> None:
    errors = []
    for seed in range(1, 31):
        extension.start(2048, seed)
        before = extension.run(TAG)
        live = live_after(random.Random(seed), prefix, 800)
        extension.restore(before)
        of_live = [pick for pick in tagged(extension) if pick.address in live]
        errors.append(sum(pick.weight for pick in of_live) / sum(live.values()) - 1)
        # One that is so large is picked but for a chance of 5e-5.
        assert {address for address, size in live.items() if size > 20_000} <= {pick.address for pick in of_live}
        for address in live:
            allocator(prefix)[2](address)
        assert not [pick for pick in tagged(extension) if pick.address in live]
        extension.stop()
    mean = sum(errors) / len(errors)
    deviation = math.sqrt(sum((error - mean) ** 2 for error in errors) / (len(errors) - 1) / len(errors))
    assert abs(mean) < 4 * deviation
    assert deviation < 0.01


def test_small_blocks_weigh_what_they_are(extension: Sampler) -> None:
    malloc, _, free = allocator("PyObject_")
    estimates = []
    for seed in range(1, 11):
        extension.start(256, seed)
        extension.run(TAG)
        live = {malloc(16) for _ in range(20_000)}
        extension.restore(UNTAGGED)
        estimates.append(sum(pick.weight for pick in tagged(extension) if pick.address in live))
        for address in live:
            free(address)
        extension.stop()
    assert sum(estimates) / len(estimates) == pytest.approx(16 * 20_000, rel=0.03)


def test_thinning_out_keeps_the_estimate(extension: Sampler) -> None:
    before = extension.stats()["thinned"]
    kept: list[Any] = []
    extension.start(64, 1)
    extension.run(TAG)
    for size in (100, 1000, 10_000):
        keep_blocks(kept, 8000, size)
    extension.restore(UNTAGGED)
    stats = extension.stats()
    assert stats["thinned"] > before
    assert stats["mean_bytes"] > 64
    assert 1000 < stats["live"] <= 8192
    assert weight(extension) == pytest.approx(sum(map(sys.getsizeof, kept)) + sys.getsizeof(kept), rel=0.1)


def test_a_line_that_keeps_little_stays_in_sight_beside_one_that_keeps_much(extension: Sampler) -> None:
    little: list[Any] = []
    much: list[Any] = []
    extension.start(1024, 1)
    for _ in range(400):
        extension.run(TAG)
        keep_blocks(little, 1, 500)
        extension.restore(UNTAGGED)
        extension.run(TAG + 1)
        keep_texts(much, 100, 500)
        extension.restore(UNTAGGED)
    stats = extension.stats()
    assert stats["mean_bytes"] == 1024
    assert stats["thinned"] > 10_000
    assert len(tagged(extension)) > 100
    assert weight(extension) == pytest.approx(sum(map(sys.getsizeof, little)), rel=0.3)
    assert weight(extension, TAG + 1) == pytest.approx(sum(map(sys.getsizeof, much)), rel=0.15)
    born = sorted(pick.run for pick in tagged(extension, TAG + 1))
    assert born[len(born) // 2] == pytest.approx(200, abs=30)


def test_a_stack_whose_picks_are_gone_is_sampled_in_full_again(extension: Sampler) -> None:
    kept: list[Any] = []
    extension.start(64, 1)
    extension.run(TAG)
    keep_texts(kept, 30_000, 300)
    assert statistics.median(pick.weight for pick in tagged(extension)) > 1_000
    kept.clear()
    keep_texts(kept, 200, 300)
    extension.restore(UNTAGGED)
    picks = [pick for pick in tagged(extension) if 300 < pick.size < 400]
    assert len(picks) > 190
    assert max(pick.weight for pick in picks) < 400


def test_a_list_that_grows_for_long_has_births_of_all_times(extension: Sampler) -> None:
    extension.start(1024, 1)
    growing: list[None] = []
    for _ in range(20):
        before = extension.run(TAG)
        growing.extend([None] * 4000)
        extension.restore(before)
    of_list = [pick for pick in tagged(extension) if pick.size > 0]
    assert len({pick.run for pick in of_list}) >= 10
    assert sum(pick.weight for pick in of_list) == pytest.approx(sys.getsizeof(growing), rel=0.1)


def test_growing_by_a_byte_at_a_time_does_not_add_up(extension: Sampler) -> None:
    _, realloc, free = allocator("PyObject_")
    extension.start(1024, 1)
    extension.run(TAG)
    address = 0
    for size in range(10_000, 12_000):
        address = realloc(address, size)
    extension.restore(UNTAGGED)
    estimate = sum(pick.weight for pick in tagged(extension) if pick.address == address)
    free(address)
    assert estimate == pytest.approx(12_000, abs=4 * 1024 * 2)


def test_a_resize_that_fails_loses_no_pick(extension: Sampler) -> None:
    malloc, realloc, free = allocator("PyObject_")
    extension.start(64)
    address = malloc(50_000)
    before = [pick for pick in extension.picks() if pick.address == address]
    assert realloc(address, sys.maxsize // 2) is None
    after = [pick for pick in extension.picks() if pick.address == address]
    free(address)
    assert [pick.serial for pick in before] == [pick.serial for pick in after]
    assert before


def test_stacks_end_with_what_stands_around_every_run(extension: Sampler) -> None:
    kept: list[Any] = []

    def around() -> None:
        keep_blocks(kept, 20, 5_000)

    extension.stop_at(around.__code__)
    extension.start(64)
    try:
        extension.run(TAG)
        around()
        extension.restore(UNTAGGED)
        depths = {len(extension.stack(pick.stack)) for pick in tagged(extension)}
        outermost = {extension.stack(pick.stack)[-1][2].rpartition(".")[2] for pick in tagged(extension)}
    finally:
        extension.stop_at()
    # Now and then a call makes room for further frames, before its own frame is there.
    assert (max(depths), outermost) == (2, {"around"})
    with pytest.raises(TypeError):
        extension.stop_at(around)  # type: ignore[arg-type]


def test_between_the_runs_of_a_pool_fewer_picks_stand_for_as_much(extension: Sampler) -> None:
    kept: list[Any] = []

    def of_a_task() -> None:
        keep_blocks(kept, 2000, 1000)

    extension.mark(of_a_task.__code__, TAG)
    extension.stop_at(sys._getframe().f_code)
    extension.start(2048)
    try:
        extension.restore(extension.run(TAG + 1))
        between = extension.stats()["taken"], sum(pick.weight for pick in extension.picks())
        of_a_task()
        after = extension.stats()["taken"], sum(pick.weight for pick in extension.picks())
        before = extension.run(TAG + 1)
        of_a_task()
        extension.restore(before)
        in_a_run = extension.stats()["taken"] - after[0]
        tags = {pick.tag for pick in extension.picks()}
    finally:
        extension.stop_at()
    assert after[1] - between[1] == pytest.approx(2_100_000, rel=0.4), "100 picks"
    assert 4 * (after[0] - between[0]) < in_a_run
    assert TAG not in tags, "no function of a task runs between the runs of a pool's process"


def test_a_large_block_between_runs_is_always_picked(extension: Sampler) -> None:
    extension.stop_at(sys._getframe().f_code)
    extension.start(2048)
    try:
        extension.restore(extension.run(TAG))
        kept = [bytes(60_000) for _ in range(60)]
        found = [pick for pick in extension.picks() if pick.size > 50_000]
    finally:
        extension.stop_at()
    assert len(found) == len(kept)
    assert sum(pick.weight for pick in found) == pytest.approx(60 * 60_000, rel=0.01)


def test_boundaries_are_a_few_functions(extension: Sampler) -> None:
    with pytest.raises(ValueError, match="no more than 8"):
        extension.stop_at(*[keep_blocks.__code__] * 9)


def test_an_ignored_thread_is_not_sampled(extension: Sampler) -> None:
    extension.start(64)
    before = extension.run(IGNORED)
    taken = extension.stats()["taken"]
    kept: list[Any] = []
    keep_blocks(kept, 100, 5000)
    assert extension.stats()["taken"] == taken
    extension.restore(before)
    keep_blocks(kept, 1, 5000)
    assert extension.stats()["taken"] > taken


def test_the_tag_of_a_thread_that_has_ended_is_gone_with_it(extension: Sampler) -> None:
    extension.start(64)
    found = []

    def ends_within_a_run() -> None:
        found.append(extension.run(TAG))

    for _ in range(1000):  # the system hands out the same identifiers again
        thread = threading.Thread(target=ends_within_a_run)
        thread.start()
        thread.join()
    assert found == [UNTAGGED] * 1000


def test_code_objects_are_given_back(extension: Sampler) -> None:
    space: dict[str, Any] = {}
    exec(compile("def made(): return [bytearray(9000) for _ in range(9)]", "made", "exec"), space)
    code = space["made"].__code__
    before = sys.getrefcount(code)
    extension.start(64)
    kept = space["made"]()
    assert sys.getrefcount(code) > before
    del kept
    extension.stop()
    assert sys.getrefcount(code) == before


def test_unused_stacks_are_swept_and_used_ones_renumbered(extension: Sampler) -> None:
    extension.mark(keep_blocks.__code__, TAG)
    extension.start(64)

    def through(path: int, kept: list[Any]) -> None:
        if path == 1:
            keep_blocks(kept, 1, 3000)
        elif path % 2:
            through(path // 2, kept)
        else:
            through(path // 2, kept)

    path = 4096
    while extension.stats()["stacks"] < 4500:
        through(path, [])
        path += 1
    kept: list[Any] = []
    through(3, kept)
    assert extension.stats()["stacks"] >= 4096
    assert extension.sweep()
    assert extension.stats()["stacks"] < 1000
    assert not extension.sweep()
    picks = [pick for pick in tagged(extension) if pick.size >= 3000]
    assert [extension.stack(pick.stack)[0][2] for pick in picks] == ["keep_blocks"]
    assert extension.stack(8191) == extension.stack(-1) == ()


def test_referrers_bears_objects_that_change_while_it_looks(extension: Sampler) -> None:
    with pytest.raises(TypeError):
        extension.referrers([5], 1)  # type: ignore[list-item]

    blocks: list[Any] = []

    class Shrinks:
        def __index__(self) -> int:
            blocks.clear()
            return 1

    blocks += [(16, Shrinks()) for _ in range(100)]
    assert extension.referrers(blocks, 3) == []


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize("ends", ["ours first", "theirs first"])
def test_it_lives_beside_the_programs_own_tracemalloc(extension: Sampler, order: str, ends: str) -> None:
    extension.mark(keep_blocks.__code__, TAG)
    kept: list[Any] = []
    for _ in range(3):
        if order == "ours first":
            extension.start(64)
        tracemalloc.start()
        try:
            extension.start(64)
            assert extension.is_on()
            kept.clear()
            keep_blocks(kept, 10, 5000)
            assert weight(extension) == pytest.approx(50_000, rel=0.1)
            assert tracemalloc.get_object_traceback(kept[-1]) or sys.version_info < (3, 12)
            if ends == "ours first":
                extension.stop()
        finally:
            tracemalloc.stop()
        # tracemalloc puts back what was there before it: hooks above its own are lost with it.
        assert extension.is_on() == (ends == "theirs first" and order == "ours first")
        extension.start(64)
        assert extension.is_on()
        kept.clear()
        keep_blocks(kept, 10, 5000)
        assert weight(extension) == pytest.approx(50_000, rel=0.1)
        extension.stop()


def test_memray_may_come_and_go(extension: Sampler, tmp_path: Path) -> None:
    memray = pytest.importorskip("memray")
    extension.mark(keep_blocks.__code__, TAG)
    extension.start(64)
    with memray.Tracker(tmp_path / "run.bin", trace_python_allocators=True):
        kept: list[Any] = []
        keep_blocks(kept, 10, 5000)
        assert extension.is_on()
    extension.stop()
    extension.start(64)
    kept = []
    keep_blocks(kept, 10, 5000)
    assert weight(extension) == pytest.approx(50_000, rel=0.1)


def test_it_works_in_the_main_interpreter_alone_and_beside_others() -> None:
    opened(Sampler)
    told = python("""
import threading, time
try:
    import _interpreters as others
except ImportError:
    import _xxsubinterpreters as others
from celery_trace.heap.sampler import Sampler
sampler = Sampler()
sampler.start(512)
inside = '''
try:
    import celery_trace.heap._sampler
except ImportError:
    kept = [bytearray(size) for size in range(3000)]
    for _ in range(20000):
        kept[_ % 3000] = bytearray(_ % 5000)
else:
    raise SystemError("it may not be there")
'''
def other():
    found = others.create()
    failed = others.run_string(found, inside)
    others.destroy(found)
    results.append(failed)
results = []
threads = [threading.Thread(target=other) for _ in range(3)]
for thread in threads:
    thread.start()
before = sampler.run(7)
kept = [bytearray(5000) for _ in range(300)]
while any(thread.is_alive() for thread in threads):
    changing = [bytearray(size) for size in range(1000)]
    time.sleep(0.0001)  # on 3.11 the threads of another interpreter can't ask for the lock
changing = None
sampler.restore(before)
found = sum(pick.weight for pick in sampler.picks() if pick.tag == 7)
for thread in threads:
    thread.join()
print(results, sampler.is_on(), abs(found / 1.5e6 - 1) < 0.1, found)
""")
    assert told.startswith("[None, None, None] True True"), told


@pytest.mark.parametrize("way", ["debug", "malloc", "pymalloc"])
def test_it_works_with_each_allocator_up_to_the_end_of_the_interpreter(way: str) -> None:
    opened(Sampler)
    told = python(
        """
import atexit, gc, sys, threading
from celery_trace.heap.sampler import Sampler
sampler = Sampler()
sampler.start(512)
class Late:
    def __del__(self):
        self.made = [bytearray(3000) for _ in range(9)]
late = Late()
sys.late = late
late.me = late
atexit.register(lambda: [bytearray(3000) for _ in range(9)])
gc.disable()
gc.freeze()
before = sampler.run(7)
kept = [bytearray(5000) for _ in range(300)]
def deep(count):
    return deep(count + 1)
try:
    deep(0)
except RecursionError:
    pass
threading.Thread(target=lambda: kept.append(bytearray(9000))).start()
print(abs(sum(pick.weight for pick in sampler.picks() if pick.tag == 7) / 1.5e6 - 1) < 0.1)
""",
        "-X",
        "dev",
        PYTHONMALLOC=way,
    )
    assert told == "True\n"


def test_it_bears_a_process_that_has_run_out_of_memory() -> None:
    opened(Sampler)
    told = python("""
import resource
from celery_trace.heap.sampler import Sampler
sampler = Sampler()
sampler.start(512)
resource.setrlimit(resource.RLIMIT_AS, (600_000_000, 600_000_000))
failures = 0
for _ in range(3):
    kept = []
    try:
        while True:
            kept.append(bytearray(3_000_000))
            kept.append([None] * 200_000)
            kept[-1].extend(kept[-1])
    except MemoryError:
        failures += 1
    full = sum(pick.weight for pick in sampler.picks())
    kept = None
print(failures, full > 1e8, sum(pick.weight for pick in sampler.picks()) < 1e7, sampler.is_on())
""")
    assert told == "3 True True True\n"


# --- tracemalloc -------------------------------------------------------------------------------------------


def test_it_never_touches_the_programs_own_tracemalloc(traced: TracedSampler) -> None:
    tracemalloc.start(3)
    traced.start(64)
    assert not traced.is_on()
    assert list(traced.picks()) == []
    traced.stop()
    assert tracemalloc.is_tracing()
    assert tracemalloc.get_traceback_limit() == 3


def test_tracing_that_the_program_has_begun_anew_is_not_ours(traced: TracedSampler) -> None:
    traced.start(64)
    tracemalloc.stop()
    assert not traced.is_on()
    tracemalloc.start(3)
    assert not traced.is_on()
    traced.stop()
    assert tracemalloc.is_tracing()


def test_a_program_that_starts_tracemalloc_gets_it_at_once_and_alone(traced: TracedSampler) -> None:
    before = (tracemalloc.start, tracemalloc.is_tracing)
    traced.start(64)
    kept = [bytes(5_000)]
    assert not tracemalloc.is_tracing(), "as a program asks before it starts"
    with pytest.raises(RuntimeError, match="must be tracing"):
        tracemalloc.take_snapshot()
    tracemalloc.start(3)
    assert tracemalloc.is_tracing()
    assert tracemalloc.get_traceback_limit() == 3
    assert tracemalloc.get_traced_memory()[0] < 5_000, "nothing that was traced for us"
    assert not traced.is_on()
    assert list(traced.picks()) == []
    traced.start(64)
    assert not traced.is_on()
    tracemalloc.stop()
    assert (tracemalloc.start, tracemalloc.is_tracing) == before
    assert kept


def test_it_goes_on_a_while_after_the_program_has_stopped_tracemalloc(
    traced: TracedSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced_module, "_AFTER_OTHERS_S", 0.1)
    traced.start(64)
    tracemalloc.start()
    tracemalloc.stop()
    traced.start(64)
    assert not traced.is_on(), "it may be needed again at once"

    def goes_on() -> bool:
        traced.start(64)
        return traced.is_on()

    wait_until(goes_on, "it traces again", every_s=0.05)


def test_a_traced_block_sees_what_it_keeps_alone_while_the_heap_is_watched(traced: TracedSampler) -> None:
    traced.start(64)
    run = TracedRun()
    run.begin()
    kept = bytes(50_000)
    change = run.end()
    assert [amount.bytes for amount in change.values() if amount.bytes > 10_000] == [sys.getsizeof(kept)]
    assert not tracemalloc.is_tracing()


def test_what_a_line_gains_is_a_birth_and_what_it_loses_the_youngest(traced: TracedSampler) -> None:
    traced.mark(keep_blocks.__code__, TAG)
    traced.start(64)
    kept: list[Any] = []
    for _ in range(4):
        traced.restore(traced.run(TAG))
        keep_blocks(kept, 10, 5000)
        picks = [pick for pick in tagged(traced) if pick.size > 30_000]
    births = [pick.run for pick in picks]
    assert len(births) == 4
    assert all(later == earlier + 1 for earlier, later in pairwise(births))
    del kept[25:]
    left = [(pick.run, pick.size) for pick in tagged(traced) if pick.size > 10_000]
    assert [run for run, _ in left] == births[:3]
    assert left[-1][1] < picks[2].size


def test_it_accounts_for_the_processor_time_of_tracing(traced: TracedSampler) -> None:
    traced.start(64)
    before = traced.stats()["calls"]
    kept: list[Any] = []
    began_s = os.times().user
    while os.times().user < began_s + 0.1:
        keep_blocks(kept, 100, 10)
        kept.clear()
    spent_s = (traced.stats()["calls"] - before) * traced.cost_s()
    assert 0.05 < spent_s < 0.5
    traced.stop()
    assert traced.cost_s() == 0.0
    assert traced.stats()["calls"] >= before


# --- what runs hold at most ---------------------------------------------------------------------------------


#: What runs held at most is counted for as long as the process lives: a tag for each test.
fresh_tags = count(1000)


def weigh(sampler: AnySampler, work: Callable[[], object], runs: int = 30) -> list[int]:
    """The peaks (bytes, as buckets say) of runs that do some work."""
    tag = next(fresh_tags)
    for _ in range(runs):
        before = sampler.run(tag)
        work()
        sampler.restore(before)
    return [bucket_bytes(bucket) for bucket, number in sampler.peaks(tag).items() for _ in range(number)]


@pytest.mark.parametrize("megabytes", [1, 8, 40])
def test_what_a_run_held_at_most_is_right_to_a_fifth(extension: Sampler, megabytes: int) -> None:
    extension.start(4096.0, seed=3)
    found = weigh(extension, lambda: [bytes(1000) for _ in range(megabytes * 1000)])
    assert len(found) == 30
    true = megabytes * 1000 * (1000 + 33 + 8)
    assert true * 0.8 < sorted(found)[15] < true * 1.45


def test_what_was_freed_before_more_was_taken_is_not_added_to_it(extension: Sampler) -> None:
    extension.start(4096.0, seed=3)

    def thrice() -> None:
        for _ in range(3):
            [bytes(1000) for _ in range(4000)]

    assert sorted(weigh(extension, thrice))[15] < 7_000_000


def test_a_run_that_was_begun_before_the_sampler_is_not_counted(extension: Sampler) -> None:
    tag = next(fresh_tags)
    before = extension.run(tag)
    extension.start(4096.0)
    extension.restore(before)
    assert extension.peaks(tag) == {}


def test_the_run_around_another_one_has_its_own_peak(extension: Sampler) -> None:
    extension.start(1024.0, seed=3)
    one, other = next(fresh_tags), next(fresh_tags)
    for _ in range(5):
        outer = extension.run(one)
        mine = [bytes(1000) for _ in range(1000)]
        inner = extension.run(other)
        theirs = [bytes(1000) for _ in range(8000)]
        extension.restore(inner)
        extension.restore(outer)
        del mine, theirs
    assert sum(extension.peaks(one).values()) == sum(extension.peaks(other).values()) == 5
    assert max(map(bucket_bytes, extension.peaks(one))) < 2_000_000
    assert min(map(bucket_bytes, extension.peaks(other))) > 7_000_000


def test_peaks_stay_right_when_the_sample_is_thinned_out_in_a_run(extension: Sampler) -> None:
    extension.start(64.0, seed=3)
    found = weigh(extension, lambda: [bytes(1000) for _ in range(20_000)], runs=5)
    assert extension.stats()["mean_bytes"] > 64.0
    assert all(16_000_000 < one < 30_000_000 for one in found)


def test_a_fork_begins_without_the_peaks_of_its_parent(extension: Sampler) -> None:
    extension.start(4096.0)
    tag = next(fresh_tags)
    extension.restore(extension.run(tag))
    assert extension.peaks(tag)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if extension.peaks(tag) == {} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_without_the_extension_no_peak_is_known(traced: TracedSampler) -> None:
    traced.start(4096.0)
    assert weigh(traced, lambda: bytes(100_000)) == []
