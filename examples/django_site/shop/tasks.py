"""Tasks for the demo: one that fails, one that leaks, two that look like it, one killed, one stuck, an ordinary one."""

import threading
import time
from functools import lru_cache

from celery import shared_task

_receipts = []
_latest_report = []


class Receipt:
    """Kept by `remember_order` for each order, forever."""

    def __init__(self, order_id: int) -> None:
        self.order_id = order_id
        self.lines = [f"order {order_id}, line {number}: thank you for your purchase" for number in range(100)]


@shared_task
def create_error():
    """Fail with some locals to inspect."""
    context_data = "Hello"
    a = 5
    c = 6
    d = 10
    return f"{context_data}: {(a + c) / (d - 10)}"


@shared_task
def remember_order(order_id: int):
    """Leak about 11 KB a run: the list is never emptied."""
    receipt = Receipt(order_id)
    _receipts.append(receipt)  # LEAK: what retains the receipts
    return len(_receipts)


@lru_cache(maxsize=256)
def _price_list(customer: int) -> tuple[str, ...]:
    return tuple(f"customer {customer}, product {number}: {customer * number % 97} €" for number in range(20))


@shared_task
def quote(customer: int):
    """Look like a leak while the cache fills up to 256 entries; not a leak."""
    return len(_price_list(customer))


@shared_task
def rotate_report(rows: int = 2000):
    """Keep only the latest report, which each run replaces; not a leak."""
    global _latest_report
    _latest_report = [f"row {number}" for number in range(rows)]
    return len(_latest_report)


@shared_task(time_limit=2)
def overrun(seconds: float = 60):
    """Work past the hard time limit; the worker kills the process that runs it."""
    progress = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        progress += 1
        time.sleep(0.01)
    return progress


_stock = threading.Lock()


def _sync_stock(seconds: float) -> None:
    with _stock:
        time.sleep(seconds)


@shared_task
def reserve_stock(seconds: float = 60):
    """Wait for a lock that another thread holds: stuck for as long."""
    sync = threading.Thread(target=_sync_stock, args=(seconds,), name="stock-sync", daemon=True)
    sync.start()
    time.sleep(0.1)
    with _stock:
        return "reserved"


@shared_task
def add(x: int, y: int):
    """An ordinary task."""
    return x + y
