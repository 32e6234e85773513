"""Objects are read without running their code, and named on the path to them."""

from __future__ import annotations

import functools
import sys
import types
from collections import OrderedDict, deque
from typing import Any

import pytest

from celery_trace.heap.objects import (
    attributes,
    bound_of,
    entries_of,
    is_a,
    length_of,
    short_name,
    type_name,
    types_in,
    weight_of,
)
from celery_trace.heap.paths import PathText


class _Meta(type):
    def __eq__(cls, other: object) -> bool:
        raise AssertionError("the metaclass was asked")

    def __hash__(cls) -> int:
        raise AssertionError("the metaclass was asked")


class _Hostile(metaclass=_Meta):
    """Any code of it that runs fails the test."""

    def __init__(self) -> None:
        self.kept = [1, 2]

    def __len__(self) -> int:
        raise AssertionError("its length was asked")

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was read")


class _Slotted:
    __slots__ = ("kept", "missing")

    def __init__(self) -> None:
        self.kept = {"a": 1}


class _Pool:
    def __init__(self, held: int, max_size: float) -> None:
        self.max_size = max_size
        self.items = list(range(held))


@functools.lru_cache(maxsize=3)
def _cached(number: int) -> int:
    return number


def test_no_code_of_an_object_runs() -> None:
    thing = _Hostile()
    assert length_of(thing) == -1
    assert entries_of(thing) == []
    assert bound_of(thing) == ("", False)
    assert attributes(thing) == {"kept": [1, 2]}
    assert not is_a(thing, dict)
    assert weight_of(thing) > 0
    assert short_name(type(thing)) == "_Hostile"


@pytest.mark.parametrize(
    ("thing", "length"),
    [([1, 2], 2), ({}, 0), (OrderedDict(a=1), 1), (bytearray(5), 5), (deque([1]), 1), ("text", -1), (5, -1)],
)
def test_only_known_containers_have_a_length(thing: object, length: int) -> None:
    assert length_of(thing) == length


def test_entries_are_the_values_of_dicts_and_the_items_of_others() -> None:
    assert entries_of({"a": 1}) == [1]
    assert entries_of((1, 2)) == [1, 2]
    assert entries_of(bytearray(5)) == []
    assert entries_of("text") == []


def test_bounds_of_caches_deques_and_pools() -> None:
    _cached.cache_clear()
    _cached(1)
    assert bound_of(_cached) == ("lru_cache (1/3)", False)
    assert bound_of(functools.lru_cache(None)(len)) == ("", False)
    assert bound_of(deque([1, 2], maxlen=2)) == ("deque (2/2)", True)
    assert bound_of(deque([1])) == ("", False)
    assert bound_of(_Pool(3, 5)) == ("_Pool (max_size=5)", False)
    assert bound_of(_Pool(5, 5)) == ("_Pool (max_size=5)", True)
    assert bound_of(_Pool(5, float("inf"))) == ("", False)


def test_slots_are_attributes_as_far_as_they_are_set() -> None:
    assert attributes(_Slotted()) == {"kept": {"a": 1}}
    assert attributes([]) == {}
    assert attributes(_Slotted) == {}


def test_a_weight_includes_the_contents_but_no_modules_or_classes() -> None:
    text = "x" * 10_000
    assert weight_of([text]) == sys.getsizeof([text]) + sys.getsizeof(text)
    assert weight_of([sys, int, weight_of]) == sys.getsizeof([sys, int, weight_of])
    assert weight_of([text, b"y" * 10_000], most=1) < 1_000


def test_the_types_of_contents_are_counted_and_the_heaviest_comes_first() -> None:
    entries = [1, "x" * 5_000, 2, 3]
    assert [(name, count) for name, count, _ in types_in(entries, entries, entries[0])] == [("str", 1), ("int", 3)]
    assert types_in([], None, "text")[0][:2] == ("str", 1)
    assert type_name(_Slotted) == f"{__name__}._Slotted"


def test_a_path_names_the_module_the_variable_and_what_is_held() -> None:
    module = types.ModuleType("shop")
    orders = [_Slotted()]
    vars(module)["orders"] = orders
    chain = [vars(module), orders, orders[0]]
    text = PathText(chain, {id(vars(module)): "shop"})
    assert text.steps(chain) == ["shop (module)", "orders: list[1]", "_Slotted × 1"]
    assert id(vars(module)) in text.namespaces


def test_a_dict_of_attributes_is_no_step_and_its_keys_are_names() -> None:
    pool = _Pool(2, 5)
    chain = [pool, vars(pool), pool.items, pool.items[0]]
    text = PathText(chain, {})
    assert text.namespaces == {id(vars(pool))}
    assert text.steps(chain, "self") == ["self: _Pool (max_size=5)", "items: list[2]", "int × 2"]


def test_a_closure_is_named_by_its_variable() -> None:
    rows: list[int] = [1]

    def add() -> None:
        rows.append(1)

    assert add.__closure__ is not None
    chain = [add, add.__closure__, add.__closure__[0], rows, rows[0]]
    steps = PathText(chain, {}).steps(chain)
    assert steps[0].endswith("add() (function)")
    assert steps[1:] == ["rows: list[1]", "int × 1"]
