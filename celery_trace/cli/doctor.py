"""
``celery trace doctor``: check the installation, with advice for each problem.

Each check is a function that yields findings and should not raise; an exception becomes a finding.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from celery_trace import private_files
from celery_trace.alerting import channels, rules
from celery_trace.cli import interpreter
from celery_trace.cli.findings import Finding, fail, ok, warn
from celery_trace.collector.status import read_status
from celery_trace.errors import Unavailable
from celery_trace.model import StoreSize
from celery_trace.settings import SettingError, Settings
from celery_trace.spool import unrecorded
from celery_trace.text.format import duration, size

if TYPE_CHECKING:
    from celery import Celery

#: Time limit for the broker's answer, seconds.
BROKER_S = 5.0

#: A collector that has not written its status for this long counts as dead, seconds.
STATUS_S = 60.0
#: Warn if the store would fill its disk within this many days.
NEARLY_FULL_DAYS = 14
#: Warn about an SQLite file that can't shrink from this many free bytes in it.
WASTED_BYTES = 64 * 1024 * 1024

#: Our folders in ``trace_dir``.
PARTS = ("spool", "orders", "profiles")


class Installation(NamedTuple):
    """What the checks use."""

    app: Celery
    settings: Settings


def examine(app: Celery, settings: Settings) -> list[Finding]:
    """All findings, in the order of :data:`CHECKS`; the store and the broker are queried once each."""
    here = Installation(app, settings)
    findings: list[Finding] = []
    for name, check in CHECKS:
        try:
            findings.extend(check(here))
        except Exception as error:  # the other checks must run
            findings.append(fail(name, f"the check failed: {type(error).__name__}: {error}", "Please report this."))
    return findings


# --- the program ------------------------------------------------------------------------------------------


def _versions(_: Installation) -> Iterator[Finding]:
    yield from interpreter.examine()
    try:
        celery = importlib.metadata.version("celery")
        ours = importlib.metadata.version("celery-trace")
    except importlib.metadata.PackageNotFoundError as error:
        yield warn("versions", f"{error.name} is not installed as a package", "Run: pip install celery-trace")
        return
    known = (5, 5) <= tuple(int(part) for part in celery.split(".")[:2] if part.isdigit()) < (5, 8)
    if known:
        yield ok("versions", f"celery-trace {ours}, celery {celery}")
    else:
        yield warn("versions", f"celery-trace {ours}, celery {celery}", "Tested with Celery 5.5 to 5.7.")


def _extras(_: Installation) -> Iterator[Finding]:
    for module, package, extra, purpose in (
        ("flower", "flower", "monitor", "the monitor"),
        ("django", "django", "django", "tracing requests"),
        ("apprise", "apprise", "alerts", "alerts by mail, Slack and others"),
    ):
        if importlib.util.find_spec(module) is not None:
            yield ok(module, importlib.metadata.version(package))
        else:
            # Only what is used has to be there.
            yield ok(module, f'not installed; for {purpose}: pip install "celery-trace[{extra}]"')


def _switch(here: Installation) -> Iterator[Finding]:
    from celery_trace.settings import SWITCH

    asked = os.environ.get(SWITCH, "").strip().lower() not in {"", "0", "false", "no", "off"}
    if not here.settings.enabled:
        yield warn("enabled", "trace_enabled is False", "Set it to True to trace anything.")
    elif asked:
        yield ok("enabled", f"{SWITCH} is set in this environment")
    elif _receivers():
        yield ok("enabled", "by CeleryTrace(app) in the app's module")
    elif (status := read_status(here.settings.folder)) is not None and status.state != "ended" and _lives(status.pid):
        yield ok("enabled", "not in this environment, but a traced process runs")
    else:
        yield warn(
            "enabled",
            "not in this environment",
            f"Start the worker with {SWITCH}=1, or put CeleryTrace(app) into the app's module.",
        )


def _receivers() -> bool:
    """Whether the app's module has enabled the plugin; it is imported by now."""
    plugin = sys.modules.get("celery_trace.runtime.plugin")
    return plugin is not None and bool(plugin._installed)


def _rules(here: Installation) -> Iterator[Finding]:
    try:
        made = rules.configured(here.settings.alert_rules)
        yield ok("alert rules", f"{len(made)} in force")
    except SettingError as error:
        yield fail("alert rules", str(error), "Correct trace_alert_rules; see docs/alerts.md.")
    try:
        labels = [channel.label for channel in channels.channels(here.settings.alert_channels)]
    except SettingError as error:
        yield fail("alert channels", str(error), "Correct trace_alert_channels; see docs/alerts.md.")
        return
    if labels:
        yield ok("alert channels", ", ".join(labels))
    else:
        yield ok("alert channels", "none: alerts are shown on the monitor; trace_alert_channels sends them too")


