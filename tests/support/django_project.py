"""A Django project inside the test process: every kind of view, and middlewares that misbehave on request."""

from __future__ import annotations

import asyncio
import io
import logging
from typing import Any

import django
from celery import Celery
from django.conf import settings

TRACE = "django_bridge.middleware.TraceMiddleware"

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    TRACE,
]


def configure() -> None:
    """Set Django up for this process; without the bridge's receivers, which a test connects for itself."""
    if settings.configured:
        return
    settings.configure(
        SECRET_KEY="for-the-tests-only",
        DEBUG=False,
        ALLOWED_HOSTS=["testserver", "127.0.0.1", "localhost"],
        ROOT_URLCONF="tests.support.django_project",
        MIDDLEWARE=MIDDLEWARE,
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django_celery_results",
            "django_bridge",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ],
                    "loaders": [
                        ("django.template.loaders.locmem.Loader", TEMPLATES),
                        "django.template.loaders.app_directories.Loader",
                    ],
                },
            }
        ],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        STATIC_URL="static/",
        LOGGING_CONFIG=None,
    )
    settings.TEMPLATES[0].pop("APP_DIRS")
    django.setup()
    from django_bridge import apps

    apps.disconnect()


TEMPLATES = {
    "outer.html": "<p>\n{% for value in values %}\n  {% include 'inner.html' %}\n{% endfor %}\n",
    "inner.html": "<b>{{ value }}</b>\n\n{% widthratio value 10 values %}\n",
    "unclosed.html": "<p>\n{% if values %}\n",
    "fine.html": "<p>{{ values }}</p>",
}

configure()

from django.contrib import admin  # noqa: E402
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation  # noqa: E402
from django.db import connection  # noqa: E402
from django.http import FileResponse, Http404, HttpResponse, StreamingHttpResponse  # noqa: E402
from django.shortcuts import render  # noqa: E402
from django.template.response import TemplateResponse  # noqa: E402
from django.urls import include, path, re_path  # noqa: E402
from django.views import View  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables  # noqa: E402

celery = Celery("django-tests", broker="memory://", set_as_current=False)
celery.conf.task_default_queue = "django-tests"


@celery.task(name="tests.report", shared=False)
def report(number: int) -> int:
    """A task that views send."""
    return number


class Witness:
    """Something that a test can watch being freed."""


#: In pieces, so that it doesn't stand in the source that a failure shows.
CODENAME = ("EAGLE", "HAS", "LANDED")

# --- views ----------------------------------------------------------------------------------------------


def fine(request: Any, pk: int = 0) -> HttpResponse:
    return HttpResponse(f"fine {pk}")


def divide(request: Any, pk: int = 0) -> HttpResponse:
    context_data = "Hello"
    a = 5
    c = 6
    d = 10
    return HttpResponse(f"{context_data} {(a + c) / (d - 10)}")


def reset(request: Any, token: str) -> HttpResponse:
    return HttpResponse(str(len(token) / 0))


class ClassView(View):
    def get(self, request: Any) -> HttpResponse:
        amount = 3
        raise KeyError(amount)


def logs(request: Any) -> HttpResponse:
    logging.getLogger("shop.views").warning("%s logs in with password=%s", "ada", "hunter2" * 2)
    return HttpResponse(str(1 / 0))


async def async_logs(request: Any) -> HttpResponse:
    logging.getLogger("shop.views").warning("before")
    await asyncio.gather(*(asyncio.to_thread(logging.getLogger("shop.views").warning, "in a thread") for _ in range(2)))
    return HttpResponse(str(1 / 0))


async def async_divide(request: Any) -> HttpResponse:
    dividend = 42
    await asyncio.sleep(0)
    return HttpResponse(str(dividend / 0))


async def async_fine(request: Any) -> HttpResponse:
    await asyncio.sleep(0)
    return HttpResponse("fine")


def not_found(request: Any) -> HttpResponse:
    raise Http404


def denied(request: Any) -> HttpResponse:
    raise PermissionDenied


def bad_request(request: Any) -> HttpResponse:
    raise BadRequest("no")


def suspicious(request: Any) -> HttpResponse:
    raise SuspiciousOperation("a forged form")


def returns_nothing(request: Any) -> None:
    return None


def server_error_by_hand(request: Any) -> HttpResponse:
    return HttpResponse("sorry", status=503)


def queries(request: Any) -> HttpResponse:
    with connection.cursor() as cursor:
        for _ in range(3):
            cursor.execute("SELECT 1")
    raise RuntimeError("after three queries")


async def async_queries(request: Any) -> HttpResponse:
    """As many queries as asked for, letting other requests run in between."""
    from asgiref.sync import sync_to_async

    def one() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    count = int(request.GET["n"])
    for _ in range(count):
        await sync_to_async(one)()
        await asyncio.sleep(0.001)
    raise RuntimeError(f"after {count}")


def loads_user(request: Any) -> HttpResponse:
    name = request.user.get_username()
    raise RuntimeError(f"for {len(name)} letters")


