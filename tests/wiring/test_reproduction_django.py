"""Failed requests and Django's models in a test or a replay: a request of RequestFactory, a row by its key."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from celery_trace.failures.capture import capture_exception
from celery_trace.failures.capture.exceptions import Arguments
from celery_trace.model import Failure
from celery_trace.redaction import Redactor
from celery_trace.reproduction import recipes, running
from celery_trace.reproduction.captured import captured_error
from celery_trace.reproduction.inputs import inputs_of
from celery_trace.reproduction.project import Missing, Project
from celery_trace.reproduction.running import Ended, RequestFacts, run_view
from celery_trace.reproduction.written import written
from celery_trace.settings import Limits
from tests.support import django_project

pytest_plugins = ["tests.support.fixtures_django"]


def no_hole(hole: recipes.Hole) -> object:
    raise AssertionError(hole)


def again(failure: Failure) -> Ended:
    """The view of a captured request is called once more."""
    project = Project(django_project.celery)
    facts = recipes.value(inputs_of(failure, Redactor())["facts"], project, no_hole)
    return run_view(project, RequestFacts(**facts))


@pytest.mark.parametrize(
    "path",
    [
        "/shop/7/divide/?page=2",
        "/divide/",
        "/class/",
        "/async-divide/",
        "/template/",
        "/stream/?break=1",
        "/sensitive/",
    ],
)
def test_a_failed_request_is_reproduced_by_its_view(site: Any, path: str) -> None:
    response = site.client().get(path, headers={"X-Trace": "yes"})
    if response.streaming:
        with pytest.raises(Exception):  # noqa: B017 - whatever the view raises
            list(response)
    failure = site.failure()
    raised = captured_error(failure.capture.exceptions[0])
    ended = again(failure)
    assert raised is not None
    assert ended.error is not None
    assert raised.difference(ended.error) == ""
    made = written(failure, app="proj:app", redactor=Redactor())
    ast.parse(made.text)
    assert "trial(facts)" in made.text


def test_a_view_that_does_not_fail_is_not_reproduced(site: Any) -> None:
    site.client().get("/divide/")
    failure = site.failure()
    request = failure.request.__class__(method="GET", path="/shop/1/")
    project = Project(django_project.celery)
    facts = RequestFacts(method=request.method, path=request.path, get={}, post={}, headers={}, cookies={})
    assert run_view(project, facts).error is None


def test_a_model_is_the_row_with_its_key_or_a_hole(site: Any) -> None:
    from django.contrib.auth.models import User

    ada = User.objects.create_user("of-reproduction", password="x")
    project = Project(django_project.celery)
    try:
        error = ValueError("x")
        capture = capture_exception(error, limits=Limits(), redactor=Redactor(), arguments=Arguments([ada], {}))
        call = recipes.call_of(capture, Redactor())
        assert call.holes == []
        assert recipes.source(call.args) == f"[PROJECT.model('auth.User', {ada.pk})]"
        assert recipes.value(call.args, project, no_hole) == [ada]
    finally:
        ada.delete()
    with pytest.raises(Missing, match=r"there is no auth\.User with the key"):
        recipes.value(call.args, project, no_hole)


def test_a_form_is_posted_with_all_its_fields(site: Any) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "9999", "X-Trace": "yes"}
    facts = RequestFacts(
        method="POST", path="/divide/", get={"page": ["2"]}, post={"names": ["a", "ü&"], "color": ["red"]},
        headers=headers, cookies={"theme": "dark"},
    )  # fmt: skip
    sent = running._request(Project(django_project.celery), facts)
    assert dict(sent.POST.lists()) == facts.post
    assert not sent.FILES
    assert dict(sent.GET.lists()) == {"page": ["2"]}
    assert sent.COOKIES == {"theme": "dark"}
    assert sent.headers["X-Trace"] == "yes"
    assert sent.user.is_anonymous
