"""What a worker prints below its banner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from celery_trace.runtime import greeting
from celery_trace.settings import Settings


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({}, "/srv/trace/trace.db"),
        ({"transport": "broker"}, "the broker, for a monitor on it"),
        ({"store": "postgresql://ada:s3cr3t@db/trace"}, "postgresql://ada:"),
    ],
)
def test_it_names_where_records_go_and_no_password(values: dict[str, Any], where: str) -> None:
    text = greeting.greeting(Settings(dir="/srv/trace", **values), "shop")
    assert f"  . records go to {where}" in text
    assert "s3cr3t" not in text
    assert "celery -A shop monitor" in text


def test_what_celery_prints_there_stays() -> None:
    worker = SimpleNamespace(extra_info=lambda: "[tasks]\n  . shop.pay\n")
    greeting.add(worker, Settings(), "shop")
    assert worker.extra_info().startswith("[tasks]\n  . shop.pay\n\n[celery-trace]\n")
    greeting.add(worker, Settings(), "shop")
    assert worker.extra_info().count("[celery-trace]") == 1
    greeting.add(silent := SimpleNamespace(), Settings(), "shop")
    assert not hasattr(silent, "extra_info")
