"""
Traces a request from the middleware's call to the last byte of its response.

:class:`Tracer` decides; the middleware, the signals and the log handler only report to it. Every method is guarded, so
that our errors never reach a request.
"""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from functools import lru_cache
from types import CodeType
from typing import TYPE_CHECKING, Final

from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http import Http404
from django.http.multipartparser import MultiPartParserError

from celery_trace.failures import fingerprint
from celery_trace.failures.capture import Arguments, capture_exception
from celery_trace.guard import Guard
from celery_trace.model import ExceptionInfo, Failure, Kind, Outcome, Role, TaskContext, new_id
from celery_trace.process.memory import read_memory
from celery_trace.redaction import Redactor, Scrubber
from celery_trace.runtime import recorder as recorders
from celery_trace.runtime.probes.log_probe import LogProbe
from celery_trace.runtime.recorder import Recorder
from celery_trace.settings import Settings
from celery_trace.text.code_owner import code_of
from django_bridge import configuration, request_context, request_trace, routes
from django_bridge.rate_limit import RateLimit
from django_bridge.request_trace import RequestTrace

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

#: Client errors in Django, which are not failures of the site.
CLIENT_ERRORS = (Http404, PermissionDenied, BadRequest, MultiPartParserError)

#: Limit of recorded suspicious operations per number of seconds, in each process.
SUSPICIONS: Final = 30
SUSPICIONS_S: Final = 60.0

#: Two threads may serve a process's first requests.
_making = threading.Lock()

#: Most remembered views; leaks of further routes have no code to attribute them to.
_MOST_VIEWS = 2_000

_NOT_RECORDED = (KeyboardInterrupt, GeneratorExit)


