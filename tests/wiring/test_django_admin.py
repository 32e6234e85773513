"""The admin reads what the collector stored in a Django database: failures, leaks, runs, and a task's result."""

import json
import time

import msgspec
import pytest
from django.test.utils import override_settings

from celery_trace.model import (
    Evidence,
    ExceptionInfo,
    Failure,
    Holder,
    Kind,
    Outcome,
    Run,
    Site,
    Stage,
    TaskContext,
    Verdict,
    Window,
    failure_id,
    stable_id,
)
from celery_trace.settings import Settings
from celery_trace.stores import open_store

pytest_plugins = ["tests.support.fixtures_django"]


@pytest.fixture
def in_django(site):
    """The store is the site's own database."""
    with override_settings(CELERY_TRACE_STORE="django"):
        yield


@pytest.fixture
def store(in_django, tmp_path):
    """The store as the collector opens it; emptied again afterwards."""
    from django.apps import apps
    from django.db import connection

    opened = open_store(Settings(dir=str(tmp_path), store="django"))
    yield opened
    opened.close()
    for model in apps.get_app_config("django_bridge").get_models():
        model.objects.all().delete()
    connection.close()


@pytest.fixture
def root(site):
    """A client of the admin's superuser."""
    from django.contrib.auth.models import User

    user, _ = User.objects.get_or_create(username="root", defaults={"is_staff": True, "is_superuser": True})
    client = site.client()
    client.force_login(user)
    return client


def task_failure(task_id, *, root_id="", retries=0, headers=None):
    return Failure(
        id=failure_id(task_id, retries),
        process="p1",
        kind=Kind.TASK,
        name="shop.tasks.pay",
        task_id=task_id,
        retries=retries,
        outcome=Outcome.FAILED,
        exception=ExceptionInfo("ValueError", "builtins", "<b>no funds</b>"),
        worker="w1@host",
        at_s=time.time(),
        task=TaskContext(root_id=root_id, headers=headers or {}),
    )


def test_a_failed_request_is_shown_with_its_frames_and_locals(site, store, root):
    site.client().get("/shop/7/divide/?page=2&password=hush-hush")
    failure = site.failure()
    store.write(site.records())

    listed = root.get("/admin/django_bridge/failure/").content.decode()
    assert "GET /shop/&lt;int:pk&gt;/divide/" in listed
    assert "ZeroDivisionError: division by zero" in listed

    page = root.get(f"/admin/django_bridge/failure/{failure.id}/change/").content.decode()
    assert "context_data" in page
    assert "Hello" in page
    assert "tests.support.django_project.divide" in page
    assert "GET page" in page
    assert "hush-hush" not in page


def test_what_users_sent_is_shown_as_text(store, root):
    store.write([task_failure("t1")])
    for address in ("", f"{failure_id('t1', 0)}/change/"):
        page = root.get(f"/admin/django_bridge/failure/{address}").content.decode()
        assert "<b>no funds" not in page
        assert "&lt;b&gt;no funds" in page


def test_hidden_characters_are_shown_as_escapes(store, root):
    failure = task_failure("t1")
    failure = msgspec.structs.replace(
        failure,
        name="shop.tasks.\u202epay",
        exception=ExceptionInfo("ValueError", "builtins", "soft\xadhyphen \U000e0041"),
        note="zero\u200bwidth",
    )
    store.write([failure])
    listed = root.get("/admin/django_bridge/failure/").content.decode()
    page = root.get(f"/admin/django_bridge/failure/{failure.id}/change/").content.decode()
    assert "shop.tasks.\\u202epay" in listed
    assert "soft\\xadhyphen \\U000e0041" in listed
    assert "zero\\u200bwidth" in page
    assert "\u200b" not in page


def test_a_stored_result_shows_the_failures_of_its_task_and_they_lead_back(store, root):
    from django_celery_results.models import TaskResult

    result = TaskResult.objects.create(task_id="t2", status="FAILURE")
    try:
        store.write([task_failure("t2"), task_failure("t2", retries=1), task_failure("other")])
        address = f"/admin/django_celery_results/taskresult/{result.pk}/change/"
        page = root.get(address).content.decode()
        first = f"/admin/django_bridge/failure/{failure_id('t2', 0)}/change/"
        assert first in page
        assert f"/admin/django_bridge/failure/{failure_id('t2', 1)}/change/" in page
        assert failure_id("other", 0) not in page
        assert address in root.get(first).content.decode()
    finally:
        TaskResult.objects.all().delete()


def test_a_stored_result_without_a_failure_says_nothing_of_failures(store, root):
    from django_celery_results.models import TaskResult

    result = TaskResult.objects.create(task_id="fine", status="SUCCESS")
    try:
        page = root.get(f"/admin/django_celery_results/taskresult/{result.pk}/change/").content.decode()
        assert "failures recorded by celery-trace" not in page.lower()
    finally:
        TaskResult.objects.all().delete()


