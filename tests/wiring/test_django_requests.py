"""Requests are measured by route, their failures captured once, and ordinary answers left alone."""

import gc

import pytest
from django.test.utils import override_settings

from celery_trace.model import Kind, Outcome, Role
from tests.support import django_project as project
from tests.support.django_project import MIDDLEWARE, TRACE

pytest_plugins = ["tests.support.fixtures_django"]


def local(failure, name, frame=0):
    """A captured local's value."""
    raised = failure.capture.exceptions[0]
    (variable,) = [variable for variable in raised.frames[frame].locals if variable.name == name]
    return failure.capture.heap[variable.ref].value


def test_runs_are_counted_by_route_not_by_path(site):
    client = site.client()
    for path in ("/shop/1/", "/shop/2/", "/shop/3/?page=2", "/old/1999/may/", "/"):
        assert client.get(path).status_code == 200
    client.post("/shop/4/")
    assert site.runs() == {
        "GET /shop/<int:pk>/": (3, 0),
        "GET /old/<year>/<var>/": (1, 0),
        "GET /": (1, 0),
        "POST /shop/<int:pk>/": (1, 0),
    }
    (process,) = {record.uid: record for record in site.processes()}.values()
    assert process.role is Role.WEB


def test_an_unknown_method_makes_no_name_of_its_own(site):
    site.client().generic("BREW", "/shop/1/")
    assert list(site.runs()) == ["OTHER /shop/<int:pk>/"]


@pytest.mark.parametrize("path", ["/nowhere/", "/not-found/", "/denied/", "/bad-request/"])
def test_the_clients_own_mistakes_are_no_failures(site, path):
    assert site.client().get(path).status_code in {400, 403, 404}
    assert site.failures() == []
    assert all(failed == 0 for _, failed in site.runs().values())


def test_a_failed_view_is_one_record_with_its_locals_and_its_request(site):
    response = site.client().get("/shop/7/divide/?page=2", headers={"X-Trace": "yes"})
    assert response.status_code == 500
    failure = site.failure()
    assert (failure.kind, failure.name, failure.witness) == ("request", "GET /shop/<int:pk>/divide/", "web")
    assert failure.outcome is Outcome.FAILED
    assert failure.id == failure.task_id
    assert failure.exception.type == "ZeroDivisionError"
    assert failure.fingerprint
    assert {name: local(failure, name) for name in ("context_data", "a", "c", "d", "pk")} == {
        "context_data": "Hello", "a": 5, "c": 6, "d": 10, "pk": 7,
    }  # fmt: skip
    request = failure.request
    assert (request.method, request.path, request.status) == ("GET", "/shop/7/divide/", 500)
    assert request.route == "/shop/<int:pk>/divide/"
    assert request.view == "tests.support.django_project.divide"
    assert request.get == {"page": ["2"]}
    assert request.headers["X-Trace"] == "yes"
    assert failure.duration_s > 0
    assert failure.memory.rss_bytes > 1_000_000
    assert site.runs() == {"GET /shop/<int:pk>/divide/": (1, 1)}


def test_each_failure_of_a_route_shares_its_fingerprint_whatever_the_object(site):
    client = site.client()
    client.get("/shop/7/divide/")
    client.get("/shop/8/divide/")
    first, second = site.failures()
    assert first.fingerprint == second.fingerprint
    assert first.id != second.id


def test_the_code_behind_a_route_is_known_for_what_grows_while_requests_overlap(site):
    from django_bridge.tracer import of_this_process

    client = site.client()
    client.get("/class/")
    client.get("/shop/1/")
    names = {
        name: {code.co_name for code in of_this_process()._code_of(Kind.REQUEST, name)}
        for name in ("GET /class/", "GET /shop/<int:pk>/", "GET /never-asked/")
    }
    assert "get" in names["GET /class/"]
    assert names["GET /shop/<int:pk>/"]
    assert names["GET /never-asked/"] == set()


def test_a_class_based_view_is_named_by_its_class(site):
    site.client().get("/class/")
    failure = site.failure()
    assert failure.request.view.endswith("ClassView")
    assert local(failure, "amount") == 3


def test_an_async_view_is_captured_under_wsgi(site):
    site.client().get("/async-divide/")
    assert local(site.failure(), "dividend") == 42


async def _get(client, path):
    response = await client.get(path)
    if response.streaming:
        try:
            return b"".join([part async for part in response])
        finally:
            response.close()
    return response


