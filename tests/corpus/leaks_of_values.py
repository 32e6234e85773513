"""Tasks that leak values of all kinds: buffers, numbers, objects, code."""

from __future__ import annotations

import array
import collections
import ctypes
import dataclasses
import heapq
import io
import pickle
import re
import sys
import types
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from tests.corpus.cases import leak

_views: list[memoryview] = []


@leak(4_240, "_views")
def memory_views(number: int) -> None:
    _views.append(memoryview(b"%08d" % number * 500)[8:])  # LEAK memory_views


_series: list[Any] = []


@leak(4_080, "_series")
def numeric_arrays(number: int) -> None:
    _series.append(array.array("d", [float(number)]) * 500)  # LEAK numeric_arrays


_raw: list[Any] = []


@leak(5_300, "_raw")
def ctypes_buffers(number: int) -> None:
    _raw.append(ctypes.create_string_buffer(5_000))  # LEAK ctypes_buffers


_snapshots: dict[int, bytes] = {}


@leak(1_490, "_snapshots")
def pickles(number: int) -> None:
    _snapshots[number] = pickle.dumps([f"{number} {part}" for part in range(100)])  # LEAK pickles


_prices: list[Decimal] = []


@leak(1_320, "_prices")
def decimals(number: int) -> None:
    _prices.extend(Decimal(number) / part for part in range(7, 18))  # LEAK decimals


_totals: list[list[int]] = []


@leak(3_370, "_totals")
def integers(number: int) -> None:
    _totals.append([number * 1_000 + part for part in range(75)])  # LEAK integers


_edges: set[tuple[int, tuple[int, str]]] = set()


@leak(1_670, "_edges")
def tuples_in_a_set(number: int) -> None:
    for part in range(8):
        _edges.add((part, (number, f"{number:08d}")))  # LEAK tuples_in_a_set


class Point:
    __slots__ = ("x", "y")

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y


_track: list[Point] = []


@leak(20 * 56, "_track")
def objects_with_slots(number: int) -> None:
    _track.extend(Point(number, part) for part in range(20))  # LEAK objects_with_slots


@dataclasses.dataclass
class Event:
    number: int
    text: str


_events: list[Event] = []


@leak(2_100, "_events")
def data_classes(number: int) -> None:
    _events.append(Event(number, f"{number:08d}" * 250))  # LEAK data_classes


class Bag(dict[str, Any]):
    """A dict of a project's own."""


_bags: dict[str, Bag] = {}


@leak(2_350, "_bags")
def subclass_of_dict(number: int) -> None:
    _bags[str(number)] = Bag(number=number, text=f"{number:08d}" * 250)  # LEAK subclass_of_dict


_agenda: list[tuple[int, str]] = []


@leak(1_500, "_agenda")
def heap_queue(number: int) -> None:
    heapq.heappush(_agenda, (-number, f"{number:08d}" * 170))  # LEAK heap_queue


_sessions: dict[uuid.UUID, dict[str, str]] = {}


@leak(1_660, "_sessions")
def keyed_by_uuid(number: int) -> None:
    _sessions[uuid.uuid4()] = {"user": f"{number:08d}" * 160}  # LEAK keyed_by_uuid


_requests_total: collections.Counter[str] = collections.Counter()


@leak(1_340, "_requests_total")
def metrics_of_unbounded_labels(number: int) -> None:
    for status in range(5):
        label = f"/{number}/{status}?token={'t' * 200}"  # LEAK metrics_of_unbounded_labels
        _requests_total[label] += 1  # KEPT


_patterns: dict[int, re.Pattern[str]] = {}


@leak(590, "_patterns")
def compiled_expressions(number: int) -> None:
    _patterns[number] = re.compile(f"^{number}-[a-f]+|({number})")  # LEAK compiled_expressions


class Invoice:
    def __init__(self, number: int) -> None:
        self.lines = [number] * 200  # LEAK bound_methods

    def close(self) -> None:
        self.lines.clear()


_at_the_end: list[Callable[[], None]] = []


@leak(1_656, "_at_the_end")
def bound_methods(number: int) -> None:
    _at_the_end.append(Invoice(number).close)  # KEPT


_models: dict[str, type] = {}


@leak(2_410, "_models")
def classes_made_at_runtime(number: int) -> None:
    _models[f"Model{number}"] = type(f"Model{number}", (), {"number": number})  # LEAK classes_made_at_runtime


@leak(2_660, "modules", "payload")
def modules_of_their_own(number: int) -> None:
    module = types.ModuleType(f"plugin_{number}")  # KEPT
    module.payload = f"{number:08d}" * 300  # type: ignore[attr-defined] # LEAK modules_of_their_own
    sys.modules[module.__name__] = module


_report = io.BytesIO()


@leak(2_400, "_report")
def growing_buffer(number: int) -> None:
    _report.write(b"%08d" % number * 300)  # LEAK growing_buffer


class Log:
    text = ""


@leak(1_600, "Log.text")
def growing_text(number: int) -> None:
    Log.text += f"{number:08d}" * 200  # LEAK growing_text