# --- the machine ------------------------------------------------------------------------------------------


def _folder(here: Installation) -> Iterator[Finding]:
    folder = here.settings.folder
    if not folder.exists():
        above = next(parent for parent in folder.parents if parent.exists())
        if os.access(above, os.W_OK | os.X_OK):
            yield ok("trace_dir", f"{folder} does not exist yet; a worker creates it")
        else:
            yield fail(
                "trace_dir",
                f"{folder} does not exist and {above} is not writable by uid {os.getuid()}",
                "Set CELERY_TRACE_DIR to a writable place.",
            )
        return
    spool = here.settings.spool_folder
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        if os.path.lexists(spool):
            private_files.check_writable(spool)
    except OSError as error:
        what = "has no space" if unrecorded.is_full(error) else "is not writable"
        yield fail("trace_dir", f"{folder} {what}: {unrecorded.why(folder, error)}", unrecorded.advice(error))
        return
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        yield fail(
            "trace_dir",
            f"{folder} has mode {mode:04o}: others can read what was captured",
            f"Run: chmod 700 {folder}",
        )
    else:
        yield ok("trace_dir", f"{folder}, mode {mode:04o}")
    yield from _files(folder)
    free = os.statvfs(folder)
    free_bytes = free.f_bavail * free.f_frsize
    if free_bytes < here.settings.spool_bytes:
        yield warn(
            "disk",
            f"{size(free_bytes)} free, the spool may take {size(here.settings.spool_bytes)}",
            "Free some space, or lower trace_spool_bytes.",
        )
    else:
        yield ok("disk", f"{size(free_bytes)} free")


def _files(folder: Path) -> Iterator[Finding]:
    """Foreign or insecure files in ``trace_dir``."""
    loose, refused, aside = [], [], []
    for part in (folder, *(folder / name for name in PARTS)):
        for path in part.iterdir() if part.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                continue
            try:
                if path.suffix == ".foreign":
                    aside.append(str(path.relative_to(folder)))
                    continue
                fd = private_files.open_file(path, os.O_RDONLY)
                if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
                    loose.append(str(path.relative_to(folder)))
                os.close(fd)
            except private_files.NotOurs as error:
                refused.append(f"{path.relative_to(folder)} ({error.why})")
            except OSError:  # gone by now, or another user's
                continue
    if loose:
        yield fail("private files", f"readable by others: {_some(loose)}", f"Run: chmod -R go= {folder}")
    if refused:
        yield fail(
            "foreign files",
            f"not used, as another user may have put them there: {_some(refused)}",
            "Check who can write to trace_dir; then remove them, or make them yours alone (chown, chmod 600).",
        )
    if aside:
        yield warn(
            "set aside",
            f"not celery-trace's: {_some(aside)}",
            "Check who can write to trace_dir; then remove them.",
        )