def _asgi(site, *paths):
    """Ask for pages one after another as an ASGI server does; gives the last response."""
    from asgiref.sync import async_to_sync

    async def all_of_them():
        client = site.async_client()
        return [await _get(client, path) for path in paths][-1]

    return async_to_sync(all_of_them)()


def test_async_and_sync_views_are_captured_under_asgi(site):
    assert _asgi(site, "/async-fine/", "/async-divide/", "/divide/").status_code == 500
    first, second = site.failures()
    assert local(first, "dividend") == 42
    assert local(second, "context_data") == "Hello"
    assert site.runs() == {
        "GET /async-fine/": (1, 0),
        "GET /async-divide/": (1, 1),
        "GET /divide/": (1, 1),
    }


def test_the_middleware_stays_async_under_asgi():
    """A sync middleware in an async chain costs two hops between threads on every request."""
    from asgiref.sync import iscoroutinefunction

    from django_bridge.middleware import TraceMiddleware

    async def answer(request):
        return None

    middleware = TraceMiddleware(answer)
    assert iscoroutinefunction(middleware)
    assert iscoroutinefunction(middleware.process_view)


def test_requests_that_run_at_once_keep_their_own_counts(site):
    import asyncio

    from asgiref.sync import async_to_sync

    async def at_once():
        client = site.async_client()
        await asyncio.gather(*(client.get(f"/async-queries/?n={count}") for count in (2, 5, 3)))

    async_to_sync(at_once)()
    counts = {failure.exception.message: failure.request.sql_count for failure in site.failures()}
    assert counts == {"after 2": 2, "after 5": 5, "after 3": 3}
    assert len({failure.id for failure in site.failures()}) == 3


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_middleware_that_raises_is_one_failure(site, place, moment):
    other = f"tests.support.django_project.raises_{moment}"
    order = [TRACE, other] if place == "inside" else [other, TRACE]
    with override_settings(MIDDLEWARE=order):
        assert site.client().get(f"/shop/1/?raise={moment}").status_code == 500
        failure = site.failure()
    assert failure.exception.message == "by the middleware"
    assert failure.name == "GET /shop/<int:pk>/"
    assert failure.request.status == 500
    if moment == "before":
        assert local(failure, "told") == "by the middleware"


def test_without_the_middleware_failures_are_still_recorded(site):
    with override_settings(MIDDLEWARE=[]):
        assert site.client().get("/shop/1/divide/").status_code == 500
        assert site.failure().name == "GET /shop/<int:pk>/divide/"


def test_an_exception_that_another_middleware_answers_is_no_failure(site):
    with override_settings(MIDDLEWARE=["tests.support.django_project.Handles", TRACE]):
        assert site.client().get("/divide/").content == b"handled"
        assert site.failures() == []
        assert site.runs() == {"GET /divide/": (1, 0)}


def test_an_exception_that_another_middleware_answers_with_a_server_error_is_one(site):
    with override_settings(MIDDLEWARE=["tests.support.django_project.Handles", TRACE]):
        site.client().get("/divide/?status=502")
        assert site.failure().request.status == 502


def test_a_view_that_returns_nothing_is_a_failure(site):
    site.client().get("/returns-nothing/")
    assert "didn't return an HttpResponse" in site.failure().exception.message


def test_an_answer_with_a_server_error_counts_as_failed_without_a_capture(site):
    site.client().get("/503/")
    assert site.failures() == []
    assert site.runs() == {"GET /503/": (1, 1)}


@pytest.mark.parametrize("with_middleware", [True, False])
def test_a_suspicious_operation_in_a_view_is_recorded_once(site, with_middleware):
    with override_settings(MIDDLEWARE=MIDDLEWARE if with_middleware else []):
        assert site.client().get("/suspicious/").status_code == 400
        failure = site.failure()
    assert failure.exception.type == "SuspiciousOperation"
    assert failure.request.status == 400


def test_a_forged_host_is_recorded_though_no_middleware_of_ours_sees_it(site):
    assert site.client().get("/shop/1/", headers={"Host": "evil.example"}).status_code == 400
    failure = site.failure()
    assert failure.exception.type == "DisallowedHost"
    assert failure.request.headers["Host"] == "evil.example"


def test_a_flood_of_suspicious_requests_is_cut_and_the_cut_is_counted(site):
    from celery_trace.model import Stats
    from django_bridge.tracer import SUSPICIONS

    client = site.client()
    for _ in range(SUSPICIONS + 5):
        client.get("/shop/1/", headers={"Host": "evil.example"})
    assert len(site.failures()) == SUSPICIONS
    stats = [record for record in site.records() if isinstance(record, Stats)]
    assert stats[-1].counters["dropped:suspicious"] == 5


