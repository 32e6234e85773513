"""A visitor's address is taken from the headers of named proxies, and from nobody else's."""

import pytest
from tornado.httputil import HTTPHeaders

from celery_trace.settings import SettingError
from flower_plugin.auth.proxies import Proxies, parse_address

PROXIES = Proxies(["10.0.0.0/8", "127.0.0.1", "2001:db8:ffff::/48"])


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("10.200.3.4", True),
        ("::ffff:10.1.2.3", True),
        ("2001:db8:ffff::1", True),
        ("2001:db8:fffe::1", False),
        ("::1", False),
        ("0.0.0.0", False),
        ("", False),
        ("unknown", False),
    ],
)
def test_a_proxy_is_who_was_named(address, trusted):
    assert PROXIES.trust(parse_address(address)) is trusted
    assert Proxies().trust(parse_address(address)) is False


@pytest.mark.parametrize("entry", ["localhost", "10.0.0.1/8", "proxy.example.org", "10.0.0.0/33", "*"])
def test_an_entry_that_is_no_address_is_refused(entry):
    with pytest.raises(SettingError, match="no address or network"):
        Proxies([entry])


@pytest.mark.parametrize("entry", ["0.0.0.0/0", "::/0"])
def test_everybody_is_no_proxy(entry):
    with pytest.raises(SettingError, match="trusts every visitor"):
        Proxies(["127.0.0.1", entry])


def test_empty_entries_name_nobody():
    assert not Proxies(["", " "])


@pytest.mark.parametrize(
    ("forwarded", "real", "visitor"),
    [
        (None, None, ""),
        ("198.51.100.7", None, "198.51.100.7"),
        (None, "198.51.100.7", "198.51.100.7"),
        ("198.51.100.7", "198.51.100.7", "198.51.100.7"),
        # What the visitor made up stands before what the proxy appended.
        ("203.0.113.9, 198.51.100.7", None, "198.51.100.7"),
        ("203.0.113.9,198.51.100.7, 10.0.0.2", None, "198.51.100.7"),
        ("203.0.113.9, 198.51.100.7", "198.51.100.7", "198.51.100.7"),
        # Two proxies: the second one's X-Real-Ip is the first.
        ("198.51.100.7, 10.0.0.2", "10.0.0.2", "198.51.100.7"),
        ("10.0.0.3, 10.0.0.2", None, "10.0.0.3"),
        # One of the two was made up, and nobody knows which.
        ("198.51.100.7", "203.0.113.9", ""),
        ("198.51.100.7", "nonsense", ""),
        ("nonsense", "198.51.100.7", ""),
        ("198.51.100.7, unknown", None, ""),
        (None, "203.0.113.9, 198.51.100.7", ""),
        ("2001:db8::7", None, "2001:db8::7"),
        ("::ffff:198.51.100.7", None, "198.51.100.7"),
        (" , ", "198.51.100.7", "198.51.100.7"),
    ],
)
def test_the_visitor_is_the_last_who_is_no_proxy(forwarded, real, visitor):
    headers = HTTPHeaders()
    if forwarded is not None:
        headers["X-Forwarded-For"] = forwarded
    if real is not None:
        headers["X-Real-Ip"] = real
    assert PROXIES.visitor(headers) == visitor


def test_headers_that_come_twice_are_one_list():
    headers = HTTPHeaders()
    headers.add("X-Forwarded-For", "203.0.113.9")
    headers.add("X-Forwarded-For", "198.51.100.7")
    assert PROXIES.visitor(headers) == "198.51.100.7"
