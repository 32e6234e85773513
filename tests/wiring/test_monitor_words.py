"""Small pure parts of the monitor: words, file names, roles, logins, guesses, retries."""

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_trace.clock import FakeClock
from celery_trace.model import Capture, Failure, Kind, Node, Outcome, TaskContext
from flower_plugin.auth.gate import Hosts
from flower_plugin.auth.login import LINK_LIFE_S, LoginSessions, OneTimeLinks
from flower_plugin.incoming.broker import BrokerLink
from flower_plugin.pages.alerts import channel_name
from flower_plugin.rendering import badges, markup
from flower_plugin.rendering.markup import Paths
from flower_plugin.rendering.source import source_lines
from flower_plugin.retries import CannotRetry, retry
from flower_plugin.web.login_pages import safe_target
from tests.support.monitor_facts import HOSTILE


@given(st.text())
def test_shown_text_holds_no_markup_and_nothing_unseen(text):
    shown = markup.show(text)
    assert not re.search(r"[<>\"']", shown)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200b\xad\U000e0000-\U000e007f]", shown)


@given(st.recursive(st.text() | st.integers(-(2**53), 2**53) | st.none(), lambda inner: st.lists(inner), max_leaves=5))
def test_a_data_block_can_not_end_its_element_and_says_the_same(value):
    block = markup.data_block(value)
    assert not re.search("[<>&\u2028\u2029]", block)
    assert json.loads(block) == value


@pytest.mark.parametrize("text", HOSTILE)
def test_source_lines_are_safe_whatever_stands_in_them(text):
    (line,) = source_lines([(7, text)], 7, (7, 2, 5))
    assert re.fullmatch(r"(?:[^<>]|</?span(?: class=\"py-[a-z0-9]+\")?>|</?mark>)*", line.markup)


def test_the_marked_part_is_the_expression_that_python_tells():
    (line,) = source_lines([(42, "    return d / (a - 5)")], 42, (42, 11, 22))
    marked = re.sub("<[^>]+>", "", re.search("<mark>(.*)</mark>", line.markup)[1])
    assert marked == "d / (a - 5)"


def test_the_exact_bytes_stand_on_hover():
    assert 'title="5,242,880 bytes"' in markup.size(5 << 20)


@pytest.mark.parametrize("at_s", [None, float("inf"), float("nan"), 1e300, -1e300])
def test_an_impossible_time_is_a_dash(at_s):
    assert "–" in markup.ago(at_s, 1e9)


def test_file_names_are_relative_to_the_project_or_to_installed_packages(tmp_path):
    paths = Paths([str(tmp_path)])
    assert paths.short(str(tmp_path / "shop" / "tasks.py")) == "shop/tasks.py"
    assert paths.short("/opt/other/lib/python3.12/site-packages/celery/app/trace.py") == "celery/app/trace.py"
    assert paths.short("/opt/x/lib/python3.12/json/decoder.py") == "python3.12/json/decoder.py"
    assert paths.short("/elsewhere/tasks.py") == "/elsewhere/tasks.py"
    told = f"task shop.keep keeps 4 KiB each run at {tmp_path}/shop/tasks.py:17 over 52 runs, see https://example.org/a/b.py?x"
    assert paths.in_text(told) == told.replace(f"{tmp_path}/", "")


def test_source_is_read_from_the_project_only_and_only_where_it_still_fits(tmp_path):
    project, outside = tmp_path / "project", tmp_path / "outside"
    project.mkdir()
    outside.mkdir()
    for folder in (project, outside):
        (folder / "tasks.py").write_text("a = 1\nb = 2\n")
        (folder / "secret.txt").write_text("a = 1\n")
    (project / "link.py").symlink_to(outside / "tasks.py")
    paths = Paths([str(project)])
    assert paths.own_source(str(project / "tasks.py"), 2, "b = 2") == [(1, "a = 1"), (2, "b = 2")]
    assert paths.own_source(str(project / "tasks.py"), 2, "changed") == []
    assert paths.own_source(str(project / "tasks.py"), 99, "b = 2") == []
    assert paths.own_source(str(outside / "tasks.py"), 2, "b = 2") == []
    assert paths.own_source(str(project / ".." / "outside" / "tasks.py"), 2, "b = 2") == []
    assert paths.own_source(str(project / "link.py"), 2, "b = 2") == []
    assert paths.own_source(str(project / "secret.txt"), 1, "a = 1") == []
    assert paths.own_source("/etc/passwd", 1, "root:x:0:0") == []


def test_the_lines_around_a_leak_show_no_literal_secret(tmp_path):
    (tmp_path / "tasks.py").write_text('db_pass = "hunter2"\nkept.append("sk_live_51Habcdefgh12345678")\nrun()\n')
    paths = Paths([str(tmp_path)])
    shown = [(1, 'db_pass = "[redacted]"'), (2, 'kept.append("[redacted]")'), (3, "run()")]
    for recorded in ('kept.append("[redacted]")', 'kept.append("sk_live_51Habcdefgh12345678")'):
        assert paths.own_source(str(tmp_path / "tasks.py"), 2, recorded) == shown


def test_sessions_end_and_are_bounded():
    clock = FakeClock()
    sessions = LoginSessions(clock, life_s=100, most=3)
    cookies = [sessions.begin(f"user{n}") for n in range(4)]
    assert sessions.find(cookies[0]) is None
    assert sessions.find(cookies[3]).user == "user3"
    clock.advance(101)
    assert sessions.find(cookies[3]) is None
    assert sessions.find("made up") is None