def _some(names: list[str]) -> str:
    """The first few names, and the number of others."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _heap(here: Installation) -> Iterator[Finding]:
    from celery_trace.heap.sampler import availability
    from celery_trace.process import counters

    if here.settings.memory not in {"auto", "always"}:
        yield warn("memory", f"trace_memory is {here.settings.memory!r}", 'Set it to "auto" to find leaks.')
        return
    slow = availability()
    if slow:
        yield warn(
            "memory",
            f"sampled by short periods of tracemalloc: {slow}",
            "Tracing costs about a hundred times as much as sampling, so within the same budget it takes that much "
            "longer to find a leak. It stops for the program's own tracemalloc and for traced blocks.",
        )
    else:
        yield ok("memory", "sampled by the extension module")
    allocator = os.environ.get("PYTHONMALLOC")
    if allocator:
        yield ok("allocators", f"PYTHONMALLOC is {allocator}: memory is sampled nevertheless")
    if "malloc_bytes" not in counters.available():
        yield warn(
            "C memory",
            f"the C allocator has no statistics ({platform.libc_ver()[0] or 'not glibc'}, or another one is preloaded)",
            "Memory of C code is then measured by the process's address space only, which shows large amounts.",
        )
    yield from _conditions(here)


#: Conditions that a process may report: level, check, finding, advice.
_CONDITIONS: dict[str, tuple[str, str, str, str]] = {
    "gc_off": (
        "warn",
        "garbage",
        "garbage collection is off",
        "Cycles are never collected there, so they grow forever; a row without a holder may be one. Call "
        "gc.enable(), or gc.collect() from time to time.",
    ),
    "frozen": ("ok", "gc.freeze", "frozen objects are never collected", ""),
    "tracemalloc": (
        "warn",
        "tracemalloc",
        "the program's own tracemalloc is on",
        "It slows a process down several times. If the heap is sampled by tracemalloc too, no leaks are searched "
        "meanwhile.",
    ),
    "hooks_lost": (
        "warn",
        "hooks",
        "another tool has removed the sampler's hooks, as tracemalloc does when it stops",
        "Earlier samples are lost each time, so it takes longer to find a leak.",
    ),
}


def _conditions(here: Installation) -> Iterator[Finding]:
    """Conditions in living processes that impede sampling their heaps."""
    from celery_trace.queries import Queries
    from celery_trace.stores import open_store

    try:
        store = open_store(here.settings, create=False)
    except Unavailable:
        return  # reported by another check
    try:
        found = Queries(store).heap_conditions()
    except Unavailable:
        return
    finally:
        store.close()
    for name, processes in sorted(found.items()):
        if name in _CONDITIONS:
            level, check, what, advice = _CONDITIONS[name]
            yield Finding(level=level, check=check, found=f"{what}: {_some(processes)}", advice=advice)


def _sandbox(_: Installation) -> Iterator[Finding]:
    """The sandbox layers of the recreated shell, tried in a separate process as they can't be undone."""
    code = (
        "import json, sys; from celery_trace.shell.sandbox.protection import confine; "
        "sys.stdout.write(json.dumps([list(layer) for layer in confine()]))"
    )
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    if tried.returncode != 0:
        yield warn("sandbox", "its layers could not be tested", "The recreated shell may not start on this machine.")
        return
    layers = msgspec.json.decode(tried.stdout, type=list[tuple[str, bool, str]])
    holding = [name for name, holds, _ in layers if holds]
    lacking = [f"{name} ({note})" if note else name for name, holds, note in layers if not holds]
    if not lacking:
        yield ok("sandbox", ", ".join(holding))
    else:
        yield warn(
            "sandbox",
            f"works: {', '.join(holding) or 'nothing'}; does not: {', '.join(lacking)}",
            "The recreated shell works with less isolation. A newer kernel, or user namespaces, would improve it.",
        )


# --- connections ------------------------------------------------------------------------------------------


def examine_store(here: Installation) -> Iterator[Finding]:
    """The store: whether it can be read, its size, and lost records."""
    from celery_trace.queries import Queries
    from celery_trace.stores import open_store
    from celery_trace.stores.lineage import sentence

    try:
        store = open_store(here.settings, create=False)
    except Unavailable as error:
        level = warn if _not_made_yet(here.settings) else fail
        yield level("store", f"{error.what}: {error.why}", error.next)
        return
    try:
        stats = Queries(store).stats()
    except Unavailable as error:
        yield fail("store", f"{error.what}: {error.why}", error.next)
        return
    finally:
        store.close()
    yield ok("store", f"{stats.store}, schema {stats.schema}, {sum(stats.records.values())} records")
    if stats.size is not None:
        yield from _size(here, stats.size)
    for lost in stats.lost_stores:
        yield warn(
            "losses",
            sentence(lost),
            "Records that were only in it are lost, unless a backup or the file that was set aside has them.",
        )
    aside = stats.dropped.get("set_aside", 0)
    dropped = sum(stats.dropped.values()) - aside
    if dropped:
        yield warn("losses", f"{dropped} records were dropped by a full spool", "Raise trace_spool_bytes.")
    if aside:
        yield warn(
            "losses",
            f"{aside} unreadable records were dropped, as the queue celery_trace.set_aside is full",
            "Find out what publishes them, then empty that queue.",
        )
    if stats.corrupt_lines:
        yield warn(
            "losses",
            f"{stats.corrupt_lines} corrupt lines were set aside",
            f"See {here.settings.spool_folder / 'set-aside.log'}.",
        )
    if stats.own_errors:
        worst = max(stats.own_errors.items(), key=lambda pair: pair[1])
        yield warn("own errors", f"{sum(stats.own_errors.values())}, mostly in {worst[0]}", "See the worker's log.")


