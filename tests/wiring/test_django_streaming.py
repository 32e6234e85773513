"""A streaming response is over with its last byte: its run ends there, and what breaks there is a failure."""

import gc

import pytest
from asgiref.sync import async_to_sync
from django.test.utils import override_settings

from tests.support.django_project import TRACE

pytest_plugins = ["tests.support.fixtures_django"]


def test_a_stream_is_one_run_that_ends_when_it_is_closed(site):
    from celery_trace.runtime import recorder

    response = site.client().get("/stream/")
    assert recorder.current().runs == 0, "nothing was sent yet"
    assert response.getvalue() == b"one two"
    response.close()
    assert site.runs() == {"GET /stream/": (1, 0)}


def test_a_stream_that_breaks_off_is_a_failure_with_its_locals(site):
    response = site.client().get("/stream/?break=1")
    assert response.status_code == 200
    with pytest.raises(RuntimeError, match="nothing left"):
        response.getvalue()
    response.close()
    failure = site.failure()
    assert failure.name == "GET /stream/"
    assert "streamed" in failure.note
    assert failure.request.status == 200
    (remains,) = [local for local in failure.capture.exceptions[0].frames[0].locals if local.name == "remains"]
    assert failure.capture.heap[remains.ref].value == "nothing"
    assert site.runs() == {"GET /stream/": (1, 1)}


def test_an_async_stream_is_measured_and_captured_under_asgi(site):
    async def read(path):
        response = await site.async_client().get(path)
        try:
            return b"".join([part async for part in response.streaming_content])
        finally:
            response.close()

    assert async_to_sync(read)("/async-stream/") == b"one two"
    with pytest.raises(RuntimeError, match="nothing left"):
        async_to_sync(read)("/async-stream/?break=1")
    assert site.failure().name == "GET /async-stream/"
    assert site.runs() == {"GET /async-stream/": (2, 1)}


def test_queries_made_while_streaming_belong_to_the_request(site):
    from django_bridge import request_trace

    response = site.client().get("/stream/")
    trace = request_trace.of(response.wsgi_request)
    assert trace.sql_count == 0
    response.getvalue()
    assert trace.sql_count == 1
    response.close()


def test_queries_over_a_connection_that_was_open_before_the_bridge_are_counted_too(site):
    from django.db import connections

    from django_bridge import apps, request_trace

    apps.disconnect()
    connections.close_all()
    connections["default"].execute_wrappers.clear()
    connections["default"].ensure_connection()
    apps.connect()
    response = site.client().get("/stream/")
    trace = request_trace.of(response.wsgi_request)
    response.getvalue()
    assert trace.sql_count == 1
    response.close()


def test_a_file_is_still_handed_to_the_server_as_a_file(site):
    """Wrapping its content would cost ``wsgi.file_wrapper``, with which a server sends it without Python."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import RequestFactory

    response = WSGIHandler().get_response(RequestFactory().get("/file/"))
    assert response.file_to_stream.read() == b"contents"
    response.close()
    assert site.runs() == {"GET /file/": (1, 0)}


def test_a_stream_that_another_middleware_drops_ends_its_run(site):
    with override_settings(MIDDLEWARE=["tests.support.django_project.replaces_response", TRACE]):
        assert site.client().get("/stream/").status_code == 304
        gc.collect()
        assert site.runs() == {"GET /stream/": (1, 0)}
