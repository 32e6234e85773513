"""
The files of orders in ``trace_dir``, and their removal.

``<uid>.json``, named after the worker's main process, has its orders. ``<uid>.<order>.taken`` marks an order that one
process of several has claimed. See :mod:`celery_trace.control.orders` for their contents.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

#: The longest that an order may be in force, seconds.
LONGEST_S: Final = 3600.0


def folder(trace_dir: Path) -> Path:
    """The folder of all orders."""
    return trace_dir / "orders"


def file(trace_dir: Path, main_uid: str) -> Path:
    """The file of one worker's orders."""
    return folder(trace_dir) / f"{main_uid}.json"


def mark(trace_dir: Path, main_uid: str, order_id: str) -> Path:
    """The mark of an order that a process of the worker has claimed."""
    return folder(trace_dir) / f"{main_uid}.{order_id}.taken"


def forget(trace_dir: Path, main_uid: str) -> None:
    """Remove the orders of an ended worker, and their marks."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder(trace_dir)):
            if name.partition(".")[0] == main_uid:
                (folder(trace_dir) / name).unlink(missing_ok=True)


def forget_old(trace_dir: Path) -> None:
    """Remove all expired files, such as those of killed workers."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder(trace_dir).iterdir():
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > 2 * LONGEST_S:
                    path.unlink()
