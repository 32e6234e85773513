"""
The demo's results, as facts that a script can wait for.

Each fact is a function of the monitor that returns a sentence about what it saw, or None while it is not visible yet.
"""

import math
import time
from pathlib import Path

from celery_trace.text.format import size
from demo.programs import DemoError, WrongFact

TASKS = "shop.tasks"
#: The leaking task in the example, and its file.
LEAKING = {f"{TASKS}.remember_order": "shop/tasks.py", "GET /leak/": "shop/views.py"}
#: The holder of the receipts, and its text in an alert.
HOLDER = (f"{TASKS} (module)", "_receipts: list[")
HOLDER_TEXT = f"held by {TASKS}._receipts (list)"
SEED_LOCALS = {"context_data": "'Hello'", "a": "5", "c": "6", "d": "10"}


def place(row):
    """File and line as text."""
    parts = Path(row["file"]).parts
    return f"{'/'.join(parts[-2:])}:{row['line']}"


def leak(monitor, _receiver):
    """The leak is in the table with its line."""
    rows = monitor.get("leaks", limit=200)["leaks"]
    accused = [row for row in rows if row["verdict"] == "leaking" and row["name"] == f"{TASKS}.remember_order"]
    found = [row for row in accused if row["file"].endswith("shop/tasks.py") and row["line"]]
    if not found:
        return None
    row = max(found, key=lambda row: row["kept_bytes_per_run"])
    held = row["retained_by"]
    if len(held) < len(HOLDER) or held[0] != HOLDER[0] or not held[1].startswith(HOLDER[1]):
        raise WrongFact(f"{row['name']} is reported as held by {held}, not by {HOLDER}")
    return (
        f"{row['name']} keeps {size(row['kept_bytes_per_run'])} a run at {place(row)} "
        f"`{row['code'].strip()}` ({row['runs']} runs, verdict {row['verdict']}; held by {' → '.join(held)})"
    )


def accused(monitor):
    """Names that are reported as leaks, or alerted, without leaking; empty if all is well."""
    rows = monitor.get("leaks", verdict="leaking", limit=200)["leaks"]
    leaking = [
        f"{row['name']} at {place(row) if row['file'] else row['resource'] or 'no line'} is reported as a leak"
        for row in rows
        if not row["file"].endswith(LEAKING.get(row["name"], "\n"))
    ]
    alerted = [
        f"alert: {row['text']}"
        for row in monitor.get("alerts", limit=200)["alerts"]
        if row["rule"] == "leak" and not any(name in row["subject"] + row["text"] for name in LEAKING)
    ]
    return sorted(leaking + alerted)


def _seed_failure(monitor, kind, name, *, live=False):
    """The latest failure of the seed example with its frames, or None; with ``live`` one that its process holds."""
    rows = monitor.get("failures", kind=kind, limit=100)["failures"]
    rows = [row for row in rows if name in row["name"] and (row["exception"] or {}).get("type") == "ZeroDivisionError"]
    rows = [row for row in rows if row["live"] or not live]
    return monitor.get(f"failures/{rows[0]['id']}") if rows else None


def _seed_locals(detail):
    """The seed's locals of the innermost frame as one text; raises if one differs."""
    frame = detail["frames"][0]
    values = {local["name"]: local["value"] for local in frame["locals"]}
    seen = {name: values.get(name) for name in SEED_LOCALS}
    if seen != SEED_LOCALS:
        raise DemoError(f"the locals of {frame['function']} were captured as {seen}, not as {SEED_LOCALS}")
    return ", ".join(f"{name}={value}" for name, value in seen.items())


def task_failure(monitor, _receiver):
    """The failed task was captured with its locals."""
    detail = _seed_failure(monitor, "task", "create_error")
    if detail is None:
        return None
    return (
        f"{detail['name']}: {detail['exception']['type']} at {place(detail['frames'][0])} with {_seed_locals(detail)}"
    )


