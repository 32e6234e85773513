"""
What happens to a request between the middleware's call and the last byte of its response.

:class:`Tracer` decides; the middleware, the signals and the log handler only tell it what they
saw. Every method is guarded here, so that nothing of ours reaches a request.
"""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from functools import lru_cache
from types import CodeType
from typing import Any, Final

from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http import Http404
from django.http.multipartparser import MultiPartParserError

from celery_trace.failures import fingerprint
from celery_trace.failures.capture import Arguments, capture_exception
from celery_trace.guard import Guard
from celery_trace.model import ExceptionInfo, Failure, Kind, Outcome, Role, TaskContext, new_id
from celery_trace.process.memory import read_memory
from celery_trace.redaction import Redactor
from celery_trace.runtime import recorder as recorders
from celery_trace.runtime.recorder import Recorder
from celery_trace.settings import Settings
from celery_trace.text.code_owner import code_of
from django_bridge import configuration, request_context, routes, visits
from django_bridge.rate_limit import RateLimit
from django_bridge.visits import Visit

#: The client's own mistakes, as Django answers them: no failures of the site.
CLIENT_ERRORS = (Http404, PermissionDenied, BadRequest, MultiPartParserError)

#: How many suspicious operations are recorded in so many seconds, in each process.
SUSPICIONS: Final = 30
SUSPICIONS_S: Final = 60.0

#: Two threads may serve a process's first requests.
_making = threading.Lock()

#: Views that are remembered; a site with more routes is told of the rest without blame.
_MOST_VIEWS = 2_000

_NOT_RECORDED = (KeyboardInterrupt, GeneratorExit)