def test_a_propagated_exception_is_recorded_once(site):
    from django.test import Client

    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True):
        with pytest.raises(ZeroDivisionError):
            Client().get("/divide/")
        assert site.failure().exception.type == "ZeroDivisionError"
        assert site.runs() == {"GET /divide/": (1, 1)}


def test_a_worker_that_gunicorn_aborts_leaves_the_request_as_a_time_limit(site):
    with pytest.raises(SystemExit):
        site.client().get("/exits/")
    failure = site.failure()
    assert failure.outcome is Outcome.TIME_LIMIT
    assert failure.name == "GET /exits/"


def test_queries_are_counted_and_timed(site):
    site.client().get("/queries/")
    request = site.failure().request
    assert request.sql_count == 3
    assert 0 < request.sql_s < 5


def test_a_connection_that_opens_inside_a_users_wrapper_keeps_both(site):
    """``execute_wrapper`` pops the last wrapper when its block ends; it must be the user's own."""
    from django.db import connection

    from django_bridge.database_time import count_query

    seen = []

    def users(execute, sql, params, many, context):
        seen.append(sql)
        return execute(sql, params, many, context)

    connection.close()
    with connection.execute_wrapper(users), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert connection.execute_wrappers == [count_query]
    with connection.cursor() as cursor:
        cursor.execute("SELECT 2")
    assert seen == ["SELECT 1"]


def test_the_middleware_is_not_used_where_tracing_is_off(site):
    with override_settings(CELERY_TRACE_ENABLED=False):
        assert site.client().get("/divide/").status_code == 500
        assert site.records() == []


def test_a_wrong_setting_is_refused_with_its_name(site):
    from django.core.exceptions import ImproperlyConfigured

    with override_settings(CELERY_TRACE_MEMORY="some"), pytest.raises(ImproperlyConfigured) as refusal:
        site.client().get("/")
    assert "CELERY_TRACE_MEMORY is 'some'" in str(refusal.value)
    assert "auto" in str(refusal.value)


def test_failures_can_be_switched_off_alone(site):
    with override_settings(CELERY_TRACE_FAILURES=False):
        site.client().get("/divide/")
        assert site.failures() == []
        assert site.runs() == {"GET /divide/": (1, 1)}


def test_an_error_of_our_own_reaches_no_request(site, monkeypatch):
    from celery_trace import guard
    from django_bridge import tracer

    def broken(*_args, **_more):
        raise OSError("ours")

    monkeypatch.setattr(tracer, "capture_exception", broken)
    monkeypatch.setattr(tracer.Tracer, "recorder", broken)
    assert site.client().get("/shop/1/").status_code == 200
    assert site.client().get("/divide/").status_code == 500
    assert guard.own_errors.pop("django: run started") == 2
    assert guard.own_errors.pop("django: failure capture") == 1


def test_a_failed_request_keeps_no_frame_alive(site, monkeypatch):
    """The exception is held until the response is known, and let go then."""
    import logging

    from django.core.handlers.wsgi import WSGIHandler
    from django.test import RequestFactory

    from django_bridge import request_trace

    # What pytest captures of the log would hold the exception too.
    monkeypatch.setattr(logging.getLogger("django.request"), "disabled", True)
    project.witnesses.clear()
    request = RequestFactory().get("/witnessed/")
    WSGIHandler().get_response(request).close()
    assert request_trace.of(request).error is None
    gc.collect()
    (witness,) = project.witnesses
    assert witness() is None
    assert site.failure().name == "GET /witnessed/"


def test_the_log_records_of_a_failed_request_are_its_own_and_redacted(site):
    client = site.client()
    client.get("/logs/")
    client.get("/logs/")
    client.get("/divide/")
    first, second, other = site.failures()
    for failure in (first, second):
        (line,) = failure.logs.lines
        assert (line.level, line.logger) == ("WARNING", "shop.views")
        assert line.text == "ada logs in with password=[redacted]"
        assert line.file.endswith("django_project.py")
    assert other.logs is None
    assert b"hunter2hunter2" not in site.bytes()


def test_the_log_records_of_an_async_request_are_seen_in_its_threads_too(site):
    import asyncio

    asyncio.run(site.async_client().get("/async-logs/"))
    assert [line.text for line in site.failure().logs.lines] == ["before", "in a thread", "in a thread"]


def test_no_log_record_is_kept_where_that_is_off(site):
    with override_settings(CELERY_TRACE_LOG_RECORDS=0):
        site.client().get("/logs/")
        assert site.failure().logs is None
