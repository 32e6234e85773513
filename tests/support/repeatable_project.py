"""
A project whose tasks fail in many ways, most of them by their arguments alone.

:data:`CALLS` says what is sent, and what a test of the failure is expected to show: ``red`` (reproduced), ``skip`` (a
hole, or not reproduced), ``error`` (another error) or ``refused`` (no test).

As a program, in the project's folder: ``send`` sends everything and prints the ids, ``make FOLDER`` writes a test for
each failure id of its input and prints what was refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SECRETS = ("hunter2-swordfish", "sk-live-51Habcdefghijklmnopqrstuv", "correct horse battery", "4111111111111111")
HOSTILE = 'it\'s """quoted"""\\ \n{0} \x00 \u202eevil # import os'
HOSTILE_NAME = 'shop."""\nraise SystemExit(7)\n"""#\\'

MODULE = """
import collections
import dataclasses
import datetime
import enum
import json
import os
import signal
import time

from celery import Celery
from celery.exceptions import Reject

app = Celery("repeatable")
app.conf.update(
    broker_connection_retry_on_startup=True, accept_content=["json", "pickle"], task_ignore_result=True,
    trace_rejected=True,
)
IN_WORKER = bool(os.environ.get("IN_WORKER"))
LIMITS = {"low": 0}


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Line:
    price: object
    count: int


@dataclasses.dataclass(frozen=True)
class Order:
    id: int
    lines: list
    total: int = dataclasses.field(init=False, default=0)

    def mean(self):
        return sum(line.price for line in self.lines) / self.total


class Basket:
    def __init__(self):
        self.lines = []


class Shop:
    class Closed(Exception):
        def __init__(self, day, hours):
            super().__init__(day)
            self.hours = hours


# --- reproduced by their arguments

@app.task
def missing_key(prices, item):
    return prices[item]


@app.task
def division(total, count=0):
    return total / count


def tax_of(order):
    return order.get("tax").upper()


@app.task
def none_deep(order):
    tax = tax_of(order)
    return tax


@app.task
def decimals(amount, other):
    if amount > other:
        raise ValueError(f"{amount} is more than {other}")


@app.task
def zones(first, second):
    return first < second


@app.task
def durations(wait, day, at):
    raise ValueError(f"{wait} after {day} {at}")


@app.task
def uuids(id, known):
    return known[id]


@app.task
def paths(path):
    return path.read_text()


@app.task
def encoded(data):
    return data.decode("utf-8")


@app.task
def sets(members, gone):
    members.remove(gone)


@app.task
def ordered(order):
    return order.mean()


@app.task
def coloured(colour):
    names = {Colour.RED: "red"}
    return names[colour]


@app.task
def points(point):
    return 1 / (point.x - point.y)


@app.task(bind=True, max_retries=1)
def second_try(self, value):
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return value["second"]


@app.task(autoretry_for=(LookupError,), max_retries=1, default_retry_delay=0, retry_backoff=False)
def by_itself(value):
    return value["nothing"]


@app.task(bind=True, max_retries=1)
def by_hand(self, value):
    try:
        return int(value)
    except ValueError as error:
        raise self.retry(exc=error, countdown=0)


@app.task
def rejects(value):
    raise Reject(f"not mine: {value}", requeue=False)


@app.task
def chained(text):
    try:
        int(text)
    except ValueError as error:
        raise RuntimeError("can't read it") from error


@app.task
def grouped(values):
    raise ExceptionGroup("several", [ValueError(value) for value in values])


@app.task
def in_a_library(text):
    return json.loads(text)


@app.task
def two(first, second):
    return first


def down(number):
    return down(number + 1)


@app.task
def recursive(start):
    return down(start)


@app.task
def comprehension(rows):
    return [row["price"] * 2 for row in rows]


@app.task
def asserted(value):
    assert value > 10, "too small"


@app.task
def own_error(day):
    raise Shop.Closed(day, hours=[1, 2])


def pieces(values):
    for value in values:
        yield 10 // value


@app.task
def generated(values):
    return sum(pieces(values))


@app.task
def twice(first, second):
    total = 0
    if first:
        total += 100 // first
    if second:
        total -= 1
    total += 100 // second
    return total


@app.task
def texts(text):
    raise ValueError(text)


@app.task(name=HOSTILE_NAME)
def hostile(value):
    return value["nothing"]


@app.task
def nested(tree):
    return tree["rows"][0][2]


@app.task
def big(number, ratio):
    return number + int(ratio)


@app.task
def rebound(total, password=""):
    password = "%s"
    return total["sum"]


@app.task
def limited(value):
    return value / LIMITS["low"]


# --- with holes

@app.task
def secret_argument(password, amount):
    raise ValueError("refused")


@app.task
def secret_inside(request):
    raise ValueError("refused")


@app.task
def secret_shape(note):
    raise ValueError("refused")


@app.task
def long_text(text):
    raise ValueError(len(text))


@app.task
def long_list(values):
    raise ValueError(len(values))


@app.task
def shared(first, second):
    raise ValueError("shared")


@app.task
def own_object(basket):
    raise ValueError("basket")


# --- that do not depend on their arguments alone

@app.task
def only_there(value):
    if IN_WORKER:
        raise ValueError("only there")


