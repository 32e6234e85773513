"""Look-alikes: caches and tables that are bounded by their keys, their size or their age."""

from __future__ import annotations

import enum
import functools
import random
import weakref
from collections import Counter, OrderedDict
from typing import Any

from tests.corpus.cases import decoy

_expiring: dict[int, tuple[int, bytes]] = {}


@decoy
def cache_by_age(number: int) -> None:
    _expiring[number] = (number, b"%08d" % number * 200)
    for key in [key for key, (born, _) in _expiring.items() if born < number - 60]:
        del _expiring[key]


_fifty: dict[int, str] = {}


@decoy(full_by=700)
def memo_of_fifty_keys(number: int) -> None:
    key = random.Random(number).randrange(50)
    _fifty.setdefault(key, f"{key:08d}" * 200)


_two_hundred: dict[int, str] = {}


@decoy(full_by=3_000)
def memo_of_two_hundred_keys(number: int) -> None:
    key = random.Random(number).randrange(200)
    _two_hundred.setdefault(key, f"{key:08d}" * 200)


_five_hundred: dict[int, str] = {}


@decoy(full_by=6_000)
def memo_of_five_hundred_keys(number: int) -> None:
    key = random.Random(number).randrange(500)
    _five_hundred.setdefault(key, f"{key:08d}" * 200)


_skewed: dict[int, str] = {}


@decoy(full_by=9_000)
def memo_of_skewed_keys(number: int) -> None:
    key = int(300 * random.Random(number).random() ** 3)
    _skewed.setdefault(key, f"{key:08d}" * 200)


_chosen: dict[int, bytes] = {}


@decoy(full_by=200)
def random_eviction(number: int) -> None:
    if len(_chosen) >= 100:
        del _chosen[random.Random(number).choice(list(_chosen))]
    _chosen[number] = b"%08d" % number * 200


class LeastOftenUsed:
    def __init__(self) -> None:
        self.values: dict[int, bytes] = {}
        self.uses: Counter[int] = Counter()

    def get(self, key: int) -> bytes:
        self.uses[key] += 1
        if key not in self.values:
            if len(self.values) >= 50:
                least = min(self.values, key=self.uses.__getitem__)
                del self.values[least], self.uses[least]
            self.values[key] = b"%08d" % key * 200
        return self.values[key]


_least_often_used = LeastOftenUsed()


@decoy(full_by=300)
def least_often_used(number: int) -> None:
    _least_often_used.get(random.Random(number).randrange(150))


class Catalogue:
    @functools.lru_cache(maxsize=500)  # noqa: B019 - there is one instance
    def page(self, number: int) -> list[int]:
        return [number] * 200


_catalogue = Catalogue()


@decoy(full_by=500)
def bounded_cache_on_a_method(number: int) -> None:
    _catalogue.page(number)


class Colour(enum.Enum):
    RED, GREEN, BLUE = range(3)


@functools.cache
def _palette(colour: Colour) -> list[str]:
    return [f"{colour.name} {shade}" for shade in range(200)]


@decoy
def cache_over_an_enum(number: int) -> None:
    _palette(Colour(number % 3))


class Rights(enum.Flag):
    A, B, C, D, E, F, G, H = (1 << place for place in range(8))


@decoy(full_by=300)
def combinations_of_flags(number: int) -> None:
    str(Rights(number % 256))


class Page:
    def __init__(self, number: int) -> None:
        self.text = f"{number:08d}" * 200


_weak: weakref.WeakValueDictionary[int, Page] = weakref.WeakValueDictionary()


@decoy
def weak_values(number: int) -> None:
    page = _weak[number] = Page(number)
    assert page.text


_notes: weakref.WeakKeyDictionary[Page, list[int]] = weakref.WeakKeyDictionary()
_open: list[Page] = []


@decoy
def weak_keys(number: int) -> None:
    page = Page(number)
    _notes[page] = [number] * 200
    _open[:] = [*_open[-20:], page]


class Generations:
    young: dict[int, bytes] = {}  # noqa: RUF012
    old: dict[int, bytes] = {}  # noqa: RUF012


@decoy(full_by=300)
def two_generations(number: int) -> None:
    Generations.young[number] = b"%08d" % number * 150
    if len(Generations.young) >= 75:
        Generations.young, Generations.old = {}, Generations.young


class LruCache:
    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.entries: OrderedDict[int, bytes] = OrderedDict()

    def put(self, key: int, value: bytes) -> None:
        self.entries[key] = value
        if len(self.entries) > self.maxsize:
            self.entries.popitem(last=False)


_late = LruCache(maxsize=1_500)


@decoy(full_by=1_600)
def cache_that_fills_late(number: int) -> None:
    _late.put(number, b"%08d" % number * 100)


_without_a_name: OrderedDict[int, bytes] = OrderedDict()


@decoy(full_by=400)
def eviction_without_a_named_bound(number: int) -> None:
    _without_a_name[number] = b"%08d" % number * 200
    if len(_without_a_name) > 200:
        _without_a_name.popitem(last=False)


_of_this_version: dict[int, str] = {}


@decoy
def cache_of_one_version(number: int) -> None:
    if number % 90 == 0:
        _of_this_version.clear()
    _of_this_version[number] = f"{number:08d}" * 150


_latest: dict[int, list[int]] = {}


@decoy
def replaced_values(number: int) -> None:
    _latest[number % 100] = [number] * 200


_of_user: dict[str, dict[str, Any]] = {}


@decoy(full_by=800)
def profiles_of_the_same_users(number: int) -> None:
    user = f"user {random.Random(number).randrange(80)}"
    _of_user[user] = {"seen": number, "text": f"{number:08d}" * 100}


_sampled: list[bytes] = []


@decoy(full_by=200)
def reservoir_sample(number: int) -> None:
    chooser = random.Random(number)
    if len(_sampled) < 100:
        _sampled.append(b"%08d" % number * 200)
    elif chooser.random() < 0.3:
        _sampled[chooser.randrange(100)] = b"%08d" % number * 200
