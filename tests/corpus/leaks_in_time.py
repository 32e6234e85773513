"""Tasks that leak little or much, rarely or late, in two places, through others, or beside what is no leak."""

from __future__ import annotations

import collections
import itertools

from tests.corpus.cases import leak, leaks_also
from tests.corpus.shelf import remember

_notes: list[str] = []


@leak(209, "_notes")
def two_hundred_bytes(number: int) -> None:
    _notes.append(f"{number:08d}" * 19)  # LEAK two_hundred_bytes


_pages: list[bytes] = []


@leak(20_041, "_pages")
def twenty_kilobytes(number: int) -> None:
    _pages.append(bytes(20_000))  # LEAK twenty_kilobytes


_images: list[bytes] = []


@leak(1_000_041, "_images")
def one_megabyte(number: int) -> None:
    _images.append(bytes(1_000_000))  # LEAK one_megabyte


_monthly: list[bytes] = []


@leak(1_001, "_monthly", every=50)
def one_run_in_fifty(number: int) -> None:
    if number % 50 == 31:
        _monthly.append(b"%08d" % number * 6_250)  # LEAK one_run_in_fifty


_of_some: dict[int, bytes] = {}


@leak(2_711, "_of_some")
def for_some_arguments(number: int) -> None:
    if number % 3 == 0:
        _of_some[number] = b"%08d" % number * 1_000  # LEAK for_some_arguments


_since: list[bytes] = []
_runs = itertools.count()


@leak(4_041, "_since", begins_at=80)
def begins_late(number: int) -> None:
    if next(_runs) >= 80:
        _since.append(bytes(4_000))  # LEAK begins_late


_first: list[bytes] = []
_second: dict[int, list[int]] = {}


@leak(3_041, "_first")
def two_leaks(number: int) -> None:
    _first.append(bytes(3_000))  # LEAK two_leaks
    _second[number] = [number] * 250  # LEAK two_leaks_second


leaks_also(two_leaks, "two_leaks_second", 2_000, "_second")


@leak(2_520, "_remembered")
def helper_of_one(number: int) -> None:
    remember(number)


@leak(2_520, "_remembered")
def helper_of_another(number: int) -> None:
    remember(number + 40_000_000)  # KEPT


_unpaid: list[bytes] = []


@leak(3_041, "_unpaid", raises=True)
def before_it_fails(number: int) -> None:
    _unpaid.append(bytes(3_000))  # LEAK before_it_fails
    raise ValueError("no money")


_expiring: dict[int, tuple[int, bytes]] = {}


def _fresh(number: int) -> tuple[int, bytes]:
    if number in _expiring and _expiring[number][0] < number - 50:
        del _expiring[number]  # nobody asks again for what has expired
    return _expiring.setdefault(number, (number, b"%08d" % number * 300))  # LEAK cache_that_is_never_swept


@leak(2_600, "_expiring")
def cache_that_is_never_swept(number: int) -> None:
    _fresh(number)


_waiting: collections.deque[bytes] = collections.deque()


@leak(3 * 1_041, "_waiting")
def falling_behind(number: int) -> None:
    for _ in range(4):
        _waiting.append(bytes(1_000))  # LEAK falling_behind
    _waiting.popleft()


_bounded: collections.deque[bytes] = collections.deque(maxlen=100)
_all: list[bytes] = []


@leak(2_041, "_all")
def beside_a_bounded_buffer(number: int) -> None:
    for target in (_bounded, _all):
        target.append(bytes(2_000))  # LEAK beside_a_bounded_buffer
