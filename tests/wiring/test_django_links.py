"""A request and the tasks that it sent know of each other, and a stored result of its record."""

from types import SimpleNamespace

import pytest

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


def test_a_task_that_is_sent_outside_a_request_carries_nothing(sent):
    project.report.apply_async((1,))
    (headers,) = sent
    assert "trace_request" not in headers


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


def test_a_stored_result_names_the_record_of_its_failure():
    request = SimpleNamespace(id="t1", retries=2, meta={"mine": 1})
    links.note_in_result(request)
    assert request.meta == {"mine": 1, "celery_trace": {"failure": failure_id("t1", 2)}}


@pytest.mark.parametrize("meta", ["text", ["list"]])
def test_a_meta_that_is_no_mapping_is_left_alone(meta):
    request = SimpleNamespace(id="t1", retries=0, meta=meta)
    links.note_in_result(request)
    assert request.meta == meta
