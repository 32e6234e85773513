"""Secrets in a whole capture: whatever the place, the bytes that are written do not hold them."""

import enum
import linecache
import string
import subprocess

import msgspec
import pytest
from celery import Celery
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from celery_trace.failures.capture import capture_exception
from celery_trace.failures.capture.exceptions import Arguments
from celery_trace.redaction import Redactor
from celery_trace.settings import Limits

X = "hunter2-and-more"
PEM_LINES = [
    "-----BEGIN RSA PRIVATE KEY-----",
    "MIIEpAIBAAKCAQEA3Tz2mr7SZiAMfQyuvBjM9Oi8rPpqLmRkZQ1yXnT4cVbW0eJd",
    "8dXqTz1Zk0bYw4hQm7cRr2LpVn6oJf3sGi5tUeAaDyWxKvNlBgHC+/90SPMETQOu",
    "5kQx1w==",
    "-----END RSA PRIVATE KEY-----",
]


def captured(function, *args, arguments=None, **kwargs):
    """The bytes of the capture of what a function raises."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        capture = capture_exception(error, limits=Limits(), redactor=Redactor(), arguments=arguments)
        return msgspec.json.encode(capture).decode()
    raise AssertionError("it raised nothing")


def holds(value):
    raise LookupError("nothing here")


class Header(str):
    """A key of a class of its own, as HTTP libraries have them."""


class Field(enum.StrEnum):
    PASSWORD = "password"


@pytest.mark.parametrize(
    "value",
    [
        {b"password": X},
        {b"api_key": X.encode()},
        {Header("X-Api-Key"): X},
        {Field.PASSWORD: X},
        {f"redis://bob:{X}@host": 1},
        {f"redis://bob:{X}@host".encode(): 1},
        {("users", f"token={X}"): 1},
        {"tokens": [X]},
        {"passwords": ("a", X)},
        {"options": {"db_pass": {"now": X, "next": [X]}}},
        ["pg_dump", "--password", X, "-h", "db"],
        ("pg_dump", "--password", X),
        ["curl", "-u", f"admin:{X}", "https://h/"],
        [["run", "--api-key", X], f"it said {X}"],
        subprocess.CalledProcessError(1, ["pg_dump", "--password", X]),
        f'{{"password": "a\\"{X}"}}',
        f"Cookie: theme=dark; remember={X}",
        f"Authorization: ApiKey {X}",
        f"<password>{X}</password>",
        f"Key (api_token)=({X}) already exists.",
        f"INSERT INTO users (email, password) VALUES ('a@b.c', '{X}')",
        f"https://acme.blob.core.windows.net/c?sv=2020&sig={X}",
        ValueError(f"smtp_pw={X}"),
        {"DB_PASS": X, "note": f"{X} is wrong"},
        {"name": b"password", "value": X},
        [("Cookie", f"a=b; c={X}")],
    ],
    ids=range(26),
)
def test_a_secret_is_nowhere_in_the_bytes_of_a_capture(value):
    assert X not in captured(holds, value)
    assert X not in captured(holds, 1, arguments=Arguments((value,), {"value": value}, ("given",)))


@pytest.mark.parametrize(
    "text",
    [f"redis://bob:{X}@host", f"amqp://bob:{X.replace('-', '%2D')}@host", f"smtp_pw={X}", f"Key (api_token)=({X})"],
)
def test_a_secret_that_a_text_gave_away_is_hidden_where_nothing_tells(text):
    shown = captured(holds, {"url": text, "others": [X, {X: 1}, f"it was {X}", X.encode()]})
    assert X not in shown
    assert X not in captured(lambda: holds_two(X, LookupError(text)))


def test_a_word_that_stood_behind_a_secret_name_is_shown_elsewhere():
    shown = captured(holds, {"text": "auth=disabled", "state": "disabled"})
    assert '"disabled"' in shown


def holds_two(first, error):
    raise error


def test_what_stands_beside_an_option_with_a_secret_is_shown():
    shown = captured(holds, ["curl", "-u", f"admin:{X}", "--token", X, "https://h/", "--retry", "3"])
    for innocent in ("curl", "-u", "--token", "https://h/", "--retry"):
        assert f'"{innocent}"' in shown


@pytest.mark.parametrize("cut", [list, tuple, "\n".join, lambda lines: [line.encode() for line in lines]])
def test_a_private_key_is_hidden_whole_and_in_lines(cut):
    def parse(pem):
        for number, line in enumerate(pem.splitlines() if isinstance(pem, str) else pem):
            if number == 2:
                raise ValueError(f"no key: {line!r}")

    shown = captured(parse, cut(PEM_LINES))
    for line in PEM_LINES[1:-1]:
        assert line not in shown
    assert "RSA PRIVATE KEY" in shown


def test_a_private_key_without_its_end_hides_what_follows():
    shown = captured(holds, {"lines": [*PEM_LINES[:3], "tail"], "other": ["left", PEM_LINES[2]]})
    assert PEM_LINES[1] not in shown
    assert PEM_LINES[2] not in shown
    assert "left" in shown


@pytest.mark.parametrize(
    "part",
    [PEM_LINES[1:-1], PEM_LINES[2], "\n".join(PEM_LINES[2:]), PEM_LINES[2].encode(), repr("\n".join(PEM_LINES[1:]))],
)
def test_the_body_of_a_private_key_is_hidden_without_its_first_line(part):
    shown = captured(holds, part)
    assert PEM_LINES[1] not in shown
    assert PEM_LINES[2] not in shown


def run_source(tmp_path, source):
    """Run a module whose source can be read, and capture what it raises."""
    file = tmp_path / "shop_tasks.py"
    file.write_text(source)
    linecache.checkcache(str(file))
    code = compile(source, str(file), "exec")
    return captured(lambda: exec(code, {"__name__": "shop_tasks"}))


def test_literals_in_the_lines_of_a_capture_are_hidden(tmp_path):
    shown = run_source(
        tmp_path,
        f'''
def connect(host, user, password):
    raise OSError("no way there")

db_pass = "{X}-1"
OPTIONS = {{"secret": "{X}-2"}}
client = lambda: connect("db.example.org", "bob", "{X}-3")
client()
''',
    )
    assert X not in shown
    assert "db.example.org" in shown


def test_a_positional_literal_is_hidden_where_the_called_function_names_it(tmp_path):
    shown = run_source(
        tmp_path,
        f'''
def open_channel(host, password):
    raise OSError(f"refused {{password}}")

open_channel("db.example.org", "{X}")
''',
    )
    assert X not in shown
    assert "db.example.org" in shown


def test_a_tasks_signature_is_shown_and_the_secrets_in_it_are_not():
    signature = Celery("shop").signature("shop.pay", args=("order-7",), kwargs={"db_pass": X, "city": "Oslo"})
    shown = captured(holds, {"signature": signature, "message": f"no {X}"})
    assert X not in shown
    for innocent in ("shop.pay", "order-7", "Oslo"):
        assert f'"{innocent}"' in shown
    assert '"9f8e7d6c-and-more"' not in captured(holds, {"signature": "9f8e7d6c-and-more"})


# --- properties

SECRETS = st.text(string.ascii_letters + string.digits + "!$*+-._~@/", min_size=10, max_size=40)
PLACES = {
    "local": lambda secret: {"db_pass": secret},
    "key": lambda secret: {f"redis://:{secret}@h": 1},
    "key of bytes": lambda secret: {b"FERNET_KEY": secret.encode()},
    "list": lambda secret: {"tokens": ["a", secret]},
    "arguments": lambda secret: ["run", "--password", secret],
    "login": lambda secret: ["curl", "--user", f"bob:{secret}"],
    "headers": lambda secret: [("Authorization", f"ApiKey {secret}")],
    "JSON": lambda secret: msgspec.json.encode({"body": {"client_secret": secret}}).decode(),
    "JSON in bytes": lambda secret: msgspec.json.encode({"client_secret": secret}),
    "message": lambda secret: ValueError(f"Key (api_token)=({secret}) already exists."),
    "URL": lambda secret: f"amqp://bob:{secret}@broker:5672/v",
    "element": lambda secret: f"<apiKey>{secret}</apiKey>",
    "nested": lambda secret: {"a": [{"b": ({"smtp_pw": secret},)}]},
}


@settings(max_examples=250)
@given(first=st.sampled_from(sorted(PLACES)), second=st.sampled_from(sorted(PLACES)), secret=SECRETS)
def test_a_secret_in_any_two_places_is_nowhere_in_the_bytes(first, second, secret):
    assume(not secret.startswith(("-", "/")) and "redacted" not in secret and "//" not in secret)
    assume(secret not in captured(holds, {"first": 1, "second": 2}))
    value = {"first": PLACES[first](secret), "second": PLACES[second](secret)}
    assert secret not in captured(holds, value)


@pytest.mark.parametrize(
    "value",
    [
        {"total_tokens": 512, "session_count": 3, "max_tokens": 4096, "token_count": 7, "n_tokens": 2},
        {"author": "ada", "discard": "yes", "keyboard": "qwerty", "monkey": "capuchin", "passenger": "bob"},
        {"sort_key": "name", "primary_key": "id7", "foreign_key": "order_id", "cache_key": "user:7", "key": "a"},
        {"compass": "north", "bypass": "route", "passport": "required", "code": "E102"},
        {"id": "550e8400-e29b-41d4-a716-446655440000", "commit": "d670460b4b4aece5915caf5c68d12f560a9fe3e4"},
        {"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
        {"integrity": "sha384-oqVuAfXRKap7fdgcCY5uykM6+R9GqQ8KuxYf1d3kD9Vt7cJ2Lw0Xz5Qa4Bb6Nn8E"},
        ["ls", "-l", "--color", "always"],
        [("Accept", "text/html"), ("Host", "example.org")],
        "http://localhost:8000/orders?page=2&sort_key=name",
        "usage: {'prompt_tokens': 12, 'total_tokens': 99}",
    ],
    ids=range(11),
)
def test_what_only_sounds_secret_is_shown(value):
    shown = captured(holds, value)
    assert "[redacted]" not in shown
    assert '"redacted"' not in shown