class Tracer:
    """
    Measures visits and records their failures.

    Args:
        settings: The checked settings of this process.
        redactor: Takes secrets out of what is kept of a request.
    """

    def __init__(self, settings: Settings, redactor: Redactor) -> None:
        self.settings = settings
        self.redactor = redactor
        #: Anybody can make these from outside, as often as they like.
        self.suspicions = RateLimit(SUSPICIONS, SUSPICIONS_S)
        #: The view behind each name of a run: whose code it is that keeps what grows while requests overlap.
        self._views: dict[str, Any] = {}

    # --- a request's way -------------------------------------------------------------------------------

    def arrived(self, request: Any) -> Visit:
        """A request reached the middleware."""
        visit = Visit()
        visit.inside = True
        setattr(request, visits.ATTRIBUTE, visit)
        return visit

    def routed(self, visit: Visit, request: Any) -> None:
        """The view is known and about to be called: from here on it is a run of that route."""
        with Guard("django: run started"):
            match = request.resolver_match
            if routes.is_own_page(match):
                visit.own_page = True
                return
            visit.name = routes.run_name(request.method, routes.route_of(match))
            if visit.name not in self._views and len(self._views) < _MOST_VIEWS:
                self._views[visit.name] = match.func
            visit.run = self.recorder().run_started(Kind.REQUEST, visit.name, visit.id)
            visit.run.origin, visit.run.describe = visit.id, _is_its_own_root

    def noted(self, request: Any, error: BaseException) -> None:
        """
        An exception was seen on its way. Whether it is a failure is decided when the response is known.

        What comes from outside the middleware (another one around it, or none of ours in
        the list) has no such moment, and is decided now.
        """
        if not self.settings.enabled:
            return
        visit = visits.of(request)
        if visit is not None and visit.inside:
            visit.error = error
            return
        if visit is not None and visit.propagated is error:
            return
        status = 400 if isinstance(error, SuspiciousOperation) else 500
        self._record(visit or Visit(), request, error, status)

    def answered(self, visit: Visit, request: Any, response: Any) -> Any:
        """There is a response; the run ends with it, or with its last byte where it streams."""
        visit.inside = False
        with Guard("django: response"):
            error, visit.error = visit.error, None
            status: int = response.status_code
            failed = status >= 500
            # An exception that another middleware turned into an ordinary answer was handled, not a failure.
            if error is not None and (failed or isinstance(error, SuspiciousOperation)):
                failed = self._record(visit, request, error, status) or failed
            del error
            if response.streaming and not visit.own_page:
                self._watch_stream(visit, request, response)
            else:
                self.ended(visit, str(status), failed=failed)
        return response

    def broke(self, visit: Visit, request: Any, error: BaseException) -> None:
        """An exception went past the middleware: ``DEBUG_PROPAGATE_EXCEPTIONS``, an exit, a cancelled request."""
        visit.inside = False
        seen, visit.error = visit.error, None
        if seen is not None and not _leads_to(seen, error):
            self._record(visit, request, seen, 500)
        recorded = self._record(visit, request, error, 500)
        if recorded and isinstance(error, Exception):
            # Django sends its signal for it again at each middleware that it passes.
            visit.propagated = error
        self.ended(visit, type(error).__name__, failed=recorded)

    def ended(self, visit: Visit, state: str, *, failed: bool) -> None:
        """The run is over. Later calls for the same visit do nothing."""
        if visit.ended:
            return
        visit.ended = True
        run, visit.run = visit.run, None
        if run is not None:
            with Guard("django: run ended"):
                self.recorder().run_ended(run, state, failed=failed)

    # --- streaming -------------------------------------------------------------------------------------

    def _watch_stream(self, visit: Visit, request: Any, response: Any) -> None:
        """Have a streaming response end its visit when it is closed, and say how it failed."""
        status = str(response.status_code)

        def end() -> None:
            self.ended(visit, status, failed=False)

        # A file is left as it is: the server may send it without Python reading it (wsgi.file_wrapper).
        if getattr(response, "file_to_stream", None) is None:
            chunks = response.streaming_content
            watch = self._watched_async if response.is_async else self._watched
            response.streaming_content = watch(chunks, visit, request, response.status_code)
        response._resource_closers.append(end)
        # Another middleware may replace the response and never close this one.
        weakref.finalize(response, end).atexit = False

    def _watched(self, chunks: Iterator[bytes], visit: Visit, request: Any, status: int) -> Iterator[bytes]:
        try:
            while True:
                token = visits.current.set(visit)
                try:
                    chunk = next(chunks)
                except StopIteration:
                    return
                finally:
                    visits.current.reset(token)
                yield chunk
        except Exception as error:
            self._broke_off(visit, request, error, status)
            raise

    async def _watched_async(
        self, chunks: AsyncIterator[bytes], visit: Visit, request: Any, status: int
    ) -> AsyncIterator[bytes]:
        try:
            while True:
                token = visits.current.set(visit)
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                finally:
                    visits.current.reset(token)
                yield chunk
        except Exception as error:
            self._broke_off(visit, request, error, status)
            raise

    def _broke_off(self, visit: Visit, request: Any, error: Exception, status: int) -> None:
        recorded = self._record(visit, request, error, status, note="The response was being streamed.")
        self.ended(visit, str(status), failed=recorded)

    # --- failures --------------------------------------------------------------------------------------

    def recorder(self) -> Recorder:
        """This process's recorder, made at its first request (and again after a fork)."""
        recorder = recorders.current()
        if recorder is None:
            recorder = recorders.ensure(self.settings, Role.WEB, code_of=self._code_of)
            atexit.unregister(recorders.close)
            atexit.register(recorders.close)
            recorder.extra_counters.append(self._counters)
            with Guard("django: live shell"), _making:
                if self.settings.shell == "live" and recorder.keeper is None:
                    _keep_live(recorder)
        return recorder

    def _code_of(self, kind: Kind, name: str) -> list[CodeType]:
        return code_of(self._views.get(name)) if kind is Kind.REQUEST else []

    def _counters(self) -> dict[str, int]:
        refused = self.suspicions.refused
        return {"dropped:suspicious": refused} if refused else {}

    def _record(self, visit: Visit, request: Any, error: BaseException, status: int, note: str = "") -> bool:
        """Write the failure of a request. Returns whether it was one, and was to be recorded."""
        if not self.settings.failures or visit.own_page or not is_failure(error):
            return False
        if isinstance(error, SuspiciousOperation) and not self.suspicions.allow():
            return False
        with Guard("django: failure capture"):
            recorder = self.recorder()
            duration_s = visit.duration_s
            match = routes.find_match(request)
            if not visit.name:
                route = routes.route_of(match) if match is not None else routes.NO_ROUTE
                visit.name = routes.run_name(request.method, route)
            capture = capture_exception(
                error,
                limits=self.settings.limits,
                redactor=self.redactor,
                in_app=self.settings.in_app,
                arguments=Arguments(match.args, match.kwargs) if match is not None else None,
            )
            raised = capture.exceptions[0]
            exception = ExceptionInfo(type=raised.type, module=raised.module, message=raised.message)
            failure = Failure(
                id=visit.id if visit.first_failure else new_id(),
                process=recorder.process.uid,
                kind=Kind.REQUEST,
                name=visit.name,
                task_id=visit.id,
                outcome=outcome_of(error),
                witness="web",
                exception=exception,
                fingerprint=fingerprint.fingerprint(Kind.REQUEST, visit.name, capture, exception),
                worker=recorder.process.worker,
                pid=recorder.process.pid,
                hostname=recorder.process.host,
                at_s=recorder.clock.now_s(),
                duration_s=duration_s,
                capture=capture,
                # The tasks that it sent carry the same root: a query for it finds all of them.
                task=TaskContext(root_id=visit.id),
                request=request_context.describe(
                    request, visit, error, status=status, redactor=self.redactor, limits=self.settings.limits
                ),
                memory=read_memory(),
                note=note,
            )
            visit.first_failure = False
            recorder.write(failure)
            recorder.keep(failure, error)
            return True
        return False


