"""
Where the orders to a worker stand in ``trace_dir``, and when what is left of them goes.

Beside ``<uid>.json``, named after the worker's main process, there is a mark for each order that one process of
several took: ``<uid>.<order>.taken``. See :mod:`celery_trace.control.orders` for what is in them.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

#: An order may stand at most so long, seconds.
LONGEST_S: Final = 3600.0


def folder(trace_dir: Path) -> Path:
    """The folder of all orders."""
    return trace_dir / "orders"


def file(trace_dir: Path, main_uid: str) -> Path:
    """Where the orders to one worker stand."""
    return folder(trace_dir) / f"{main_uid}.json"


def mark(trace_dir: Path, main_uid: str, order_id: str) -> Path:
    """The mark of an order that a process of the worker took."""
    return folder(trace_dir) / f"{main_uid}.{order_id}.taken"


def forget(trace_dir: Path, main_uid: str) -> None:
    """Remove what a worker that is no more left: its orders and their marks."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder(trace_dir)):
            if name.partition(".")[0] == main_uid:
                (folder(trace_dir) / name).unlink(missing_ok=True)


def forget_old(trace_dir: Path) -> None:
    """Remove what can't be in force any more, whoever left it: a killed worker of which nothing else is known."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder(trace_dir).iterdir():
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > 2 * LONGEST_S:
                    path.unlink()
