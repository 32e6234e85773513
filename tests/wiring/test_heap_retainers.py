"""What keeps survivors alive, found in real heaps; and that the search runs none of the user's code."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import textwrap
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from celery_trace.heap import retainers
from celery_trace.heap.retainers import Found, search
from celery_trace.model import EntryGrowth
from tests.support.heaps import block_of, referrers

HERE = f"{__name__} (module)"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def can_search() -> None:
    """Skipped, or under CI failed, where the extension was not built."""
    referrers()


class Item:
    """What a task keeps."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.text = f"item {number} " * 10


class Service:
    """What keeps it."""

    kept_by_class: ClassVar[list[Any]] = []
    newest: ClassVar[Entry | None] = None

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def handle(self) -> None:
        """A method that may be bound."""


class Slotted:
    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: list[Any] = []


class TtlCache:
    """As the caches of libraries: a bound, and a dict behind it."""

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._data: OrderedDict[int, Any] = OrderedDict()


class Entry:
    """Of a linked list."""

    def __init__(self, after: Entry | None) -> None:
        self.after = after
        self.payload = bytes(1_000)


def find(things: Iterable[Any], *, share: bool = False) -> Found:
    """What keeps these alive; the test itself must hold none of them but by the holder."""
    blocks = [block_of(thing) for thing in things]
    return all_steps(search(referrers(), {"site": blocks}))["site"]


def all_steps(steps: Iterator[dict[Any, Found] | None]) -> dict[Any, Found]:
    *passes, found = steps
    assert passes, "it pauses between two passes"
    assert set(passes) == {None}
    assert found is not None
    return found


def spread(length: int = 60) -> Iterable[int]:
    return range(0, length, 4)


# --- holders ------------------------------------------------------------------------------------------

_by_key: dict[Any, bytes] = {}
_list: list[Any] = []
_set: set[bytes] = set()
_nested: defaultdict[str, defaultdict[int, list[bytes]]] = defaultdict(lambda: defaultdict(list))
_ring: deque[Any] = deque(maxlen=100)
_items: dict[int, Item] = {}
_service = Service()
_slotted = Slotted()
_cache = TtlCache(500)
_newest: Entry | None = None
_callbacks: list[Any] = []
_suspended: list[Any] = []
_local = threading.local()


@functools.lru_cache(maxsize=500)
def bounded(number: int) -> bytes:
    """Remembers some."""
    return bytes(500 + number)


@functools.cache
def unbounded(number: int) -> bytes:
    """Remembers all."""
    return bytes(500 + number)


@functools.cache
def by_name(name: str) -> bytes:
    """A cache whose keys are the argument itself."""
    return bytes(500 + len(name))


def with_default(number: int, seen: list[bytes] = []) -> list[bytes]:  # noqa: B006 - the leak that is looked for
    """Keeps all in its default argument."""
    seen.append(bytes(500 + number))
    return seen


def counter() -> Callable[[int], list[bytes]]:
    seen: list[bytes] = []

    def count(number: int) -> list[bytes]:
        seen.append(bytes(500 + number))
        return seen

    return count


_count = counter()


def generate() -> Iterator[list[bytes]]:
    seen: list[bytes] = []
    while True:
        seen.append(bytes(500))
        yield seen


@pytest.fixture(autouse=True)
def begins_empty() -> Iterator[None]:
    yield
    global _newest
    for one in (_by_key, _list, _set, _nested, _ring, _items, _callbacks, _suspended, Service.kept_by_class):
        one.clear()
    for cached in (bounded, unbounded, by_name):
        cached.cache_clear()
    with_default.__defaults__[0].clear()  # type: ignore[index]
    _count(0).clear()
    _service.__dict__.clear()
    _slotted.entries.clear()
    _cache._data.clear()
    _local.__dict__.clear()
    _newest = Service.newest = None


def test_bytes_of_a_dict_are_held_by_the_modules_variable() -> None:
    for number in range(60):
        _by_key[number] = bytes(500 + number)
    found = find(_by_key[number] for number in spread())
    assert found.holder.path == [HERE, "_by_key: dict[60]", "bytes × 60"]
    assert (found.holder.searched, found.holder.bound, found.length) == (True, "", 60)
    ((name, count, size),) = found.types
    assert (name, count) == ("bytes", 60)
    assert size == pytest.approx(sum(map(sys.getsizeof, _by_key.values())), rel=0.1)