def shell(monitor, _receiver):
    """The shell answers in the process that failed."""
    detail = _seed_failure(monitor, "task", "create_error", live=True)
    if detail is None:
        return None
    mode, answer, notices = monitor.ask_shell(detail["id"], "trace.context_data")
    if answer != "'Hello'":
        raise DemoError(f"the {mode} shell answered {answer!r} to trace.context_data, not 'Hello'")
    if mode != "live":
        raise DemoError(f"the shell answered {answer}, but it was {mode}: {' '.join(notices) or 'no reason was given'}")
    return f">>> trace.context_data  {answer}  ({mode}, in the process {detail['pid']} that failed)"


def request_failure(monitor, _receiver):
    """The failed request is in the same store."""
    detail = _seed_failure(monitor, "request", "error")
    if detail is None:
        return None
    request = detail["request"] or {}
    return (
        f"{request.get('method')} {request.get('path')} ({detail['name']}): {detail['exception']['type']} "
        f"at {place(detail['frames'][0])} with {_seed_locals(detail)}"
    )


def killed(monitor, _receiver):
    """The task that was killed by its hard time limit was captured too."""
    rows = monitor.get("failures", name=f"{TASKS}.overrun", limit=10)["failures"]
    if not rows:
        return None
    detail = monitor.get(f"failures/{rows[0]['id']}")
    if detail["outcome"] != "time_limit":
        raise DemoError(f"{TASKS}.overrun ended as {detail['outcome']!r}, not as 'time_limit'")
    if not detail["frames"]:
        return None
    frame = next((frame for frame in detail["frames"] if frame["in_app"]), detail["frames"][0])
    values = {local["name"]: local["value"] for local in frame["locals"]}
    return (
        f"{detail['name']} overran its hard limit in {frame['function']} at {place(frame)}, "
        f"progress={values.get('progress')}"
    )


def alert(monitor, receiver):
    """The leak's alert fired and was delivered."""
    rows = monitor.get("alerts", limit=100)["alerts"]
    rows = [row for row in rows if row["state"] == "firing" and "remember_order" in row["subject"] + row["text"]]
    rows = [row for row in rows if row["rule"] == "leak" and "shop/tasks.py" in row["text"]]
    delivered = [body for body in receiver.received if "remember_order" in body]
    if not rows or not delivered:
        return None
    for text in (rows[0]["text"], delivered[0]):
        if HOLDER_TEXT not in text:
            raise WrongFact(f"the alert does not say {HOLDER_TEXT!r}: {text}")
    return f"{rows[0]['rule']}: {rows[0]['text']} Delivered as JSON to a web server ({len(delivered[0])} bytes)."


#: Name, title, and function. The shell opens a session, so only a check does that by itself.
FACTS = (
    ("failure", "a failed task was captured", task_failure),
    ("shell", "the shell answered", shell),
    ("request", "a failed request is in the same store", request_failure),
    ("killed", "a task killed by its hard time limit was captured", killed),
    ("leak", "the leak is in the table with its line", leak),
    ("alert", "the alert fired and was delivered", alert),
)


def watch(stage, monitor, traffic, facts, report, deadline_s=math.inf, stopped=lambda: False):
    """
    Wait for facts; ``report(name, title, sentence)`` is called once for each.

    Args:
        deadline_s: On the monotonic clock.
        stopped: Polled; true ends the wait.

    Returns:
        The names of missing facts, each with the last reason.

    Raises:
        DemoError: A process has ended, or a fact is wrong.
    """
    waiting = {name: (title, look) for name, title, look in facts}
    reasons = dict.fromkeys(waiting, "not seen yet")
    while waiting and time.monotonic() < deadline_s and not stopped():
        stage.check()
        for name, (title, look) in list(waiting.items()):
            try:
                sentence = look(monitor, stage.receiver)
            except WrongFact:
                raise
            except DemoError as error:
                reasons[name] = str(error)
                continue
            if sentence is not None:
                report(name, title, sentence)
                del waiting[name], reasons[name]
        if traffic.trouble:
            reasons = {name: f"{why} ({traffic.trouble})" for name, why in reasons.items()}
        time.sleep(0.5)
    return reasons
