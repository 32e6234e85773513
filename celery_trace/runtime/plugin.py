"""
Switches the plugin on in each process in which Celery runs it: a worker, a child, or a script with eager tasks.

The life of a prefork worker: ``worker_init`` reads the settings and rejects invalid ones,
``worker_ready`` starts the main process's recorder and the collector, each child's
``worker_process_init`` starts that child's recorder, ``worker_shutdown`` ends both. A scheduler's recorder is started
by ``beat_init``, in a process of its own or one that a worker forked for it, and ends with the process.
"""

from __future__ import annotations

import logging
import os
import re
import time
import weakref
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import click
from billiard.util import Finalize
from celery.concurrency import get_implementation

from celery_trace import private_files
from celery_trace import settings as settings_module
from celery_trace.clock import SystemClock
from celery_trace.errors import TraceError
from celery_trace.failures.celery_request import field, retries_of
from celery_trace.failures.watcher import FailureWatcher
from celery_trace.failures.writer import FailureWriter, SoftLimit
from celery_trace.guard import AGAIN_S, Guard, report, swallow
from celery_trace.heap import retainers
from celery_trace.model import RUN_NOTHING, Kind, Role, new_id
from celery_trace.process.open_runs import Token
from celery_trace.runtime import (
    batches,
    consumed,
    greeting,
    loops,
    publishing,
    refused_messages,
    schedules,
    signals,
    soft_limits,
    tracers,
)
from celery_trace.runtime import recorder as recorders
from celery_trace.runtime.consumed import ConsumedMessages, WorkerRequest
from celery_trace.runtime.probes.heap_probe import HeapProbe
from celery_trace.runtime.probes.log_probe import LogProbe
from celery_trace.runtime.probes.memory_probe import MemoryProbe
from celery_trace.runtime.probes.profile_probe import ProfileProbe
from celery_trace.runtime.probes.stack_probe import StackProbe
from celery_trace.runtime.recorder import Recorder
from celery_trace.runtime.schedules import CeleryScheduler, Schedules
from celery_trace.settings import SECRETS, SettingError, Settings
from celery_trace.spool import unrecorded
from celery_trace.spool.unrecorded import EVENT_S
from celery_trace.text.code_owner import code_of

if TYPE_CHECKING:
    from celery import Celery, Task
    from celery.beat import Service
    from celery.worker import WorkController
    from kombu import Message

    from celery_trace.collector import CollectorProcess
    from celery_trace.control.orders import OrderReceiver, RemoteControlFilter

logger = logging.getLogger("celery_trace")

#: How often a process that runs tasks looks for orders, seconds.
ORDERS_S = 1.0
ORDERS_IDLE_S = 2.0
#: How often a worker that can't check orders because it has no key tries again, seconds.
DESK_S = 10.0
#: How often a process reports how many refused messages it only counted, seconds.
LEFT_OUT_S = 2.0

#: The role of a worker's main process, by the module of its pool's class.
_PREFORK = "celery.concurrency.prefork"
_ROLES = {
    _PREFORK: Role.MAIN,
    "celery.concurrency.solo": Role.SOLO,
    "celery.concurrency.thread": Role.THREADS,
    "celery.concurrency.gevent": Role.GREEN,
    "celery.concurrency.eventlet": Role.GREEN,
}

_TASK = Kind.TASK

_installed: weakref.WeakKeyDictionary[Celery, CeleryTrace] = weakref.WeakKeyDictionary()


class NotRecording(TraceError):
    """This process's recorder could not start; the next attempt is a few seconds away."""


class _Traced:
    """What one process needs to trace tasks; each fork makes its own."""

    __slots__ = ("open_runs", "recorder", "soft_limit", "watcher", "written")

    def __init__(self, recorder: Recorder, watcher: FailureWatcher, writer: FailureWriter) -> None:
        self.recorder = recorder
        self.watcher = watcher
        #: A redelivered message starts the same run again, and a failure of it is a new one.
        self.written = writer.written
        self.open_runs: dict[str, Token] = {}
        #: The soft time limit that was reached in the run in progress.
        self.soft_limit: SoftLimit | None = None