class Tracer:
    """
    Measures requests and records their failures.

    Args:
        settings: The validated settings of this process.
        redactor: Redacts the recorded parts of a request.
    """

    def __init__(self, settings: Settings, redactor: Redactor) -> None:
        self.settings = settings
        self.redactor = redactor
        #: Clients can cause these as often as they like.
        self.suspicions = RateLimit(SUSPICIONS, SUSPICIONS_S)
        #: The view of each run's name: leaks are attributed to its code while requests overlap.
        self._views: dict[str, object] = {}

    # --- a request's stages ----------------------------------------------------------------------------

    def arrived(self, request: HttpRequest) -> RequestTrace:
        """A request reached the middleware."""
        trace = RequestTrace()
        trace.inside = True
        setattr(request, request_trace.ATTRIBUTE, trace)
        return trace

    def routed(self, trace: RequestTrace, request: HttpRequest) -> None:
        """The view is known and about to be called: from here on this is a run of its route."""
        with Guard("django: run started"):
            match = request.resolver_match
            if routes.is_own_page(match):
                trace.own_page = True
                return
            trace.name = routes.run_name(request.method, routes.route_of(match))
            if trace.name not in self._views and len(self._views) < _MOST_VIEWS:
                self._views[trace.name] = match.func
            trace.run = self.recorder().run_started(Kind.REQUEST, trace.name, trace.id)
            trace.run.origin, trace.run.describe = trace.id, _is_its_own_root

    def noted(self, request: HttpRequest, error: BaseException) -> None:
        """
        An exception was seen. Whether it is a failure is decided when the response is known.

        For one from outside our middleware (from an outer middleware, or if ours is not installed), it is decided now.
        """
        if not self.settings.enabled:
            return
        trace = request_trace.of(request)
        if trace is not None and trace.inside:
            trace.error = error
            return
        if trace is not None and trace.propagated is error:
            return
        status = 400 if isinstance(error, SuspiciousOperation) else 500
        self._record(trace or RequestTrace(), request, error, status)

    def answered(self, trace: RequestTrace, request: HttpRequest, response: HttpResponseBase) -> object:
        """There is a response; the run ends with it, or with the last byte of a streaming one."""
        trace.inside = False
        with Guard("django: response"):
            error, trace.error = trace.error, None
            status: int = response.status_code
            failed = status >= 500
            # An exception that another middleware turned into an ordinary response was handled: not a failure.
            if error is not None and (failed or isinstance(error, SuspiciousOperation)):
                failed = self._record(trace, request, error, status) or failed
            del error
            if response.streaming and not trace.own_page:
                self._watch_stream(trace, request, response)
            else:
                self.ended(trace, str(status), failed=failed)
        return response

    def broke(self, trace: RequestTrace, request: HttpRequest, error: BaseException) -> None:
        """An exception passed the middleware: ``DEBUG_PROPAGATE_EXCEPTIONS``, an exit, a cancelled request."""
        trace.inside = False
        seen, trace.error = trace.error, None
        if seen is not None and not _leads_to(seen, error):
            self._record(trace, request, seen, 500)
        recorded = self._record(trace, request, error, 500)
        if recorded and isinstance(error, Exception):
            # Django sends its signal again at each middleware that the exception passes.
            trace.propagated = error
        self.ended(trace, type(error).__name__, failed=recorded)

    def ended(self, trace: RequestTrace, state: str, *, failed: bool) -> None:
        """The run has ended. Later calls for the same request do nothing."""
        if trace.ended:
            return
        trace.ended = True
        run, trace.run = trace.run, None
        if run is not None:
            with Guard("django: run ended"):
                self.recorder().run_ended(run, state, failed=failed)

    # --- streaming -------------------------------------------------------------------------------------

    def _watch_stream(self, trace: RequestTrace, request: HttpRequest, response: HttpResponseBase) -> None:
        """End the run when a streaming response is closed, and record its failure."""
        status = str(response.status_code)

        def end() -> None:
            self.ended(trace, status, failed=False)

        # Don't wrap a file: the server may send it without Python (wsgi.file_wrapper).
        if getattr(response, "file_to_stream", None) is None:
            chunks = response.streaming_content
            watch = self._watched_async if response.is_async else self._watched
            response.streaming_content = watch(chunks, trace, request, response.status_code)
        response._resource_closers.append(end)
        # Another middleware may replace the response and never close this one.
        weakref.finalize(response, end).atexit = False

    def _watched(
        self, chunks: Iterator[bytes], trace: RequestTrace, request: HttpRequest, status: int
    ) -> Iterator[bytes]:
        try:
            while True:
                token = request_trace.current.set(trace)
                try:
                    chunk = next(chunks)
                except StopIteration:
                    return
                finally:
                    request_trace.current.reset(token)
                yield chunk
        except Exception as error:
            self._broke_off(trace, request, error, status)
            raise

    async def _watched_async(
        self, chunks: AsyncIterator[bytes], trace: RequestTrace, request: HttpRequest, status: int
    ) -> AsyncIterator[bytes]:
        try:
            while True:
                token = request_trace.current.set(trace)
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                finally:
                    request_trace.current.reset(token)
                yield chunk
        except Exception as error:
            self._broke_off(trace, request, error, status)
            raise

    def _broke_off(self, trace: RequestTrace, request: HttpRequest, error: Exception, status: int) -> None:
        recorded = self._record(trace, request, error, status, note="The response was being streamed.")
        self.ended(trace, str(status), failed=recorded)

    # --- failures --------------------------------------------------------------------------------------

    def recorder(self) -> Recorder:
        """This process's recorder, created at its first request (and again after a fork)."""
        recorder = recorders.current()
        if recorder is None:
            recorder = recorders.ensure(self.settings, Role.WEB, code_of=self._code_of)
            atexit.unregister(recorders.close)
            atexit.register(recorders.close)
            recorder.extra_counters.append(self._counters)
            logs = recorder.probe(LogProbe).logs
            logs.find.append(request_trace.run_in_progress)
            logs.passed_over.add("django.request")
            with Guard("django: live shell"), _making:
                if self.settings.shell == "live" and recorder.keeper is None:
                    _keep_live(recorder)
        return recorder

    def _code_of(self, kind: Kind, name: str) -> list[CodeType]:
        return code_of(self._views.get(name)) if kind is Kind.REQUEST else []

    def _counters(self) -> dict[str, int]:
        refused = self.suspicions.refused
        return {"dropped:suspicious": refused} if refused else {}

    def _record(
        self, trace: RequestTrace, request: HttpRequest, error: BaseException, status: int, note: str = ""
    ) -> bool:
        """Write the failure of a request. Returns whether it was one and had to be recorded."""
        if not self.settings.failures or trace.own_page or not is_failure(error):
            return False
        if isinstance(error, SuspiciousOperation) and not self.suspicions.allow():
            return False
        with Guard("django: failure capture"):
            recorder = self.recorder()
            duration_s = trace.duration_s
            match = routes.find_match(request)
            if not trace.name:
                route = routes.route_of(match) if match is not None else routes.NO_ROUTE
                trace.name = routes.run_name(request.method, route)
            scrubber = Scrubber()
            capture = capture_exception(
                error,
                limits=self.settings.limits,
                redactor=self.redactor,
                in_app=self.settings.in_app,
                arguments=Arguments(match.args, match.kwargs) if match is not None else None,
                scrubber=scrubber,
            )
            tail = recorder.probe(LogProbe).logs.of(trace.id, 0, scrubber)
            raised = capture.exceptions[0]
            exception = ExceptionInfo(type=raised.type, module=raised.module, message=raised.message)
            failure = Failure(
                id=trace.id if trace.first_failure else new_id(),
                process=recorder.process.uid,
                kind=Kind.REQUEST,
                name=trace.name,
                task_id=trace.id,
                outcome=outcome_of(error),
                witness="web",
                exception=exception,
                fingerprint=fingerprint.fingerprint(Kind.REQUEST, trace.name, capture, exception),
                worker=recorder.process.worker,
                pid=recorder.process.pid,
                hostname=recorder.process.host,
                at_s=recorder.clock.now_s(),
                duration_s=duration_s,
                capture=capture,
                # Its tasks have the same root: a query for it finds all of them.
                task=TaskContext(root_id=trace.id),
                request=request_context.describe(
                    request, trace, error, status=status, redactor=self.redactor, limits=self.settings.limits
                ),
                memory=read_memory(),
                note=note,
                logs=tail if tail.lines else None,
            )
            trace.first_failure = False
            recorder.write(failure)
            recorder.keep(failure, error)
            return True
        return False