def _keep_live(recorder: Recorder) -> None:
    """Let the live shell reach this process's failures, over the broker of the project's Celery app."""
    from celery import current_app

    from celery_trace.shell.live.keeper import Keeper

    keeper = Keeper(
        recorder.settings, recorder.process, recorder.write, current_app.connection_for_write, recorder.clock
    )
    recorder.keeper = keeper
    recorder.extra_counters.append(lambda: dict(keeper.counters))


@lru_cache(maxsize=1)
def of_this_process() -> Tracer:
    """The tracer that Django's signals and log tell what they saw; made anew when the settings change."""
    return Tracer(configuration.settings(), configuration.redactor())


def forget(**_: Any) -> None:
    """Make the tracer anew when it is next asked for; connected to Django's ``setting_changed``."""
    of_this_process.cache_clear()


def is_failure(error: BaseException) -> bool:
    """Whether an exception is the site's failure: not the client's mistake, nor somebody leaving."""
    if isinstance(error, (*CLIENT_ERRORS, *_NOT_RECORDED)):
        return False
    # A client that hangs up cancels its request under ASGI.
    return type(error).__name__ != "CancelledError"


def outcome_of(error: BaseException) -> Outcome:
    """``time_limit`` where gunicorn's ``--timeout`` aborts the worker inside the request, ``lost`` for another exit."""
    if not isinstance(error, SystemExit):
        return Outcome.FAILED
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name == "handle_abort":
            return Outcome.TIME_LIMIT
        traceback = traceback.tb_next
    return Outcome.LOST


def _leads_to(earlier: BaseException, later: BaseException | None) -> bool:
    """Whether ``earlier`` stands in the chain of ``later``, and so is part of its record."""
    for _ in range(100):
        if later is None:
            return False
        if later is earlier:
            return True
        later = later.__cause__ or later.__context__
    return False


def note_uncaught(*, request: Any = None, **_: Any) -> None:
    """A request ends in a server error; connected to Django's ``got_request_exception``, which doesn't name it."""
    error = sys.exc_info()[1]
    if request is not None and error is not None:
        with Guard("django: uncaught exception"):
            of_this_process().noted(request, error)


def _is_its_own_root(visit_id: str) -> tuple[str, str]:
    """A request has no queue, and is the root of the tasks that it sends."""
    return "", visit_id