class CeleryTrace:
    """
    The plugin of one Celery app. A second call for the same app returns the first one.

    Args:
        app: The Celery application. Its configuration is read when a worker starts, not now.
        settings: Values to use instead of the app's; for tests and for embedding.

    Raises:
        SettingError: Only from ``settings``; an invalid configuration stops the worker at its start.
    """

    def __new__(cls, app: Celery, settings: Settings | None = None) -> CeleryTrace:
        plugin = _installed.get(app)
        if plugin is None:
            plugin = super().__new__(cls)
            plugin._set_up(app, settings)
            _installed[app] = plugin
        return plugin

    def _set_up(self, app: Celery, settings: Settings | None) -> None:
        self._app = weakref.ref(app)
        self._settings = settings
        self._traced: _Traced | None = None
        self._again_at_s = 0.0  # by `time.monotonic()`: when to try a recorder again that could not start
        self._failed_starts = 0
        self._main_pid = 0  # the worker's, in its children too
        self._main_uid = ""
        self._beat_pid = 0
        self._beat_end: Finalize | None = None
        self._role = Role.SCRIPT
        self._worker = ""
        self._child_limit_kib = 0
        self._collector: CollectorProcess | None = None
        self._receiver: OrderReceiver | None = None
        self._remote_filter: RemoteControlFilter | None = None
        self._no_desk = ""
        self._closed: OSError | None = None
        self._uninstall_tracers: Callable[[], None] | None = None
        self._uninstall_batches: Callable[[], None] | None = None
        self._uninstall_refused: Callable[[], None] | None = None
        self._uninstall_limits: Callable[[], None] | None = None
        self._uninstall_consumed: Callable[[], None] | None = None
        self._uninstall_schedules: Callable[[], None] | None = None
        self._consumed: ConsumedMessages | None = None  # of a worker's main process
        self._scheduler: CeleryScheduler | None = None  # that runs as a thread of this worker
        self._stamps: bool | None = None  # whether messages get our header; None until the first one
        self._hooks = tracers.Hooks(self.run_begins, self.run_ends)
        _hide_secrets()
        # Not the app's address: another app may get it while these receivers are still connected.
        self._connection = signals.connect(self, uid=f"celery_trace.{new_id()}")
        app.user_options["worker"].add(
            click.Option(
                ["--trace"],
                multiple=True,
                metavar="NAME=VALUE",
                help="A setting of celery-trace for this worker, such as memory=rss or shell=live. Repeatable.",
            )
        )

    @property
    def app(self) -> Any:
        """The Celery app; None once it is gone."""
        return self._app()

    def _is_ours(self, sender: object) -> bool:
        """Whether a signal is from this plugin's app: receivers get the signals of all apps of a process."""
        app = getattr(sender, "app", None)
        return app is None or app is self._app()

    @property
    def settings(self) -> Settings:
        """The settings in force, read from the app on first use."""
        if self._settings is None:
            self._settings = settings_module.from_app(self.app)
        return self._settings

    def close(self) -> None:
        """Disconnect from all signals, end the collector and this process's recorder."""
        self._connection.close()
        if self._beat_end is not None:
            self._beat_end.cancel()
        if self._remote_filter is not None and self.app is not None:
            self._remote_filter.uninstall(self.app)
        for uninstall in (
            self._uninstall_tracers,
            self._uninstall_batches,
            self._uninstall_refused,
            self._uninstall_limits,
            self._uninstall_consumed,
            self._uninstall_schedules,
        ):
            if uninstall is not None:
                uninstall()
        self._uninstall_tracers = self._uninstall_batches = self._uninstall_refused = self._uninstall_limits = None
        self._uninstall_consumed = self._uninstall_schedules = self._consumed = None
        if self._collector is not None:
            self._collector.stop()
            self._collector = None
        if self._traced is not None:
            recorders.close("exit")
            self._traced = None
        if self.app is not None:
            _installed.pop(self.app, None)

    # --- the worker's life -----------------------------------------------------------------------------

    def on_worker_init(self, sender: object = None, **_: object) -> None:
        """Read and check the settings; an invalid one stops the worker before it takes a task."""
        if not self._is_ours(sender):
            self._connection.close()  # another app's worker runs in this process
            return
        try:
            self._settings = self._settings or settings_module.from_app(self.app, _command_line(sender))
        except SettingError as error:
            raise SystemExit(f"celery-trace: {error}") from None
        if not self._settings.enabled:
            self._connection.close()
            return
        with Guard("trace_dir"):
            try:
                private_files.check_writable(self._settings.spool_folder)
            except OSError as error:
                # Checked before the pool forks, so that only one process logs it, once Celery has set up logging.
                unrecorded.mark_logged(self._settings.spool_folder, error)
                self._closed = error
        self._main_pid = os.getpid()
        self._main_uid = new_id()  # set before the pool forks: each child refers to it
        self._worker = getattr(sender, "hostname", "") or ""
        self._role = _role_of(getattr(sender, "pool_cls", None))
        self._child_limit_kib = getattr(sender, "max_memory_per_child", None) or 0
        with Guard("greeting"):
            greeting.add(sender, self._settings, str(self.app.main or ""))
        with Guard("worker_init"):
            from celery_trace.control.orders import RemoteControlFilter

            self._remote_filter = RemoteControlFilter(SystemClock())
            self._remote_filter.install(self.app)
        if self._uninstall_refused is None:
            with Guard("refused messages"):
                self._uninstall_refused = refused_messages.install(self.app, self.message_refused)

    def on_worker_ready(self, sender: object = None, **_: object) -> None:
        """The pool is up: record the main process too, and start the collector."""
        with Guard("worker_ready"):
            if not self._main_pid or not self._is_ours(sender):
                return
            if self._closed is not None:
                unrecorded.log(self.settings.spool_folder, self._closed)
                self._closed = None
            retainers.hold(sender)
            traced = self._trace_here()
            recorder = traced.recorder
            if recorder.process.role is Role.MAIN:
                recorder.probe(HeapProbe).stop_at(*loops.of_a_main_process())
            recorder.ticker.every(EVENT_S, self._report_unrecorded, "unrecorded")
            if recorder.process.role is not Role.MAIN:
                self._uninstall_batches = batches.install(self.app, self)
            if recorder.process.role is Role.MAIN or recorder.process.uid == self._main_uid:
                recorder.extra_counters.append(self._control_counters)
                recorder.ticker.every(DESK_S, self._open_desk, "orders")
                self._open_desk()
                self._follow_messages(recorder, sender)
            if self._scheduler is not None:
                self._follow_schedule(recorder, self._scheduler)
            if self.settings.collector:
                recorder.begin("collector", lambda: self._begin_collector(recorder))

    def _follow_messages(self, recorder: Recorder, consumer: object) -> None:
        """Measure how long the messages of this worker wait; in its main process."""
        self._consumed = ConsumedMessages(recorder.process, recorder.flow, recorder.write)
        self._uninstall_consumed = consumed.install(self._consumed.accepted)
        recorder.ticker.every(consumed.LOOK_S, self._look_at_queues, "queues", idle_s=consumed.LOOK_IDLE_S)
        self._consumed.look(consumer)
        recorder.handle_quickly(self._consumed.quick)

    def _look_at_queues(self) -> None:
        if self._consumed is not None:
            self._consumed.look()

    def _follow_schedule(self, recorder: Recorder, scheduler: CeleryScheduler) -> None:
        """Record what a scheduler of this process publishes and misses."""
        followed = Schedules(scheduler, recorder.process.uid, recorder.write)
        self._uninstall_schedules = followed.install()
        recorder.ticker.every(schedules.LOOK_S, followed.look, "schedule", idle_s=schedules.LOOK_IDLE_S)

    def _begin_collector(self, recorder: Recorder) -> None:
        from celery_trace.collector import CollectorProcess

        collector = CollectorProcess(self.settings)
        collector.start()
        self._collector = collector
        recorder.ticker.every(1.0, collector.watch, "collector watch")

    def _open_desk(self) -> None:
        """Accept orders. Without a key none can be checked: that is logged once, and tried again."""
        traced = self._traced
        if self._receiver is not None or traced is None or traced.recorder.spool.write_error is not None:
            return
        from celery_trace.control.orders import OrderReceiver

        recorder = traced.recorder
        try:
            receiver = OrderReceiver(self.settings, recorder.process, recorder.clock, recorder.write)
        except SettingError as error:
            if str(error) != self._no_desk:
                logger.error("celery-trace: this worker accepts no orders and has no live shell: %s", error)
            self._no_desk = str(error)
            return
        receiver.install()
        self._receiver = receiver

    def _report_unrecorded(self) -> None:
        """While nothing can be written, send a Celery event: the monitor can't learn it from the store."""
        traced = self._traced
        error = traced.recorder.spool.write_error if traced is not None else None
        if traced is None or error is None or self.app is None:
            return
        from celery_trace.collector.process import broker_of
        from celery_trace.transports.broker import connect

        spool = traced.recorder.spool
        try:
            with (
                connect(broker_of(self.app)) as connection,
                self.app.events.Dispatcher(connection, hostname=self._worker, buffer_while_offline=False) as events,
            ):
                events.send(
                    unrecorded.EVENT,
                    trace_dir=str(self.settings.folder),
                    why=unrecorded.why(self.settings.folder, error),
                    next=unrecorded.advice(error),
                    waiting=spool.counters["waiting"],
                )
        except Exception as failed:  # each broker's driver has its own errors
            logger.debug("celery-trace: the monitor could not be notified: %s", failed)

    def _control_counters(self) -> dict[str, int]:
        kept = [one.counters for one in (self._receiver, self._remote_filter) if one is not None]
        return dict(sum(kept, Counter()))

    def on_worker_process_init(self, **_: object) -> None:
        """A pool process begins: start its recorder before its first task."""
        with Guard("worker_process_init"):
            if self._main_pid and os.getpid() != self._main_pid:
                self._role = Role.CHILD
                self._collector = self._receiver = self._consumed = None  # the parent's
                self._again_at_s, self._failed_starts = 0.0, 0
                with Guard("recorder"):
                    self._trace_here()
                self._uninstall_batches = batches.install(self.app, self)
                if self.settings.failures:
                    self._uninstall_limits = soft_limits.install(self._soft_limit_reached)
                self._uninstall_tracers = tracers.install(self.app, self._hooks)
                if self._uninstall_tracers is not None:
                    self._connection.drop("task_prerun", "task_postrun")
                    if self._traced is not None:
                        around = loops.around_runs(self.app)
                        self._traced.recorder.probe(HeapProbe).stop_at(*around, *loops.between_runs())
                        self._traced.recorder.probe(StackProbe).stop_at(around)

    def on_worker_process_shutdown(self, **_: object) -> None:
        """A pool process ends normally."""
        with Guard("worker_process_shutdown"):
            if os.getpid() != self._main_pid:
                recorders.close("exit")
                self._traced = None

    def on_worker_shutdown(self, sender: object = None, **_: object) -> None:
        """The worker ends: write the last records, then stop the collector, which drains them."""
        with Guard("worker_shutdown"):
            if not self._is_ours(sender):
                return
            if self._receiver is not None:
                self._receiver.close()
                self._receiver = None
            self._end()

    def _end(self) -> None:
        if self._traced is not None:
            self._traced.watcher.refusals.report_left_out()
        if self._consumed is not None:
            with Guard("queues: end"):
                self._consumed.close()
            self._consumed = None
        recorders.close("exit")
        self._traced = None
        if self._collector is not None:
            self._collector.stop()
            self._collector = None

    def on_beat_init(self, sender: object = None, **_: object) -> None:
        """
        A scheduler starts, in a process of its own or in one that a worker forked for it: record that process.

        One that runs as a thread of a worker is recorded with the worker's main process.
        """
        with Guard("beat_init"):
            pid = os.getpid()
            if not self._is_ours(sender) or pid == self._beat_pid:
                return
            if pid == self._main_pid:
                self._scheduler = getattr(sender, "scheduler", None)
                if self._traced is not None and self._scheduler is not None:
                    self._follow_schedule(self._traced.recorder, self._scheduler)
                return
            try:
                enabled = self.settings.enabled
            except SettingError as error:
                logger.error("celery-trace: this scheduler is not recorded: %s", error)
                enabled = False
            if not enabled:
                self._connection.close()
                return
            self._beat_pid = pid
            self._role = Role.BEAT
            self._collector = self._receiver = None  # the worker's, if it was forked
            self._again_at_s, self._failed_starts = 0.0, 0
            retainers.hold(sender)
            # A process that a worker forks ends without calling `atexit`.
            self._beat_end = Finalize(None, self._beat_ends, exitpriority=0)
            recorder = self._trace_here().recorder
            with Guard("schedule"):
                scheduler: CeleryScheduler | None = getattr(sender, "scheduler", None)
                if scheduler is not None:
                    self._follow_schedule(recorder, scheduler)
            if self.settings.collector and not self._main_pid:
                recorder.begin("collector", lambda: self._begin_collector(recorder))

    def _beat_ends(self) -> None:
        with Guard("beat: end"):
            self._end()

    # --- a task's life ---------------------------------------------------------------------------------

    def on_before_task_publish(self, **signal: object) -> None:
        """A message is about to be published, in any process that loads the app."""
        if self._stamps is None:
            self._stamps = False
            with Guard("settings of a publisher"):  # not kept: a worker that starts here has options of its own
                self._stamps = (self._settings or settings_module.from_app(self.app)).enabled
        if self._stamps:
            publishing.message_published(**signal)

    def on_task_received(self, sender: object = None, request: WorkerRequest | None = None, **_: object) -> None:
        """A worker has received a message; in its main process."""
        if self._consumed is not None and request is not None and self._is_ours(sender):
            self._consumed.received(sender, request)

    # The hooks around every run have their own try: a context manager would be a tenth of their cost.

    def run_begins(self, task: Task, task_id: str, request: object) -> None:
        """A task is about to run."""
        try:
            traced = self._traced
            if traced is None or traced.recorder.closed:
                if not self.settings.enabled:  # outside a worker it is checked here
                    self._connection.close()
                    return
                traced = self._trace_here()
            traced.written.pop(task_id, None)
            retries = request.get("retries") if type(request) is dict else retries_of(request)
            if type(retries) is not int:  # a message can contain anything
                retries = 0
            token = traced.recorder.run_started(_TASK, task.name, task_id, retries)
            token.origin, token.describe = request, _queue_and_root
            traced.open_runs[task_id] = token
        except Exception as error:
            swallow("task_prerun", error)

    def run_ends(self, task: Task, task_id: str, state: str | None, **rest: object) -> None:
        """A task has run, with whatever result."""
        try:
            traced = self._traced
            if traced is None:
                return
            token = traced.open_runs.pop(task_id, None)
            if state != "SUCCESS":
                traced.watcher.postrun(task=task, task_id=task_id, state=state, **rest)
            if token is not None:
                traced.recorder.run_ended(token, state or "", failed=state is None or state == "FAILURE")
                if traced.soft_limit is not None and traced.soft_limit.task_id == task_id:
                    soft_limit, traced.soft_limit = traced.soft_limit, None
                    if state == "SUCCESS" or (state in ("IGNORED", "REJECTED") and not self.settings.rejected):
                        lasted_s = time.perf_counter() - token.started_s
                        traced.watcher.soft_limit_ignored(task, token.origin, soft_limit, state, lasted_s)
        except Exception as error:
            report("task_postrun", error)

    def run_added(self, token: Token, added: int) -> None:
        """A run that has succeeded, and began and ended without a call of Python, is not only added to its totals."""
        try:
            if self._traced is not None:
                self._traced.recorder.run_added(token, "SUCCESS", added)
        except Exception as error:
            report("task_postrun", error)

    def on_task_prerun(self, task_id: str = "", task: Task | None = None, **_: object) -> None:
        """A task is about to run, where its tracer is not wrapped."""
        if self._is_ours(task) and not (self._uninstall_batches and batches.in_a_batch()):
            self.run_begins(task, task_id, getattr(task, "request", None))

    def on_task_postrun(
        self, task: Task | None = None, task_id: str = "", state: str | None = None, **rest: object
    ) -> None:
        """A task has run, where its tracer is not wrapped."""
        if self._is_ours(task) and not (self._uninstall_batches and batches.in_a_batch()):
            self.run_ends(task, task_id, state, **rest)

    def on_task_failure(self, sender: object = None, task_id: str = "", **signal: Any) -> None:
        """A task failed. In the main process: a task that its child could not report."""
        with Guard("task_failure"):
            if not self._is_ours(sender):
                return
            traced = self._here()
            if traced.recorder.process.role is Role.MAIN:
                traced.watcher.main_failure(sender=sender, task_id=task_id, **signal)
            else:
                run = traced.open_runs.get(task_id)
                started_s = run.started_s if run is not None else None
                traced.watcher.failure(sender=sender, task_id=task_id, started_s=started_s, **signal)

    def batch_failed(
        self, task: Task, task_id: str, request: object, error: BaseException, args: object, note: str
    ) -> None:
        """A batch of ``celery-batches`` failed: one failure for all of its requests."""
        try:
            self._here().watcher.batch_failed(task, task_id, request, error, args, note)
        except Exception as failed:
            report("batch_failed", failed)

    def on_task_retry(self, sender: object = None, **signal: object) -> None:
        """A task asked for a retry."""
        with Guard("task_retry"):
            if self._is_ours(sender):
                self._here().watcher.retry(sender=sender, **signal)

    def on_task_internal_error(self, sender: object = None, **signal: Any) -> None:
        """Code around the task raised, such as its ``on_failure``."""
        with Guard("task_internal_error"):
            if self._is_ours(sender):
                self._here().watcher.internal_error(sender=sender, **signal)

    def on_task_revoked(self, sender: object = None, **signal: Any) -> None:
        """A task was revoked; with ``terminate`` its process is killed."""
        with Guard("task_revoked"):
            if self._is_ours(sender):
                self._here().watcher.revoked(sender=sender, **signal)

    def message_refused(self, way: str, message: Message, error: BaseException | None) -> None:
        """Celery has refused a message before it became a task; see :mod:`celery_trace.runtime.refused_messages`."""
        with Guard("refused message"):
            self._here().watcher.refusals.refused(way, message, error)

    # --- this process ----------------------------------------------------------------------------------

    def _soft_limit_reached(self, frame: FrameType) -> None:
        """A soft time limit interrupts this process's run. Of nested runs it is the outermost's limit."""
        traced = self._here()
        traced.recorder.probe(StackProbe).soft_limit_reached()
        for task_id, token in list(traced.open_runs.items())[:1]:
            task = self.app.tasks.get(token.totals.name)
            token.special = True
            traced.soft_limit = traced.watcher.soft_limit_reached(task, task_id, token.origin, frame)

    def _here(self) -> _Traced:
        traced = self._traced
        if traced is None or traced.recorder.closed:
            traced = self._trace_here()
        return traced

    def _trace_here(self) -> _Traced:
        """
        This process's recorder and watcher; made if there are none.

        Raises:
            NotRecording: They could not be made, and it is too early to try again.
            Exception: They can't be made now, for example on a full disk.
        """
        settings = self.settings
        recorder = self._recorder()
        runs_tasks = recorder.process.role not in RUN_NOTHING
        if self._role is Role.CHILD and self._child_limit_kib:
            recorder.probe(MemoryProbe).child_limit_bytes = self._child_limit_kib * 1024
        if self._main_uid and runs_tasks:
            recorder.begin("orders", lambda: self._poll_orders(recorder))
        if recorder.keeper is None and settings.shell == "live" and runs_tasks:
            recorder.begin("live keeper", lambda: self._begin_keeper(recorder))
        process, clock = recorder.process, recorder.clock
        logs = recorder.probe(LogProbe).logs
        writer = FailureWriter(settings, process, recorder.write, clock, recorder.keep, logs)
        watcher = FailureWatcher(settings, process, writer, clock)
        recorder.extra_counters.append(lambda: watcher.counters)
        recorder.ticker.every(LEFT_OUT_S, watcher.refusals.report_left_out, "refused messages")
        traced = self._traced = _Traced(recorder, watcher, writer)
        self._hooks.connect(recorder.open_runs, traced.open_runs, traced.written, _queue_and_root, self.run_added)
        return traced

    def _recorder(self) -> Recorder:
        now_s = time.monotonic()
        if now_s < self._again_at_s:
            raise NotRecording("This process does not record yet", next="It tries again in a few seconds.")
        main = self._role not in (Role.CHILD, Role.BEAT)
        try:
            recorder = recorders.ensure(
                self.settings,
                self._role,
                worker=self._worker,
                parent_uid="" if main else self._main_uid,
                uid=self._main_uid if main else "",
                code_of=self._code_of,
            )
        except Exception:
            self._again_at_s = now_s + AGAIN_S
            self._failed_starts += 1
            raise
        if self._failed_starts:
            logger.warning(
                "celery-trace: recording works now in process %d, after %d failed attempts. Earlier runs "
                "are not recorded.",
                os.getpid(),
                self._failed_starts,
            )
            self._failed_starts = 0
        return recorder

    def _begin_keeper(self, recorder: Recorder) -> None:
        from celery_trace.shell.live.keeper import Keeper

        keeper = Keeper(self.settings, recorder.process, recorder.write, self.app.connection_for_write, recorder.clock)
        recorder.keeper = keeper
        recorder.extra_counters.append(lambda: dict(keeper.counters))

    def _code_of(self, kind: Kind, name: str) -> list[CodeType]:
        """The code of a task's own function, to attribute allocations while runs overlap."""
        task = self.app.tasks.get(name) if kind is _TASK and self.app is not None else None
        # With `autoretry_for` Celery wraps the user's function.
        return code_of(getattr(task, "_orig_run", None) or getattr(task, "run", None))

    def _poll_orders(self, recorder: Recorder) -> None:
        """Poll for orders that change what this worker measures."""
        from celery_trace.control.orders import OrderPoller

        def drop(failure: str) -> None:
            if recorder.keeper is not None:
                recorder.keeper.drop(failure) if failure else recorder.keeper.drop_all()

        poller = OrderPoller(
            self.settings,
            self._main_uid,
            recorder.clock,
            on_mode=recorder.measure,
            on_profile=recorder.probe(ProfileProbe).arm,
            on_drop=drop,
        )
        recorder.extra_counters.append(lambda: dict(poller.counters))
        recorder.ticker.every(ORDERS_S, poller.poll, "orders", idle_s=ORDERS_IDLE_S)


