"""A request and the tasks that it sent know of each other, and a stored result of its record."""

import json
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from celery_trace import published
from celery_trace.model import failure_id
from django_bridge import links
from tests.support import django_project as project

pytest_plugins = ["tests.support.fixtures_django"]


@pytest.fixture
def sent(site):
    """The headers of the messages that were published."""
    from celery.signals import before_task_publish

    seen = []

    def look(headers=None, **_):
        seen.append(dict(headers))

    before_task_publish.connect(look)
    yield seen
    before_task_publish.disconnect(look)


def test_a_task_that_a_request_sends_carries_the_requests_id(site, sent):
    site.client().get("/sends-task/")
    (headers,) = sent
    (run,) = site.single_runs()
    assert headers["trace_request"] == run.task_id
    assert headers["root_id"] == headers["id"], "what Celery's own users see stays as it was"


def test_a_task_that_is_sent_outside_a_request_carries_the_time_only(sent):
    project.report.apply_async((1,))
    (headers,) = sent
    assert "trace_request" not in headers
    assert abs(headers[published.HEADER] - time.time()) < 60


def test_the_requests_id_is_handed_on_by_the_tasks_that_it_sent(sent):
    task = project.report
    task.push_request(id="t1", trace_request="r1")
    from celery._state import _task_stack

    _task_stack.push(task)
    try:
        project.report.apply_async((2,))
    finally:
        _task_stack.pop()
        task.pop_request()
    (headers,) = sent
    assert headers["trace_request"] == "r1"


def test_a_users_own_header_of_that_name_is_left_alone(sent):
    project.report.apply_async((1,), headers={"trace_request": "mine"})
    (headers,) = sent
    assert headers["trace_request"] == "mine"


def test_a_failed_request_can_be_found_by_the_root_of_its_tasks(site):
    site.client().get("/divide/")
    failure = site.failure()
    assert failure.task.root_id == failure.id


@contextmanager
def running(task_id, **request):
    """As while Celery runs this task here."""
    from celery._state import _task_stack
    from celery.signals import task_prerun

    task = project.report
    task.push_request(id=task_id, **request)
    _task_stack.push(task)
    try:
        task_prerun.send(sender=task, task_id=task_id, task=task)
        yield task.request
    finally:
        _task_stack.pop()
        task.pop_request()


@pytest.fixture
def results(site):
    """django-celery-results' backend, and the ``meta`` that it has stored with a task."""
    from django_celery_results.backends import DatabaseBackend
    from django_celery_results.models import TaskResult

    backend = DatabaseBackend(app=project.celery)
    yield backend, lambda task_id: json.loads(TaskResult.objects.get(task_id=task_id).meta)
    TaskResult.objects.all().delete()


def test_a_failed_result_names_the_record_of_its_failure(results):
    backend, meta_of = results
    for mark in (backend.mark_as_failure, backend.mark_as_retry):
        with running("t1", retries=2, meta={"mine": 1}) as request:
            mark("t1", ValueError("no"), request=request)
        assert meta_of("t1") == {"mine": 1, "children": [], "celery_trace": {"failure": failure_id("t1", 2)}}


def test_a_result_that_went_well_leads_to_no_failure(results):
    backend, meta_of = results
    with running("t1", retries=1, meta={"mine": 1}) as request:
        backend.store_result("t1", None, "STARTED", request=request)
        assert meta_of("t1") == {"mine": 1, "children": []}
        backend.mark_as_done("t1", 5, request=request)
    assert meta_of("t1") == {"mine": 1, "children": []}


def test_a_result_names_no_failure_where_none_is_captured(results):
    from django.test.utils import override_settings

    backend, meta_of = results
    with override_settings(CELERY_TRACE_FAILURES=False), running("t1") as request:
        backend.mark_as_failure("t1", ValueError("no"), request=request)
    assert meta_of("t1") == {"children": []}


def test_the_result_of_a_task_that_does_not_run_here_is_left_alone(results):
    backend, meta_of = results
    with running("t1"):
        backend.mark_as_failure("another", ValueError("no"))
    assert "celery_trace" not in meta_of("another")


@pytest.mark.parametrize("meta", ["[1]", '"text"'])
def test_a_meta_that_is_no_mapping_is_left_alone(site, meta):
    row = SimpleNamespace(task_id="t1", status="FAILURE", content_type="application/json", meta=meta)
    with running("t1"):
        links.note_in_failed_result(instance=row)
    assert row.meta == meta