@csrf_exempt
@sensitive_post_parameters("plan")
def post(request: Any) -> HttpResponse:
    count = len(request.POST)
    raise RuntimeError(f"{count} fields")


@csrf_exempt
@sensitive_post_parameters()
def post_all(request: Any) -> HttpResponse:
    count = len(request.POST)
    raise RuntimeError(f"{count} fields")


@csrf_exempt
def unread_post(request: Any) -> HttpResponse:
    raise RuntimeError("nobody read the body")


@sensitive_variables("codename")
def _secretive(codename: str) -> None:
    harmless = "open"
    raise RuntimeError(harmless)


def sensitive(request: Any) -> None:
    _secretive("-".join(CODENAME))


@sensitive_variables("codename")
async def async_sensitive(request: Any) -> None:
    codename = "-".join(CODENAME)
    raise RuntimeError(str(len(codename)))


def outer_template(request: Any) -> HttpResponse:
    return render(request, "outer.html", {"values": [1, 2]})


def deferred_template(request: Any) -> HttpResponse:
    return TemplateResponse(request, "outer.html", {"values": [1, 2]})


def unclosed_template(request: Any) -> HttpResponse:
    return render(request, "unclosed.html", {"values": [1, 2]})


def stream(request: Any) -> StreamingHttpResponse:
    breaks = "break" in request.GET

    def parts():
        yield b"one "
        if breaks:
            remains = "nothing"
            raise RuntimeError(f"{remains} left")
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        yield b"two"

    return StreamingHttpResponse(parts())


async def async_stream(request: Any) -> StreamingHttpResponse:
    breaks = "break" in request.GET

    async def parts():
        yield b"one "
        await asyncio.sleep(0)
        if breaks:
            raise RuntimeError("nothing left")
        yield b"two"

    return StreamingHttpResponse(parts())


def file(request: Any) -> FileResponse:
    return FileResponse(io.BytesIO(b"contents"), filename="a.txt")


def sends_task(request: Any) -> HttpResponse:
    result = report.apply_async((1,), ignore_result=True)
    return HttpResponse(result.id)


def exits(request: Any) -> HttpResponse:
    def handle_abort() -> None:  # the name of gunicorn's own handler
        raise SystemExit(1)

    handle_abort()
    return HttpResponse()


witnesses: list[Any] = []


def witnessed(request: Any) -> HttpResponse:
    import weakref

    witness = Witness()
    witnesses.append(weakref.ref(witness))
    raise RuntimeError("seen")


# --- middlewares ----------------------------------------------------------------------------------------


def raises_before(get_response: Any) -> Any:
    """Raises for ``?raise=before``, before the view."""

    def middleware(request: Any) -> Any:
        if request.GET.get("raise") == "before":
            told = "by the middleware"
            raise RuntimeError(told)
        return get_response(request)

    return middleware


def raises_after(get_response: Any) -> Any:
    """Raises for ``?raise=after``, when the view has answered."""

    def middleware(request: Any) -> Any:
        response = get_response(request)
        if request.GET.get("raise") == "after":
            raise RuntimeError("by the middleware")
        return response

    return middleware


class Handles:
    """Turns exceptions of views into an ordinary page."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)

    def process_exception(self, request: Any, error: Exception) -> HttpResponse:
        return HttpResponse("handled", status=int(request.GET.get("status", "200")))


def replaces_response(get_response: Any) -> Any:
    """Drops the response of the view without closing it."""

    def middleware(request: Any) -> Any:
        get_response(request)
        return HttpResponse(status=304)

    return middleware


shop_urls = [path("<int:pk>/", fine), path("<int:pk>/divide/", divide)]

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", fine),
    path("shop/", include(shop_urls)),
    re_path(r"^old/(?P<year>[0-9]{4})/([a-z]+)/$", lambda request, **more: HttpResponse("old")),
    path("divide/", divide),
    path("class/", ClassView.as_view()),
    path("async-divide/", async_divide),
    path("async-fine/", async_fine),
    path("logs/", logs),
    path("async-logs/", async_logs),
    path("not-found/", not_found),
    path("denied/", denied),
    path("bad-request/", bad_request),
    path("suspicious/", suspicious),
    path("returns-nothing/", returns_nothing),
    path("503/", server_error_by_hand),
    path("queries/", queries),
    path("async-queries/", async_queries),
    path("user/", loads_user),
    path("post/", post),
    path("post-all/", post_all),
    path("unread-post/", unread_post),
    path("sensitive/", sensitive),
    path("async-sensitive/", async_sensitive),
    path("template/", outer_template),
    path("deferred-template/", deferred_template),
    path("unclosed-template/", unclosed_template),
    path("stream/", stream),
    path("async-stream/", async_stream),
    path("file/", file),
    path("sends-task/", sends_task),
    path("exits/", exits),
    path("witnessed/", witnessed),
    path("reset/<str:token>/", reset),
]