def _hide_secrets() -> None:
    """
    Mask our passwords and keys in a worker's replies: anybody who can publish on the broker can ask for them.

    Celery's ``inspect conf`` and ``report`` show the whole configuration except settings with names that match a
    pattern. Our names are added to it. The values stay where the app, its children and the monitor read them.
    """
    with Guard("hiding secret settings"):
        from celery.app import utils

        ours = f"(?:^|_)trace_(?:{'|'.join(sorted(SECRETS))})$"
        hidden = utils.HIDDEN_SETTINGS
        if ours not in hidden.pattern:
            utils.HIDDEN_SETTINGS = re.compile(f"{hidden.pattern}|{ours}", hidden.flags)


def install(app: Celery) -> CeleryTrace:
    """Switch the plugin on for an app; does nothing if it is on."""
    return CeleryTrace(app)


def install_when_a_worker_starts() -> None:
    """Switch the plugin on for each app that starts a worker or scheduler in this process."""
    from celery.signals import beat_init, worker_init

    worker_init.connect(_install_on_worker_init, weak=False, dispatch_uid="celery_trace.install")
    beat_init.connect(_install_on_beat_init, weak=False, dispatch_uid="celery_trace.install")


def _install_on_worker_init(sender: WorkController, **_: object) -> None:
    app = sender.app
    if app not in _installed:
        # Connected while this signal is being sent: Celery may or may not call it, so call it here.
        CeleryTrace(app).on_worker_init(sender=sender)


