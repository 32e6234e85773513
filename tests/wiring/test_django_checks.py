"""``manage.py check`` finds what would make the bridge record nothing, in the wrong place, or open too much."""

import os

import pytest
from django.core.checks import run_checks
from django.test.utils import override_settings

from tests.support.django_project import MIDDLEWARE, TRACE

pytest_plugins = ["tests.support.fixtures_django"]


def found(**settings):
    """The ids of our findings under these settings."""
    with override_settings(**settings):
        return {finding.id: finding for finding in run_checks() if str(finding.id).startswith("celery_trace.")}


def test_a_site_that_is_set_up_well_has_no_finding(site):
    assert found() == {}


def test_a_wrong_setting_is_an_error_with_its_name(site):
    finding = found(CELERY_TRACE_MEMORY="sometimes")["celery_trace.E001"]
    assert "CELERY_TRACE_MEMORY is 'sometimes'" in finding.msg


def test_an_unknown_setting_is_an_error_with_a_hint(site):
    assert "CELERY_TRACE_STORE" in found(CELERY_TRACE_STOER="x")["celery_trace.E001"].msg


def test_a_missing_middleware_is_found(site):
    finding = found(MIDDLEWARE=MIDDLEWARE[:-1])["celery_trace.W001"]
    assert TRACE in finding.hint


def test_a_middleware_that_is_not_the_last_is_found_with_those_behind_it(site):
    finding = found(MIDDLEWARE=[TRACE, *MIDDLEWARE[:-1]])["celery_trace.W002"]
    assert MIDDLEWARE[0] in finding.msg


def test_a_middleware_that_stands_twice_is_found(site):
    assert set(found(MIDDLEWARE=[*MIDDLEWARE, TRACE])) == {"celery_trace.E002"}


def test_nothing_is_asked_of_a_site_where_tracing_is_off(site):
    assert found(MIDDLEWARE=[], CELERY_TRACE_ENABLED=False) == {}


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("django:elsewhere", "DATABASES has no 'elsewhere'"),
        ("oracle://host/db", "unknown kind of store 'oracle'"),
    ],
)
def test_a_store_that_can_not_work_is_an_error(site, store, says):
    assert says in found(CELERY_TRACE_STORE=store)["celery_trace.E003"].msg


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_store_that_is_not_writable_is_an_error(site):
    assert "not writable" in found(CELERY_TRACE_STORE="sqlite:////proc/trace.db")["celery_trace.E003"].msg


def test_a_database_of_its_own_without_the_router_is_found(site):
    databases = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        "trace": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
    }
    with pytest.warns(UserWarning, match="Overriding setting DATABASES"):
        finding = found(DATABASES=databases, CELERY_TRACE_STORE="django:trace")["celery_trace.W003"]
    assert "django_bridge.routers.TraceRouter" in finding.hint
    with pytest.warns(UserWarning, match="Overriding setting DATABASES"):
        assert (
            found(
                DATABASES=databases,
                CELERY_TRACE_STORE="django:trace",
                DATABASE_ROUTERS=["django_bridge.routers.TraceRouter"],
            )
            == {}
        )


def test_a_live_shell_without_authentication_is_found(site, monkeypatch):
    assert set(found(CELERY_TRACE_SHELL="live")) == {"celery_trace.W004"}
    assert found(CELERY_TRACE_SHELL="live", DEBUG=True) == {}
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "user:password")
    assert found(CELERY_TRACE_SHELL="live") == {}


def test_a_folder_with_the_key_that_others_can_read_is_found(site, monkeypatch):
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "user:password")
    site.folder.mkdir(mode=0o755)
    assert set(found(CELERY_TRACE_SHELL="live")) == {"celery_trace.W005"}
    site.folder.chmod(0o700)
    assert found(CELERY_TRACE_SHELL="live") == {}
