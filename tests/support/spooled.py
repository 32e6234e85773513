"""What stands in a spool folder."""

from __future__ import annotations

from pathlib import Path

from celery_trace.model import AnyRecord, decode


def written(folder: Path) -> list[AnyRecord]:
    """Every record in a spool folder, headers and process records aside."""
    records = []
    for path in sorted(folder.glob("*.spool")):
        for line in path.read_bytes().splitlines()[1:]:
            records.append(decode(line.split(b" ", 2)[2]))
    return [record for record in records if type(record).__name__ != "ProcessRecord"]
