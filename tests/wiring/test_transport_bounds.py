"""Whoever may publish on the broker can send any body: what it may cost the monitor is bounded."""

from __future__ import annotations

import zlib

import pytest

from celery_trace.model import Stats
from celery_trace.transports import broker
from celery_trace.transports.broker import CorruptBatch, inflate, pack_batch, read_lines


def test_a_batch_that_inflates_without_end_is_refused_at_its_bound(monkeypatch):
    monkeypatch.setattr(broker, "MOST_BATCH_BYTES", 1_000_000)
    with pytest.raises(CorruptBatch, match="more than 1000000 bytes"):
        inflate(zlib.compress(bytes(50_000_000), 9))


def test_a_batch_of_too_many_lines_is_refused(monkeypatch):
    monkeypatch.setattr(broker, "MOST_BATCH_LINES", 10)
    with pytest.raises(CorruptBatch, match="more than 10 lines"):
        read_lines(b"\n" * 1000)


def test_a_batch_that_is_cut_or_is_none_is_refused():
    whole = pack_batch([Stats(process="p", seq=1, at_s=1.0)])
    assert read_lines(inflate(whole))[0]
    for body in (whole[:-3], b"", b"junk", zlib.compress(b"{}")):
        with pytest.raises(CorruptBatch):
            read_lines(inflate(body))
