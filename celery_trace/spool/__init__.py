"""
Append-only files between the traced processes and the collector.

:class:`SpoolWriter` writes them, :class:`~celery_trace.spool.reader.SpoolReader` reads them. The package imports
msgspec and the standard library only, because it is loaded in traced processes.
"""

from celery_trace.spool.lines import CorruptLine, pack, unpack
from celery_trace.spool.segments import lives
from celery_trace.spool.writer import SpoolWriter

__all__ = ["CorruptLine", "SpoolWriter", "lives", "pack", "unpack"]