def _install_on_beat_init(sender: Service, **_: object) -> None:
    CeleryTrace(sender.app).on_beat_init(sender=sender)  # calling it twice is harmless


def _command_line(worker: object) -> dict[str, str]:
    """``--trace NAME=VALUE`` of the worker's command."""
    values: dict[str, str] = {}
    for pair in (getattr(worker, "options", None) or {}).get("trace") or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise SettingError(f"--trace {pair} has no value; write --trace NAME=VALUE, such as --trace memory=rss.")
        values[name.strip().replace("-", "_")] = value
    return values


def _role_of(pool: object) -> Role:
    """The role of a worker's main process, from its pool (a class or one of Celery's names)."""
    if isinstance(pool, str):
        pool = get_implementation(pool)
    module = getattr(pool, "__module__", _PREFORK)
    if module in _ROLES:
        return _ROLES[module]
    # A third party's pool, such as one for asyncio. Unless it forks, tasks run in this process, in any thread.
    forks = any(base.__module__ == _PREFORK for base in getattr(pool, "__mro__", ()))
    return Role.MAIN if forks else Role.GREEN


def _queue_and_root(request: object) -> tuple[str, str]:
    delivery = field(request, "delivery_info") or {}
    # A task that a traced web request sent belongs to that request; see django_bridge.links.
    root_id = field(request, "trace_request") or field(request, "root_id")
    return str(delivery.get("routing_key") or ""), str(root_id or "")
