"""
Append-only files between the traced processes and the collector.

Written by :class:`SpoolWriter`, read by :class:`~celery_trace.spool.reader.SpoolReader`. Imports msgspec and
the standard library only: a traced process has nothing else of ours in it.
"""

from celery_trace.spool.lines import CorruptLine, pack, unpack
from celery_trace.spool.segments import lives
from celery_trace.spool.writer import SpoolWriter

__all__ = ["CorruptLine", "SpoolWriter", "lives", "pack", "unpack"]
