"""Which literals in source are secret, and that all else in it stays."""

import pytest

from celery_trace.redaction import Redactor

REDACTOR = Redactor()


@pytest.mark.parametrize(
    ("line", "clean"),
    [
        ('db_pass = "X"', 'db_pass = "[redacted]"'),
        ("PGPASS: Final[str] = 'X'", "PGPASS: Final[str] = '[redacted]'"),
        ('password = "X" + b"Y"', 'password = "[redacted]" + b"[redacted]"'),
        ('password = ("X"\n    "Y")\nname = "bob"', 'password = ("[redacted]"\n    "[redacted]")\nname = "bob"'),
        ('password = os.environ.get("A") or "X"', 'password = os.environ.get("[redacted]") or "[redacted]"'),
        ('password = "X" if debug else "Y"', 'password = "[redacted]" if debug else "[redacted]"'),
        ("tokens = ['X', 'Y']; n = 'z'", "tokens = ['[redacted]', '[redacted]']; n = 'z'"),
        ('API_KEYS = {"a": "X", "b": "Y"}', 'API_KEYS = {"[redacted]": "[redacted]", "[redacted]": "[redacted]"}'),
        ("token = SecretStr('X')", "token = SecretStr('[redacted]')"),
        ('key = b"""X\nY\n"""', 'key = b"""X\nY\n"""'),
        ('fernet_key = b"""X\nY"""\na = 1', 'fernet_key = b"""[redacted]\n"""\na = 1'),
        ('if token == "X":', 'if token == "[redacted]":'),
        ('if token in ("X", "Y"):', 'if token in ("[redacted]", "[redacted]"):'),
        ('def log_in(user="bob", password="X", n=2):', 'def log_in(user="bob", password="[redacted]", n=2):'),
        ('os.getenv("DB_PASSWORD", "X")', 'os.getenv("DB_PASSWORD", "[redacted]")'),
        ('settings.setdefault("secret_key", "X")', 'settings.setdefault("secret_key", "[redacted]")'),
        ('user.set_password("X")', 'user.set_password("[redacted]")'),
        ('session.auth = HTTPBasicAuth("bob", "X")', 'session.auth = HTTPBasicAuth("[redacted]", "[redacted]")'),
        ('connect("host", "bob", "X")', 'connect("host", "[redacted]", "[redacted]")'),
        ('smtp.login("bob",\n           "X")', 'smtp.login("bob",\n           "[redacted]")'),
        ('psycopg.connect("db", password="X")', 'psycopg.connect("db", password="[redacted]")'),
        ('connect("sqlite.db")', 'connect("sqlite.db")'),
        ('requests.get("https://bob:X@host/")', 'requests.get("https://bob:[redacted]@host/")'),
        ('headers = {"Authorization": f"Bearer {t}X"}', 'headers = {"Authorization": f"[redacted]"}'),
        ('    "secret": "X",', '    "secret": "[redacted]",'),
        ("X9'  # don't set password = 'Y'", "X9'  # don't set password = '[redacted]'"),
    ],
)
def test_a_literal_is_hidden_where_its_place_says_what_it_is(line, clean):
    assert REDACTOR.source(line) == clean


@pytest.mark.parametrize(
    "line",
    [
        "password = read_password()",
        'password = request.POST["field"]',
        'total_tokens = usage["total_tokens"]',
        'sort_key = "name"',
        'raise ValueError("no password given")',
        'for key in ("a", "b"):',
        'cache_key = f"user:{user.id}"',
        'bypass = "yes"',
        'render("index.html", title="Welcome")',
        "if not password:",
        'logger.info("%s tokens", token_count)',
        'rows = Order.objects.filter(author="ada", primary_key=3)',
    ],
)
def test_code_that_gives_nothing_away_stays(line):
    assert REDACTOR.source(line) == line


def test_the_lines_of_a_private_key_are_hidden_also_where_its_ends_are_out_of_sight():
    body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
    other = "8dXqTz1Zk0bYw4hQm7cRr2LpVn6oJf3sGi5tUeAaDyWxKvNlBgHC+/90SPMETQOu"
    for source in (
        f'KEY = """\n-----BEGIN PRIVATE KEY-----\n{body}\n{other}\n-----END PRIVATE KEY-----\n"""\n',
        f"{body}\n{other}\n-----END PRIVATE KEY-----\n'''\nrun()\n",
        f'    "{other}\\n"\n    "{body}\\n"\n',
        f"a = 1\n-----BEGIN RSA PRIVATE KEY-----\n{other}\n",
    ):
        shown = REDACTOR.source(source)
        assert body not in shown
        assert other not in shown
        assert shown.count("\n") == source.count("\n")
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    assert REDACTOR.source(f'DIGEST = "{digest}"') == f'DIGEST = "{digest}"'
