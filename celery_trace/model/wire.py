"""How records travel: each is one line of JSON."""

from __future__ import annotations

import msgspec

from celery_trace.model.chords import Chord
from celery_trace.model.flow import Consuming, Flow, MessageStart, QueueSample, Schedule
from celery_trace.model.profiles import TimeProfile
from celery_trace.model.records import (
    AuditEntry,
    Failure,
    HeapProfile,
    Kept,
    ProcessRecord,
    Rollup,
    Run,
    Sample,
    Stats,
    Window,
)
from celery_trace.model.running import RunningSnapshot

AnyRecord = (
    ProcessRecord
    | Rollup
    | Run
    | Sample
    | Window
    | HeapProfile
    | TimeProfile
    | Failure
    | Kept
    | Stats
    | AuditEntry
    | Flow
    | Consuming
    | QueueSample
    | MessageStart
    | Schedule
    | RunningSnapshot
    | Chord
)

_encoder = msgspec.json.Encoder(order=None)

_decoder: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(AnyRecord)


def encode(record: AnyRecord) -> bytes:
    """One line of JSON, without a line feed; lone surrogates must be escaped already."""
    return _encoder.encode(record)


def decode(data: bytes) -> AnyRecord:
    """
    The record that :func:`encode` has written.

    Raises:
        msgspec.DecodeError: The bytes are not JSON, or not a known record (``ValidationError``).
    """
    return _decoder.decode(data)
