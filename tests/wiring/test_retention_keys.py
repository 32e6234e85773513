"""The path to a holder names attributes as they are; a key of a dictionary stands apart, as it is data."""

from __future__ import annotations

from typing import Any

from celery_trace.evidence import without_keys
from celery_trace.probes import retention

URL = "redis://bob:hunter2@host"


class Order:
    """What is held."""


class Registry:
    """Holds by an attribute, which holds by a key."""

    def __init__(self) -> None:
        self.orders_by_name: dict[str, list[Order]] = {}


_registry = Registry()
_orders: dict[str, Any] = {}


def path_to(order: Order) -> list[str]:
    return retention.who_retains([order], within_s=5.0).path


def test_the_holder_is_named_to_its_attribute_and_the_key_is_marked() -> None:
    order = Order()
    _registry.orders_by_name[URL] = [order]
    try:
        path = path_to(order)
    finally:
        _registry.orders_by_name.clear()
    assert path == [
        f"{__name__} (module)", "_registry: Registry", "orders_by_name: dict", f"['{URL}']: list", "Order × 1",
    ]  # fmt: skip
    assert without_keys(path)[3] == "[str]: list"


def test_a_key_that_could_be_an_attribute_is_a_key() -> None:
    order = Order()
    _orders["sk_live_51Habcdefgh12345678"] = {"ada": order}
    try:
        path = path_to(order)
    finally:
        _orders.clear()
    assert path[:2] == [f"{__name__} (module)", "_orders: dict"]
    assert "sk_live" not in str(without_keys(path))
    assert without_keys(path)[2] == "[str]: dict"