def test_a_request_and_the_failed_tasks_that_it_sent_lead_to_each_other(site, store, root):
    site.client().get("/divide/")
    request = site.failure()
    store.write([request, task_failure("sent", root_id=request.id)])
    task = failure_id("sent", 0)
    for here, there in ((request.id, task), (task, request.id)):
        page = root.get(f"/admin/django_bridge/failure/{here}/change/").content.decode()
        assert f"/admin/django_bridge/failure/{there}/change/" in page


def test_a_leak_is_shown_with_its_place(store, root):
    path = ["shop.tasks (module)", "_receipts: list[160]"]
    window = Window(
        id="w1", investigation="i1", process="p1", kind=Kind.TASK, name="shop.tasks.remember", stage=Stage.SAMPLED,
        verdict=Verdict.LEAKING, at_s=time.time(), runs=160, run_number=160, kept_bytes_per_run=10240.0,
        sites=[Site(file="/srv/shop/tasks.py", line=7, bytes=10240, blocks=160)],
        evidence=Evidence(160, 80, 80, 160 * 10240.0, 160), holder=Holder(path=path, searched=True), retained_by=path,
    )  # fmt: skip
    from celery_trace.stores import leak_rows

    store.write([window])
    leak_rows.refresh(store)
    listed = root.get("/admin/django_bridge/leak/").content.decode()
    assert "shop.tasks.remember" in listed
    from django_bridge.models import Leak

    leak = Leak.objects.get()
    page = root.get(f"/admin/django_bridge/leak/{leak.pk}/change/").content.decode()
    assert "10.0 KiB" in page


def test_single_runs_are_listed(store, root):
    run = Run(
        id=stable_id("r", 1), process="p1", kind=Kind.TASK, name="shop.tasks.slow", started_at_s=time.time(),
        duration_s=2.5, why="outlier", kept_bytes=2048, concurrent=3,
    )  # fmt: skip
    store.write([run])
    page = root.get("/admin/django_bridge/run/?why=outlier").content.decode()
    assert "shop.tasks.slow" in page
    assert "2.5 s" in page
    assert "process, 3 at once" in page
    assert "shop.tasks.slow" not in root.get("/admin/django_bridge/run/?why=traced").content.decode()


@pytest.mark.parametrize("query", ["?kind=request", "?outcome=failed", "?q=shop.tasks.pay", "?q=t1", "?kind=nonsense"])
def test_filters_and_the_search_answer(store, root, query):
    store.write([task_failure("t1")])
    response = root.get(f"/admin/django_bridge/failure/{query}")
    assert response.status_code == 200
    assert (failure_id("t1", 0) in response.content.decode()) is (query != "?kind=request")


def test_records_can_only_be_looked_at(store, root):
    store.write([task_failure("t1")])
    address = f"/admin/django_bridge/failure/{failure_id('t1', 0)}/change/"
    assert root.post(address, {"name": "other"}).status_code == 403
    assert root.get(f"/admin/django_bridge/failure/{failure_id('t1', 0)}/delete/").status_code == 403
    assert root.get("/admin/django_bridge/failure/add/").status_code == 403


def test_an_unknown_failure_has_a_way_back(store, root):
    response = root.get("/admin/django_bridge/failure/nowhere/change/")
    assert response.status_code == 302


def test_a_member_of_staff_without_the_permission_sees_nothing(site, store):
    from django.contrib.auth.models import User
    from django_celery_results.models import TaskResult

    store.write([task_failure("t1")])
    clerk, _ = User.objects.get_or_create(username="clerk", defaults={"is_staff": True})
    client = site.client()
    client.force_login(clerk)
    assert client.get("/admin/django_bridge/failure/").status_code == 403
    assert client.get(f"/admin/django_bridge/failure/{failure_id('t1', 0)}/change/").status_code == 403
    assert "django_bridge" not in client.get("/admin/").content.decode()
    assert TaskResult.objects.count() == 0


def test_the_pages_are_hidden_where_the_store_is_elsewhere(site, root):
    assert "django_bridge" not in root.get("/admin/").content.decode()
    assert root.get("/admin/django_bridge/failure/").status_code == 403


def test_own_pages_are_not_measured_and_the_rest_of_the_admin_is(site, store, root):
    assert root.get("/admin/").status_code == 200
    root.get("/admin/django_bridge/failure/")
    assert list(site.runs()) == ["GET /admin/"]


def test_a_record_of_a_newer_version_is_said_to_be_one(store, root):
    from django_bridge.models import Failure as Row

    store.write([task_failure("t1")])
    Row.objects.update(payload=json.dumps({"record": "failure", "id": 5}).encode())
    page = root.get(f"/admin/django_bridge/failure/{failure_id('t1', 0)}/change/").content.decode()
    assert "another version" in page


def test_a_list_of_failures_does_not_load_their_payloads(store, root):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    store.write([task_failure("t1")])
    with CaptureQueriesContext(connection) as queries:
        root.get("/admin/django_bridge/failure/")
    ours = [query["sql"] for query in queries if "celery_trace_failures" in query["sql"]]
    assert ours
    assert not [sql for sql in ours if "payload" in sql]
