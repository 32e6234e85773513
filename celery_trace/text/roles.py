"""The roles of traced processes, in words."""

from __future__ import annotations

from typing import Final

_OF_PROCESSES: Final = {
    "child": "child",
    "main": "main process",
    "beat": "beat",
    "solo": "solo worker",
    "threads": "threads worker",
    "green": "gevent, eventlet or asyncio worker",
    "web": "web process",
    "script": "script",
}


def of_process(role: str) -> str:
    """The role of a process: ``main process``. A role of a newer version is shown as it is."""
    return _OF_PROCESSES.get(role, role)


def of_worker(role: str) -> str:
    """The kind of a worker, from the role of its processes that run tasks: ``prefork worker``."""
    return "prefork worker" if role in {"child", "main"} else of_process(role)


def of_leak(role: str) -> str:
    """The process that a leak outside of runs is in, as the subject of a sentence: ``main process``, ``process``."""
    return {"child": "child process"}.get(role, of_process(role)) or "process"
