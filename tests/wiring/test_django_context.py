"""What is kept of a request: all that helps, no secret, and nothing that had to be fetched for it."""

from urllib.parse import urlencode

import pytest
from django.test.utils import override_settings

from celery_trace.redaction import MARK
from tests.support import django_project

pytest_plugins = ["tests.support.fixtures_django"]

SECRET = "ZX81-very-hidden"


@pytest.mark.parametrize(
    ("path", "options"),
    [
        (f"/divide/?password={SECRET}", {}),
        (f"/reset/{SECRET}/", {}),
        ("/divide/", {"headers": {"Authorization": f"Bearer {SECRET}"}}),
        ("/divide/", {"headers": {"X-Api-Key": SECRET}}),
        ("/divide/", {"headers": {"Referer": f"https://example.org/?access_token={SECRET}"}}),
        ("/divide/", {"headers": {"Cookie": f"sessionid={SECRET}; csrftoken={SECRET}"}}),
        ("/divide/", {"headers": {"Cookie": f"theme=dark; remember={SECRET}"}}),
        ("/divide/", {"headers": {"Authorization": f"ApiKey {SECRET}"}}),
        ("/divide/", {"headers": {"X-Forwarded-Uri": f"/pay?sv=2020&sig={SECRET}"}}),
        (f"/divide/?db_pass={SECRET}&tokens={SECRET}", {}),
        ("/divide/", {"headers": {"X-Csrftoken": SECRET}}),
    ],
)
def test_a_secret_is_nowhere_on_disk(site, path, options):
    assert site.client().get(path, **options).status_code == 500
    assert site.failure().exception.type == "ZeroDivisionError"
    assert SECRET.encode() not in site.bytes()


def test_a_cookie_that_a_visitor_chose_is_shown_and_a_generated_one_is_not(site):
    site.client().get("/divide/", headers={"Cookie": f"language=en; size=1024; remember={SECRET}"})
    assert site.failure().request.cookies == {"language": "en", "size": "1024", "remember": MARK}


@pytest.mark.parametrize("path", ["/post/", "/post-all/"])
def test_sensitive_post_parameters_are_honoured_also_with_debug_on(site, path):
    with override_settings(DEBUG=True):
        site.client().post(path, {"plan": SECRET, "city": "Oslo"})
        assert SECRET.encode() not in site.bytes()
        post = site.failure().request.post
    assert post["plan"] == [MARK]
    assert post["city"] == (["Oslo"] if path == "/post/" else [MARK])


@pytest.mark.parametrize("path", ["/sensitive/", "/async-sensitive/"])
def test_sensitive_variables_are_honoured(site, path):
    site.client().get(path)
    assert site.failure().exception.type == "RuntimeError"
    assert b"EAGLE-HAS-LANDED" not in site.bytes()


class HidesCities:
    """A project's own reporter filter, as Django's documentation suggests to write one."""

    def __new__(cls):
        from django.views.debug import SafeExceptionReporterFilter

        class Filter(SafeExceptionReporterFilter):
            def get_post_parameters(self, request):
                cleansed = request.POST.copy()
                if "city" in cleansed:
                    cleansed["city"] = self.cleansed_substitute
                return cleansed

        return Filter()


def test_a_projects_own_reporter_filter_is_asked(site):
    from django.views.debug import get_default_exception_reporter_filter

    get_default_exception_reporter_filter.cache_clear()
    with override_settings(DEFAULT_EXCEPTION_REPORTER_FILTER="tests.wiring.test_django_context.HidesCities"):
        site.client().post("/post/", {"street": "Storgata", "city": SECRET})
        post = site.failure().request.post
    get_default_exception_reporter_filter.cache_clear()
    assert post["street"] == ["Storgata"]
    assert SECRET not in post["city"][0]


def test_a_body_that_nobody_read_is_not_read_for_the_record(site):
    """It may still be on its way from a slow client."""
    site.client().post("/unread-post/", {"city": "Oslo"})
    failure = site.failure()
    assert failure.exception.message == "nobody read the body"
    # CsrfViewMiddleware reads POST only where it must check.
    assert failure.request.post == {}


def test_names_and_sizes_of_uploaded_files_are_kept_and_their_contents_are_not(site):
    from django.core.files.uploadedfile import SimpleUploadedFile

    upload = SimpleUploadedFile("scan.pdf", b"%PDF the contents of the scan")
    site.client().post("/post/", {"city": "Oslo", "scan": upload})
    assert site.failure().request.post == {"city": ["Oslo"], "scan": ["file scan.pdf, 29 bytes"]}
    assert b"contents of the scan" not in site.bytes()


def test_long_and_many_fields_are_cut(site):
    query = urlencode([(f"f{number:03}", "x" * 5000) for number in range(80)])
    site.client().get(f"/divide/?{query}")
    get = site.failure().request.get
    assert len(get) == 51
    assert get["f000"] == ["x" * 1024 + "… (5000 characters)"]
    assert "…" in get


def test_text_that_is_no_unicode_is_kept_visibly(site):
    site.client().get("/divide/?name=%ED%A0%80", headers={"X-Name": "caf\xe9"})
    failure = site.failure()
    assert failure.request.headers["X-Name"] == "caf\xe9"


def test_a_user_that_was_loaded_is_named(site):
    from django.contrib.auth.models import User

    user, _ = User.objects.get_or_create(username="ada")
    client = site.client()
    client.force_login(user)
    client.get("/user/")
    assert site.failure().request.user == f"ada ({user.pk})"


def test_a_user_that_nobody_asked_for_is_not_loaded(site):
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    user, _ = User.objects.get_or_create(username="ada")
    client = site.client()
    client.force_login(user)
    with CaptureQueriesContext(connection) as queries:
        client.get("/divide/")
    assert site.failure().request.user == ""
    assert [query["sql"] for query in queries] == []


def test_an_anonymous_visitor_is_called_so(site):
    site.client().get("/user/")
    assert site.failure().request.user == "anonymous"


@pytest.mark.parametrize("path", ["/template/", "/deferred-template/"])
def test_the_line_of_the_innermost_template_is_known_in_production(site, path):
    site.client().get(path)
    template = site.failure().request.template
    assert (template.function, template.line) == ("inner.html", 3)
    assert "widthratio" in template.code


def test_the_line_of_a_template_that_does_not_compile_is_known(site):
    site.client().get("/unclosed-template/")
    failure = site.failure()
    assert failure.exception.type == "TemplateSyntaxError"
    assert (failure.request.template.function, failure.request.template.line) == ("unclosed.html", 2)


def test_a_failure_without_a_template_has_no_line(site):
    site.client().get("/divide/")
    assert site.failure().request.template is None


def test_a_broken_part_costs_only_itself(site, monkeypatch):
    from celery_trace import guard
    from django_bridge import request_context

    def broken(_request):
        raise OSError("ours")

    monkeypatch.setattr(request_context, "loaded_user", broken)
    site.client().get("/divide/?page=2")
    request = site.failure().request
    assert request.user == ""
    assert request.get == {"page": ["2"]}
    assert guard.own_errors.pop("django: user of a request") == 1


def test_the_project_of_these_tests_runs_without_debug():
    """Several of the tests above would prove nothing with it on."""
    from django.conf import settings

    django_project.configure()
    assert settings.DEBUG is False