def _size(here: Installation, found: StoreSize) -> Iterator[Finding]:
    from celery_trace.stores.sizes import DAY_S, sentences

    words = " ".join(sentences(found, time.time()))
    folder = here.settings.folder
    grows_into_disk = 0
    if not here.settings.store and folder.exists():  # the default file is on this disk
        disk = os.statvfs(folder)
        grows_into_disk = disk.f_bavail * disk.f_frsize
    days_s = NEARLY_FULL_DAYS * DAY_S
    if (
        grows_into_disk
        and (found.bytes_per_day or 0) * NEARLY_FULL_DAYS > grows_into_disk
        and (found.bound_at is None or found.bound_at > time.time() + days_s)
    ):
        yield warn(
            "store size",
            f"{words} {size(grows_into_disk)} are free on the disk.",
            "The disk will be full before the retention limits the store: lower trace_retention_bytes or "
            "trace_retention_days, or free some space.",
        )
    elif not found.gives_back and found.free_bytes > WASTED_BYTES:
        yield warn(
            "store size",
            words,
            "This file was created by an older version and can't shrink. When writers may wait for some time, run: "
            "celery -A PROJECT trace prune --vacuum",
        )
    else:
        yield ok("store size", words)


def _not_made_yet(settings: Settings) -> bool:
    """Whether this is the default store of an installation in which nothing has run yet."""
    return not settings.store and not (settings.folder / "trace.db").exists() and not settings.spool_folder.exists()


def _broker(here: Installation) -> Iterator[Finding]:
    scheme = str(here.app.conf.broker_url or "amqp").partition(":")[0]
    try:
        connection = here.app.connection_for_read()
        address = connection.as_uri()  # without its password
        connection.transport_cls  # noqa: B018 - imports the broker's library
    except ImportError as error:
        yield fail("broker", f"the library for {scheme} is not installed: {error}", _install(scheme))
        return
    try:
        connection.connect_timeout = BROKER_S
        connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=BROKER_S)
        yield ok("broker", address)
    except Exception as error:  # kombu's transports raise different errors
        yield fail(
            "broker",
            f"{address} does not answer ({type(error).__name__}: {error})",
            "Start the broker, or correct broker_url. Records are not lost: they wait in the spool.",
        )
    finally:
        connection.release()


#: Celery's extras, where their names are not those of the broker's address.
_EXTRAS = {"rediss": "redis", "valkeys": "valkey", "amqps": "amqp"}


def _install(scheme: str) -> str:
    """How to install what a broker needs."""
    name = scheme.partition("+")[0]
    return f'Run: pip install "celery[{_EXTRAS.get(name, name)}]"'


def _collector(here: Installation) -> Iterator[Finding]:
    status = read_status(here.settings.folder)
    if status is None:
        yield warn(
            "collector",
            "none has run in this trace_dir",
            "A worker starts it; or run: celery -A PROJECT trace collect",
        )
        return
    if status.folders_lost:
        yield warn(
            "losses",
            f"{here.settings.folder} was removed {status.folders_lost} times while the collector ran",
            "Records that were not stored by then are lost. Find out what removes it.",
        )
    if status.sent_again:
        yield warn(
            "losses",
            f"the store was replaced while the collector ran; {status.sent_again} records were sent again",
            "Older records are only in the replaced store.",
        )
    age_s = time.time() - status.at_s
    waiting = f"{status.spool_records} records wait in the spool ({size(status.spool_bytes)})"
    if status.state == "ended" or age_s > STATUS_S or not _lives(status.pid):
        level = fail if status.spool_records else warn
        yield level(
            "collector",
            f"not running (last seen {duration(max(age_s, 1.0))} ago); {waiting}",
            "A worker starts it; or run: celery -A PROJECT trace collect",
        )
    elif status.state == "waiting":
        yield fail("collector", f"pid {status.pid} waits: {status.why}; {waiting}", "See the store or broker above.")
    else:
        yield ok("collector", f"pid {status.pid}, {status.state}, {status.delivered} delivered; {waiting}")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


CHECKS: tuple[tuple[str, Callable[[Installation], Iterator[Finding]]], ...] = (
    ("versions", _versions),
    ("extras", _extras),
    ("enabled", _switch),
    ("trace_dir", _folder),
    ("store", examine_store),
    ("collector", _collector),
    ("broker", _broker),
    ("alerts", _rules),
    ("memory", _heap),
    ("sandbox", _sandbox),
)
