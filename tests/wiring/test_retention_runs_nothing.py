"""The walk up the referrers asks objects nothing: a lazy object that is looked at would run its owner's code."""

from __future__ import annotations

import gc

from celery_trace.probes import retention

asked: list[str] = []


class Lazy:
    """As Django's: what is asked of it, ``__class__`` included, is asked of what it stands for."""

    @property
    def __class__(self):
        asked.append("__class__")
        return dict


class Ledger(dict):
    """A dict with an opinion on its values."""

    def values(self):
        asked.append("values")
        return super().values()


_ledger = Ledger()


def test_no_property_and_no_override_is_run_on_the_way_to_the_root():
    survivors = [Lazy() for _ in range(3)]
    for number, survivor in enumerate(survivors):
        _ledger[number] = survivor
    try:
        gc.collect()
        assert retention.who_retains(survivors[:2], within_s=5.0)
    finally:
        _ledger.clear()
    assert asked == []