@app.task
def changes_its_arguments(values):
    while values:
        value = values.pop()
        if value == "last":
            raise ValueError(value)


@app.task
def other_error(value):
    if IN_WORKER:
        raise ValueError("there")
    raise KeyError("here")


@app.task
def other_line(value):
    if IN_WORKER:
        raise ValueError("there")
    raise ValueError("here")


# --- refused

@app.task(soft_time_limit=1)
def too_slow():
    time.sleep(30)


@app.task
def killed():
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def module() -> str:
    """The module's source."""
    return MODULE.replace("HOSTILE_NAME", repr(HOSTILE_NAME)).replace('"%s"', repr(SECRETS[2]))


def calls(repeatable):
    """What is sent: by name, arguments, keywords, the expected result."""
    import datetime
    import decimal
    import pathlib
    import uuid

    at = datetime.datetime(2026, 11, 30, 12, 0, 1, 5)
    order = repeatable.Order(3, [repeatable.Line(decimal.Decimal("3.10"), 2), repeatable.Line(5, 1)])
    both = [1, 2]
    return {
        "missing_key": (({"a": 1}, "b"), {}, "red"),
        "division": ((10,), {}, "red"),
        "none_deep": (({"id": 3, "tax": None},), {}, "red"),
        "decimals": ((decimal.Decimal("3.10"), decimal.Decimal("-Infinity")), {}, "red"),
        "zones": ((at, at.replace(tzinfo=datetime.UTC)), {}, "red"),
        "durations": ((datetime.timedelta(-2, 5, 7), at.date(), at.time()), {}, "red"),
        "uuids": ((uuid.UUID(int=5), {uuid.UUID(int=6): 1}), {}, "red"),
        "paths": ((pathlib.Path("/nowhere/at all.txt"),), {}, "red"),
        "encoded": ((b"\xff\x00\\x41 caf\xc3\xa9",), {}, "red"),
        "sets": (({1, "a", (2, 3)}, frozenset({4})), {}, "red"),
        "ordered": ((order,), {}, "red"),
        "coloured": ((repeatable.Colour.BLUE,), {}, "red"),
        "points": ((repeatable.Point(4, 4),), {}, "red"),
        "second_try": (({"first": 1},), {}, "red"),
        "by_itself": (({},), {}, "red"),
        "by_hand": (("x",), {}, "red"),
        "rejects": ((1.5,), {}, "red"),
        "chained": (("x",), {}, "red"),
        "grouped": ((["a", "b"],), {}, "red"),
        "in_a_library": (("{",), {}, "red"),
        "two": ((1, 2, 3), {}, "red"),
        "recursive": ((0,), {}, "red"),
        "comprehension": (([{"price": 1}, {}],), {}, "red"),
        "asserted": ((), {"value": 3}, "red"),
        "own_error": (("sunday",), {}, "red"),
        "generated": (([5, 0],), {}, "red"),
        "twice": ((4, 0), {}, "red"),
        "texts": ((HOSTILE.replace("\0", ""),), {}, "red"),
        HOSTILE_NAME: (({},), {}, "red"),
        "nested": ((), {"tree": {"rows": [(1, frozenset([2]))], 5: None, (1, 2): True}}, "red"),
        "big": ((10**40, float("inf")), {}, "red"),
        "rebound": (({},), {}, "red"),
        "limited": ((7,), {}, "red"),
        "secret_argument": ((SECRETS[0], 3), {}, "skip"),
        "secret_inside": ((), {"request": {"headers": {"authorization": SECRETS[0]}, "id": 3}}, "skip"),
        "secret_shape": ((f"paid with {SECRETS[1]} by {SECRETS[3]}",), {}, "skip"),
        "long_text": (("x" * 5000,), {}, "skip"),
        "long_list": ((list(range(500)),), {}, "skip"),
        "shared": ((both, both), {}, "skip"),
        "own_object": ((repeatable.Basket(),), {}, "skip"),
        "only_there": ((1,), {}, "skip"),
        "changes_its_arguments": ((["last", "first"],), {}, "skip"),
        "other_error": ((1,), {}, "error"),
        "other_line": ((1,), {}, "error"),
        "too_slow": ((), {}, "refused"),
        "killed": ((), {}, "refused"),
    }  # fmt: skip


def send() -> None:
    import repeatable

    sent = {}
    for name, (args, kwargs, expected) in calls(repeatable).items():
        full = name if name == HOSTILE_NAME else f"repeatable.{name}"
        result = repeatable.app.send_task(full, args, kwargs, serializer="pickle")
        sent[name] = [result.id, expected]
    json.dump(sent, sys.stdout)


def make(folder: Path) -> None:
    import repeatable
    from celery.bin.base import CLIContext
    from click.testing import CliRunner

    from celery_trace.commands import trace

    context = CLIContext(app=repeatable.app, no_color=True, workdir=None)
    answers = {}
    for name, id in json.load(sys.stdin).items():
        file = folder / f"test_{id}.py"
        result = CliRunner().invoke(trace, ["make-test", id, "--output", str(file)], obj=context)
        answers[name] = [result.exit_code, result.output]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    sys.path.insert(0, "")
    if sys.argv[1] == "send":
        send()
    else:
        make(Path(sys.argv[2]))