def test_objects_of_a_list_are_weighed_with_what_they_hold() -> None:
    _list.extend(Item(number) for number in range(60))
    found = find(_list[number] for number in spread())
    assert found.holder.path == [HERE, "_list: list[60]", "Item × 60"]
    ((name, count, size),) = found.types
    assert (name, count) == (f"{__name__}.Item", 60)
    assert 60 * 150 < size < 60 * 600


def test_what_an_object_holds_leads_to_the_container_of_the_objects() -> None:
    _items.update({number: Item(number) for number in range(60)})
    found = find(_items[number].text for number in spread())
    assert found.holder.path == [HERE, "_items: dict[60]", "Item × 60"]


def test_texts_of_a_set() -> None:
    _set.update(bytes(500 + number) for number in range(60))
    assert find(list(_set)[::4]).holder.path == [HERE, "_set: set[60]", "bytes × 60"]


def test_nested_dicts_are_named_from_the_outermost() -> None:
    for number in range(60):
        _nested["Ann Smith"][number % 3].append(bytes(500 + number))
    path = find(_nested["Ann Smith"][number % 3][number // 3] for number in spread()).holder.path
    assert path[:3] == [HERE, "_nested: defaultdict[1]", "['Ann Smith']: defaultdict[3]"]


def test_a_class_attribute() -> None:
    Service.kept_by_class.extend(Item(number) for number in range(60))
    found = find(Service.kept_by_class[number] for number in spread())
    assert found.holder.path == [f"{__name__}.Service (class)", "kept_by_class: list[60]", "Item × 60"]


def test_an_attribute_of_a_singleton() -> None:
    _service.orders = [Item(number) for number in range(60)]
    found = find(_service.orders[number] for number in spread())
    assert found.holder.path == [HERE, "_service: Service", "orders: list[60]", "Item × 60"]


def test_an_instance_with_slots() -> None:
    _slotted.entries.extend(Item(number) for number in range(60))
    found = find(_slotted.entries[number] for number in spread())
    assert found.holder.path == [HERE, "_slotted: Slotted", "entries: list[60]", "Item × 60"]


def test_a_closure_names_its_function_and_its_variable() -> None:
    for number in range(60):
        _count(number)
    seen = _count(0)
    blocks = [seen[number] for number in spread()]
    del seen
    path = find(blocks.pop() for _ in range(15)).holder.path
    assert path[0] == HERE
    assert any("count() (function)" in step for step in path)
    assert path[-2:] == ["seen: list[61]", "bytes × 61"]


def test_a_default_argument() -> None:
    for number in range(60):
        with_default(number)
    seen = with_default.__defaults__[0]  # type: ignore[index]
    blocks = [block_of(seen[number]) for number in spread()]
    del seen
    path = all_steps(search(referrers(), {1: blocks}))[1].holder.path
    assert path == [HERE, "with_default: with_default() (function)", "default argument: list[60]", "bytes × 60"]


def test_an_unbounded_cache_of_a_function_has_no_bound() -> None:
    found = find([unbounded(number) for number in range(60)][::4])
    assert found.holder.path == [HERE, "unbounded: lru_cache[60]", "bytes × 60"]
    assert (found.holder.bound, found.length) == ("", 60)


@pytest.mark.parametrize(("calls", "full"), [(60, False), (700, True)])
def test_a_bounded_cache_of_a_function_says_how_full_it_is(calls: int, full: bool) -> None:
    for number in range(calls):
        bounded(number)
    held = min(calls, 500)
    found = find([bounded(number) for number in range(calls - held, calls)][:: held // 15])
    assert (found.holder.bound, found.holder.full) == (f"lru_cache ({held}/500)", full)
    assert found.holder.path[:2] == [HERE, f"bounded: lru_cache ({held}/500)"]


def test_a_bounded_deque_says_how_full_it_is() -> None:
    _ring.extend(Item(number) for number in range(60))
    found = find(_ring[number] for number in spread())
    assert found.holder.path == [HERE, "_ring: deque (60/100)", "Item × 60"]
    assert (found.holder.bound, found.holder.full) == ("deque (60/100)", False)
    _ring.extend(Item(number) for number in range(100))
    assert find(_ring[number] for number in spread(100)).holder.full


def test_a_cache_of_a_library_is_known_by_its_maxsize() -> None:
    _cache._data.update({number: Item(number) for number in range(60)})
    found = find(_cache._data[number] for number in spread())
    assert (found.holder.bound, found.holder.full) == ("TtlCache (maxsize=500)", False)
    assert found.holder.path[:2] == [HERE, "_cache: TtlCache (maxsize=500)"]
    _cache._data.update({number: Item(number) for number in range(500)})
    assert find(_cache._data[number] for number in spread(500)).holder.full


def test_a_bound_method() -> None:
    for number in range(60):
        _callbacks.append(Service(payload=bytes(500 + number)).handle)
    found = find(_callbacks[number].__self__.payload for number in spread())
    assert found.holder.path[:2] == [HERE, "_callbacks: list[60]"]


def test_suspended_generators() -> None:
    for _ in range(60):
        one = generate()
        next(one)
        _suspended.append(one)
    blocks = [block_of(next(_suspended[number])[0]) for number in spread()]
    del one
    path = all_steps(search(referrers(), {1: blocks}))[1].holder.path
    assert path[:2] == [HERE, "_suspended: list[60]"]
    assert path[2] == "generator × 60"


def test_a_thread_local_is_reached() -> None:
    _local.seen = [Item(number) for number in range(60)]
    found = find(_local.seen[number] for number in spread())
    assert found.holder.path == [HERE, "_local: _local", "seen: list[60]", "Item × 60"]


def test_an_attribute_of_a_thread_that_waits() -> None:
    class Worker(threading.Thread):
        def __init__(self) -> None:
            super().__init__(name="theirs")
            self.seen = [Item(number) for number in range(60)]
            self.done = threading.Event()

        def run(self) -> None:
            self.done.wait(60)

    thread = Worker()
    thread.start()
    done = thread.done
    blocks = [block_of(thread.seen[number]) for number in spread()]
    try:
        del thread
        path = all_steps(search(referrers(), {1: blocks}))[1].holder.path
        assert path == ["Worker (thread)", "seen: list[60]", "Item × 60"]
    finally:
        done.set()
        for running in threading.enumerate():
            if running.name == "theirs":
                running.join()


def test_a_linked_list_is_held_by_what_holds_its_head() -> None:
    global _newest
    for _ in range(60):
        _newest = Entry(_newest)
    blocks, entry = [], _newest
    while entry is not None:
        blocks.append(block_of(entry.payload))
        entry = entry.after
    found = all_steps(search(referrers(), {1: [*blocks[:4], *blocks[4::4]]}))[1]
    assert found.holder.path[:2] == [HERE, "_newest: Entry"]


def test_what_holds_all_is_told_before_a_cache_that_holds_some() -> None:
    things = [[number, "kept"] for number in range(100)]
    _items.update({number: Service(kept=thing) for number, thing in enumerate(things)})
    _list.extend(things[60:])  # nearer to a root
    del things
    found = find(_items[number].kept for number in range(0, 100, 4))
    assert found.holder.path[1] == "_items: dict[100]"


def test_what_holds_objects_is_told_and_not_what_holds_weak_references_to_them() -> None:
    _list.extend(Item(number) for number in range(60))
    _callbacks.extend([weakref.ref(item), weakref.ref(item, print)] for item in _list)
    weak = [block_of(reference) for number in spread() for reference in _callbacks[number]]
    items = [block_of(_list[number]) for number in spread()]
    found = all_steps(search(referrers(), {1: [*weak, *items]}))[1]
    assert found.holder.path == [HERE, "_list: list[60]", "Item × 60"]
    found = all_steps(search(referrers(), {1: weak}))[1]
    assert found.holder.path[1] == "_callbacks: list[60]"


def test_the_entries_of_a_container_are_counted_by_their_order() -> None:
    _list.extend(Item(number) for number in range(120))
    blocks = [block_of(_list[number]) for number in range(0, 120, 10)]
    born = {address: 10 * at + 1 for at, (address, _) in enumerate(blocks)}
    found = all_steps(search(referrers(), {1: blocks}, born={1: born}))[1]
    assert found.holder.entries == EntryGrowth(early=55, late=55, runs=110)


def test_a_cache_that_removes_its_oldest_entries_has_a_bound_that_only_its_code_knows() -> None:
    def keep(number: int) -> None:
        _items[number] = Item(number)
        if len(_items) > 1_000:
            _items.popitem()

    for number in range(60):
        keep(number)
    blocks = [block_of(_items[number]) for number in spread()]
    found = all_steps(search(referrers(), {1: blocks}, codes={1: [keep.__code__]}))[1]
    assert (found.holder.bound, found.holder.full) == (retainers.EVICTED, False)


@pytest.mark.parametrize(
    ("make", "recycled"),
    [(lambda number: {"number": number}, True), (lambda number: (number, "a"), True), (bytes, False), (Item, False)],
    ids=["dicts", "tuples", "bytes", "instances"],
)
def test_what_comes_from_free_lists_is_said(make: Callable[[int], Any], recycled: bool) -> None:
    _list.extend(make(1_000 + number) for number in range(60))
    assert find(_list[number] for number in spread()).holder.recycled is recycled


def test_a_long_chain_is_climbed_however_old_the_blocks_are() -> None:
    global _newest
    payloads = []
    for _ in range(3_000):
        _newest = Entry(_newest)
        payloads.append(block_of(_newest.payload))
    found = all_steps(search(referrers(), {1: payloads[:1_000:100]}))[1]
    assert found.holder.path[:2] == [HERE, "_newest: Entry"]


def test_a_chain_is_climbed_while_it_grows() -> None:
    global _newest
    payloads = []
    for _ in range(100):
        _newest = Entry(_newest)
        payloads.append(block_of(_newest.payload))
    steps = search(referrers(), {1: payloads[:50:5]})
    found = None
    for found in steps:  # noqa: B007 - the last one is looked at
        for _ in range(100):  # faster than one level a pass
            _newest = Entry(_newest)
    assert found is not None
    assert found[1].holder.path[:2] == [HERE, "_newest: Entry"]


def test_a_chain_that_grows_meanwhile_is_named_by_the_attribute_of_its_class() -> None:
    payloads = []
    for _ in range(100):
        Service.newest = Entry(Service.newest)
        payloads.append(block_of(Service.newest.payload))
    found = None
    for found in search(referrers(), {1: payloads[:50:5]}):  # noqa: B007 - the last one is looked at
        Service.newest = Entry(Service.newest)
    assert found is not None
    assert found[1].holder.path[:2] == [f"{__name__}.Service (class)", "newest: Entry"]


def test_a_pass_climbs_to_the_end_of_a_chain_that_nothing_else_refers_to() -> None:
    chain = [Entry(None)]
    for _ in range(20):
        chain.append(Entry(chain[-1]))
    oldest, newest = id(chain[0]), id(chain[-1])
    holder = chain.pop()
    chain.clear()
    matches = referrers()([(oldest, 1)], 6, True)
    assert {address for address, _, _ in matches} == {oldest}
    assert newest in {id(referent) for _, referent, _ in matches}
    del matches, holder


@pytest.mark.parametrize(("collects", "says"), [(True, retainers.NO_ROOT), (False, retainers.UNCOLLECTED)])
def test_what_nothing_leads_to_is_said_not_to_be_found(
    collects: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.disable()
    assert not retainers.collects()
    monkeypatch.setattr(retainers, "collects", lambda: collects)
    try:
        blocks = []
        for number in range(20):
            cycle: list[Any] = [bytes(500 + number)]
            cycle.append(cycle)
            blocks.append(block_of(cycle[0]))
        del cycle
        found = all_steps(search(referrers(), {1: blocks}))[1]
    finally:
        gc.enable()
    assert (found.holder.searched, found.holder.path, found.holder.why) == (True, [], says)


def test_blocks_that_are_free_by_now_find_nothing_and_break_nothing() -> None:
    # No round address: the unused bytes after three flags of a TypeVar may hold one by chance.
    steps = list(search(referrers(), {1: [(0x10, 500), ((1 << 46) + 0x1230, 64)]}))
    assert steps[-1] is not None
    assert steps[-1][1].holder == retainers.Holder(searched=True, why=retainers.NO_ROOT)


_numbers = {(1 << 46) + 0x5670}


def test_a_small_set_of_numbers_that_are_addresses_holds_no_block() -> None:
    """The hash of a number is the number, and a small set has the hashes in its own struct."""
    steps = list(search(referrers(), {1: [((1 << 46) + 0x5670, 64)]}))
    assert steps[-1] is not None
    assert steps[-1][1].holder == retainers.Holder(searched=True, why=retainers.NO_ROOT)
    assert len(_numbers) == 1


# --- processes of their own ------------------------------------------------------------------------------


def in_a_process(text: str) -> str:
    """Run a programme that prints what was found; it must not be in this one, as it freezes or ends."""
    programme = textwrap.dedent(
        """
        import gc, sys
        from tests.support.heaps import block_of, referrers
        from celery_trace.heap.retainers import search

        def find(blocks):
            *_, found = search(referrers(), {1: blocks})
            return found[1]

        """
    ) + textwrap.dedent(text)
    done = subprocess.run(
        [sys.executable, "-c", programme], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_frozen_heap_is_searched_too() -> None:
    said = in_a_process(
        """
        kept = [[number] * 50 for number in range(60)]
        blocks = [block_of(one) for one in kept[::4]]
        gc.collect()
        gc.freeze()
        print(find(blocks).holder.path)
        print(gc.get_freeze_count() > 1000)
        """
    )
    assert said == "['__main__ (module)', 'kept: list[60]', 'list × 60']\nTrue"


def test_what_only_c_code_holds_has_no_root() -> None:
    said = in_a_process(
        """
        import atexit
        blocks = []
        def register(number):
            payload = bytes(500 + number)
            blocks.append(block_of(payload))
            atexit.register(len, payload)
        for number in range(20):
            register(number)
        found = find(blocks)
        print(found.holder.path, found.holder.searched)
        """
    )
    assert said == "[] True"


# --- what it must never do ---------------------------------------------------------------------------------

ran: list[str] = []


class Nosy:
    """As lazy objects do, it has an opinion on all that is asked of it."""

    def __init__(self, number: int) -> None:
        self.payload = bytes(500 + number)

    @property
    def __class__(self) -> type:  # type: ignore[override]
        ran.append("__class__")
        return dict

    @property
    def maxsize(self) -> int:
        ran.append("maxsize")
        return 7

    def __getattr__(self, name: str) -> Any:
        ran.append(name)
        raise AttributeError(name)

    def __getattribute__(self, name: str) -> Any:
        if name != "payload":
            ran.append(name)
        return object.__getattribute__(self, name)

    def __repr__(self) -> str:
        ran.append("__repr__")
        return "nosy"

    def __len__(self) -> int:
        ran.append("__len__")
        return 1

    def __bool__(self) -> bool:
        ran.append("__bool__")
        return False

    def __eq__(self, other: object) -> bool:
        ran.append("__eq__")
        return True

    def __hash__(self) -> int:
        ran.append("__hash__")
        return 1

    def __sizeof__(self) -> int:
        ran.append("__sizeof__")
        return 1

    def __iter__(self) -> Iterator[Any]:
        ran.append("__iter__")
        return iter(())


class Ledger(dict[Any, Any]):
    """A dict with an opinion on its values."""

    def values(self) -> Any:
        ran.append("values")
        return super().values()

    def __len__(self) -> int:
        ran.append("Ledger.__len__")
        return super().__len__()

    def __iter__(self) -> Iterator[Any]:
        ran.append("Ledger.__iter__")
        return super().__iter__()


class NosyMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        ran.append(f"meta {name}")
        return super().__getattribute__(name)

    def __hash__(cls) -> int:
        ran.append("meta __hash__")
        return 1

    def __eq__(cls, other: object) -> bool:
        ran.append("meta __eq__")
        return cls is other


class OfMeta(metaclass=NosyMeta):
    """An instance of it is harmless, its class is not."""

    def __init__(self, number: int = 0) -> None:
        self.payload = bytes(500 + number)


class Proxy:
    """As proxies of libraries, it answers for something else."""

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        ran.append("__dict__")
        return {"maxsize": 7}


class Lazy(types.ModuleType):
    """Loads itself at the first question, as importlib.util.LazyLoader has it."""

    def __getattribute__(self, name: str) -> Any:
        ran.append(f"module {name}")
        return super().__getattribute__(name)


_ledger = Ledger()
_nosy: list[Any] = []


def test_no_method_and_no_property_of_the_users_ever_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = Lazy("lazy")
    lazy.seen = [OfMeta(number) for number in range(60)]
    proxy = Proxy()
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    of_lazy = [block_of(one.payload) for one in lazy.seen[::4]]
    blocks = []
    for number in range(60):
        nosy = Nosy(number)
        blocks.append(block_of(nosy.payload))
        if number % 2:
            _ledger[number] = nosy
        else:
            _nosy.append([nosy, OfMeta(), proxy])
        del nosy
    del lazy, proxy
    ran.clear()
    try:
        found = all_steps(search(referrers(), {1: blocks[::3], 2: blocks[1::2], 3: blocks[::2], 4: of_lazy}))
        assert found[4].holder.path == ["lazy (module)", "seen: list[60]", "OfMeta × 60"]
        assert all(one.holder.path for one in found.values())
        assert ran == []
    finally:
        _ledger.clear()
        _nosy.clear()


def test_keys_are_data_and_are_never_shown() -> None:
    for number in range(60):
        _by_key[f"card_{number:04d}_of_ann"] = bytes(500 + number)
    _items.update({number: Item(number) for number in range(60)})
    _service.__dict__["by_customer"] = {f"ann{number}@example.org": Item(number) for number in range(60)}
    customers = [*_service.by_customer.values()]
    blocks = {
        "dict": [block_of(_by_key[key]) for key in list(_by_key)[::4]],
        "one": [block_of(next(iter(_by_key.values())))],
        "attribute": [block_of(thing) for thing in customers[::4]],
        "call": [block_of(by_name(f"ann{number}")) for number in range(60)][::4],
    }
    del customers
    found = all_steps(search(referrers(), blocks))
    assert "ann" not in str(found)
    assert found["dict"].holder.path == [HERE, "_by_key: dict[60]", "bytes × 60"]
    assert found["attribute"].holder.path[2:] == ["by_customer: dict[60]", "Item × 60"]
    assert found["call"].holder.path == [HERE, "by_name: lru_cache[60]", "bytes × 60"]
    assert found["one"].holder.path == [HERE, "_by_key: dict[60]", "bytes × 60"]


def test_sites_are_searched_by_the_same_passes() -> None:
    _list.extend(Item(number) for number in range(60))
    for number in range(60):
        _by_key[number] = bytes(500 + number)
    asked: list[int] = []
    pass_over = referrers()

    def counted(blocks: list[tuple[int, int]], most: int, climb: bool) -> list[tuple[int, Any, Any]]:
        asked.append(len(blocks))
        return pass_over(blocks, most, climb)

    blocks = {
        1: [block_of(_list[number]) for number in spread()],
        2: [block_of(_by_key[number]) for number in spread()],
    }
    alone = 0
    for key, some in blocks.items():
        all_steps(search(counted, {key: some}))
        alone = max(alone, len(asked))
        asked.clear()
    found = all_steps(search(counted, blocks))
    assert len(asked) <= alone
    assert [found[key].holder.path[1] for key in (1, 2)] == ["_list: list[60]", "_by_key: dict[60]"]


def test_nothing_is_kept_alive_by_a_search_that_has_ended_or_was_dropped() -> None:
    _list.extend(Item(number) for number in range(60))
    refs = [weakref.ref(one) for one in _list]
    blocks = [block_of(_list[number]) for number in spread()]
    all_steps(search(referrers(), {1: blocks}))
    dropped = search(referrers(), {1: blocks})
    next(dropped)
    dropped.close()
    del dropped
    gc.disable()  # it must not take a collection
    try:
        _list.clear()
        assert [ref() for ref in refs] == [None] * 60
    finally:
        gc.enable()


def test_searches_that_were_dropped_leave_no_trace() -> None:
    _list.extend(Item(number) for number in range(60))
    blocks = [block_of(_list[number]) for number in spread()]
    before = len(retainers._walking)
    for _ in range(5):
        steps = search(referrers(), {1: blocks})
        next(steps)
        steps.close()
    assert len(retainers._walking) == before


class Loop:
    """Only a frame refers to it."""

    def __init__(self) -> None:
        self.turns = [bytes(500 + number) for number in range(20)]


def test_what_the_loop_of_a_process_holds_is_found_below_it() -> None:
    loop = Loop()
    blocks = [block_of(turn) for turn in loop.turns]
    assert all_steps(search(referrers(), {1: blocks}))[1].holder.path == []
    retainers.hold(loop)
    found = all_steps(search(referrers(), {1: blocks}))[1]
    assert found.holder.path == ["Loop", "turns: list[20]", "bytes × 20"]