def test_a_one_time_link_dies_of_use_and_of_age():
    clock = FakeClock()
    links = OneTimeLinks(clock)
    token = links.make()
    assert links.redeem(token)
    assert not links.redeem(token)
    old = links.make()
    clock.advance(LINK_LIFE_S + 1)
    assert not links.redeem(old)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:5555", True),
        ("localhost", True),
        ("[::1]:80", True),
        ("LOCALHOST:1", True),
        ("127.0.0.1.", True),
        ("monitor.example.org:443", True),
        ("evil.example", False),
        ("", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
    ],
)
def test_hosts(host, allowed):
    assert Hosts("127.0.0.1", ["monitor.example.org"]).allow(host) is allowed


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("/trace/leaks?a=b", "/trace/leaks?a=b"),
        ("", "/trace"),
        ("/", "/trace"),
        ("//x", "/trace"),
        ("http://x/", "/trace"),
        ("/login", "/trace"),
        ("/\tx", "/trace"),
    ],
)
def test_a_login_leads_to_a_page_of_ours(target, where):
    assert safe_target(target, "") == where


def test_a_channel_is_named_without_its_secrets():
    assert channel_name("slack://TokenA/TokenB/TokenC") == "slack:…"
    assert channel_name("webhook+https://hooks.example.org/secret?key=1") == "webhook+https://hooks.example.org/…"
    assert "secret" not in channel_name("mailto://user:secret@example.org?to=x@y.z")


@pytest.mark.parametrize("word", ["leaking", "made up", "<b>"])
def test_a_badge_is_markup_whatever_it_says(word):
    assert "<b>" not in badges.verdict(word)
    assert badges.state(word).startswith("<span")


def test_a_sparkline_of_little_or_nothing_is_no_line():
    assert "<svg" not in badges.sparkline([], "x")
    assert "<svg" not in badges.sparkline([(1.0, 5)], "x")
    assert "<svg" in badges.sparkline([(1.0, 5), (1.0, 5)], "<x>")
    assert "<x>" not in badges.sparkline([(1.0, 5), (2.0, 7)], "<x>")
    assert "<svg" not in badges.bars([(1.0, 0)], "x")


# --- retry ---------------------------------------------------------------------------------------------


class Sender:
    def __init__(self):
        self.sent = []

    def send_task(self, name, **options):
        self.sent.append((name, options))
        return type("Result", (), {"id": "new-id"})


def failed(heap, args, kwargs, **more):
    capture = Capture(heap=heap, args=args, kwargs=kwargs)
    return Failure(
        id="f",
        process="p",
        kind=Kind.TASK,
        name="shop.add",
        outcome=Outcome.FAILED,
        at_s=time.time(),
        capture=capture,
        **more,
    )


PLAIN = [
    Node("int", "plain", 1),
    Node("str", "plain", "two"),
    Node("tuple", "tuple", None, [0, 1, 3], [], 3),
    Node("list", "list", None, [0], [], 1),
    Node("dict", "dict", None, [1, 3], [], 1),
]


def test_a_task_is_sent_again_with_exactly_its_arguments():
    sender = Sender()
    assert retry(sender, failed(PLAIN, 2, 4, task=TaskContext(queue="slow"))) == "new-id"
    assert sender.sent == [
        ("shop.add", {"args": [1, "two", [1]], "kwargs": {"two": [1]}, "retry": False, "queue": "slow"})
    ]


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (Node("str", "redacted"), "redacted"),
        (Node("str", "plain", "cut…", [], [], 5000, 4000), "cut"),
        (Node("shop.Order", "object", None, [], []), "shop.Order"),
        (Node("decimal.Decimal", "text", "1"), "type that can't be sent"),
        (Node("str", "plain", "paid with [redacted]"), "redacted in part"),
        (Node("list", "list", None, [99], [], 1), "args[0][0] is not known exactly: cut"),
        (Node("list", "list", None, [5], [], 1), "too deep"),
        (Node("shop.MyStr", "plain", "x"), "shop.MyStr"),
    ],
)
def test_a_value_that_is_not_exactly_known_is_not_sent(node, why):
    heap = [*PLAIN, node, Node("list", "list", None, [5], [], 1)]
    with pytest.raises(CannotRetry, match=re.escape(why)):
        retry(Sender(), failed(heap, 6, 4))


def test_a_request_is_not_retried():
    with pytest.raises(CannotRetry, match="not a task"):
        retry(Sender(), Failure(id="f", process="p", kind=Kind.REQUEST, name="x", outcome=Outcome.FAILED, at_s=1.0))


@pytest.mark.parametrize("password", ["simple", "p@ss", "a/b", "p@ss/w@rd:x"])
def test_the_brokers_password_is_in_no_word_about_the_broker(password):
    link = BrokerLink(FakeClock())
    link.down(OSError(f"Error 111 connecting to redis://user:{password}@broker:6379/0. Connection refused."))
    assert link.state.why == "Error 111 connecting to redis://user:***@broker:6379/0. Connection refused."


def test_a_short_heap_that_stands_for_very_many_values_is_not_rebuilt():
    heap = [Node("list", "list", items=[number + 1, number + 1]) for number in range(40)]
    heap += [Node("int", "plain", value=1), Node("dict", "dict", None, [], [], 0)]
    with pytest.raises(CannotRetry, match="too many values"):
        retry(Sender(), failed(heap, 0, 41))
