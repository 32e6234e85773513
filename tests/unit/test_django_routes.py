"""Names of runs: bounded, readable, the same for every way to write a route."""

import pytest

from celery_trace.clock import FakeClock
from django_bridge.rate_limit import RateLimit
from django_bridge.routes import readable, run_name
from django_bridge.texts import plain


@pytest.mark.parametrize(
    ("route", "shown"),
    [
        ("", "/"),
        ("shop/<int:pk>/", "/shop/<int:pk>/"),
        ("^shop/(?P<pk>[0-9]+)/$", "/shop/<pk>/"),
        (r"^shop/(?P<slug>[-\w]+)/(?P<page>\d+)/?$", "/shop/<slug>/<page>/"),
        (r"^files/(.*)$", "/files/<var>"),
        (r"^a/(?:b|c)/$", "/a//"),
        (r"^v1\.0/(?P<x>(a|b(c))+)/\Z", "/v1.0/<x>/"),
        (r"^odd/(?P<x>[()]+)/$", "/odd/<x>/"),
        (r"^open/(?P<x>[a-z", "/open/<x>"),
    ],
)
def test_a_route_is_shown_as_people_write_it(route, shown):
    assert readable(route) == shown


def test_a_run_is_called_by_method_and_route():
    assert run_name("GET", "/shop/") == "GET /shop/"


@pytest.mark.parametrize("method", ["BREW", None, "get", ""])
def test_methods_that_nobody_knows_share_one_name(method):
    assert run_name(method, "/") == "OTHER /"


def test_an_allowance_counts_what_it_refuses_and_begins_anew():
    clock = FakeClock()
    rate_limit = RateLimit(2, 60.0, clock)
    assert [rate_limit.allow() for _ in range(3)] == [True, True, False]
    clock.advance(59)
    assert not rate_limit.allow()
    clock.advance(1)
    assert rate_limit.allow()
    assert rate_limit.refused == 2


def test_plain_text_is_exactly_a_str_and_valid_utf_8():
    class Marked(str):
        def __str__(self):
            return self

    text = plain(Marked("a\udc80"))
    assert type(text) is str
    assert text == "a\\udc80"