def _keep_live(recorder: Recorder) -> None:
    """Make this process's failures available to the live shell, over the broker of the project's Celery app."""
    from celery import current_app

    from celery_trace.shell.live.keeper import Keeper

    keeper = Keeper(
        recorder.settings, recorder.process, recorder.write, current_app.connection_for_write, recorder.clock
    )
    recorder.keeper = keeper
    recorder.extra_counters.append(lambda: dict(keeper.counters))


@lru_cache(maxsize=1)
def of_this_process() -> Tracer:
    """The tracer for Django's signals and log; recreated when the settings change."""
    return Tracer(configuration.settings(), configuration.redactor())


def forget(**_: object) -> None:
    """Recreate the tracer at its next use; connected to Django's ``setting_changed``."""
    of_this_process.cache_clear()


def is_failure(error: BaseException) -> bool:
    """Whether an exception is a failure of the site, not a client error or a disconnect."""
    if isinstance(error, (*CLIENT_ERRORS, *_NOT_RECORDED)):
        return False
    # Under ASGI a disconnect cancels the request.
    return type(error).__name__ != "CancelledError"


def outcome_of(error: BaseException) -> Outcome:
    """``time_limit`` if gunicorn's ``--timeout`` aborts the worker during the request, ``lost`` for another exit."""
    if not isinstance(error, SystemExit):
        return Outcome.FAILED
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name == "handle_abort":
            return Outcome.TIME_LIMIT
        traceback = traceback.tb_next
    return Outcome.LOST


def _leads_to(earlier: BaseException, later: BaseException | None) -> bool:
    """Whether ``earlier`` is in the chain of ``later``, and so part of its record."""
    for _ in range(100):
        if later is None:
            return False
        if later is earlier:
            return True
        later = later.__cause__ or later.__context__
    return False


def note_uncaught(*, request: HttpRequest | None = None, **_: object) -> None:
    """A request ends in a server error; connected to Django's ``got_request_exception``, which lacks the exception."""
    error = sys.exc_info()[1]
    if request is not None and error is not None:
        with Guard("django: uncaught exception"):
            of_this_process().noted(request, error)


def _is_its_own_root(trace_id: object) -> tuple[str, str]:
    """The queue and root of a request: it has no queue, and is the root of its tasks."""
    return "", str(trace_id)
