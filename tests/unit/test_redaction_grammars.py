"""The ways in which texts write down what a value is called, with values that hold what delimits others."""

import json
import string
import time
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from celery_trace.redaction import MARK, Redactor
from celery_trace.redaction.grammars import GRAMMARS

REDACTOR = Redactor()
X = "hunter2-X!"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        # --- pairs
        ('{"password": "a\\"X", "user": "bob"}', '{"password": "[redacted]", "user": "bob"}'),
        ('{"password": "a\\\\", "user": "bob"}', '{"password": "[redacted]", "user": "bob"}'),
        ("{'password': 'it\\'s X', 'user': 'bob'}", "{'password': '[redacted]', 'user': 'bob'}"),
        ('"{\\"password\\": \\"a\\\\\\"X\\", \\"n\\": 1}"', '"{\\"password\\": \\"[redacted]\\", \\"n\\": 1}"'),
        ('{"tokens": ["X", "Y"], "page": 2}', '{"tokens": [redacted], "page": 2}'),
        ("passwords=('a', 'b'), page=2", "passwords=[redacted], page=2"),
        ('{"credentials": {"user": "bob", "x": "]}"}, "page": 2}', '{"credentials": [redacted], "page": 2}'),
        ("{b'password': b'X', b'page': b'2'}", "{b'password': b'[redacted]', b'page': b'2'}"),
        ("password='it''s X' user=bob", "password='[redacted]' user=bob"),
        ('password="""X "quoted" X"""', 'password="[redacted]"""'),
        ("key=SecretStr('X') api_key=SecretStr('X')", "key=SecretStr('X') api_key=SecretStr('[redacted]')"),
        ("password=ab,c;d&e)f user=bob", "password=[redacted] user=bob"),
        ("/login?password=X&next=/home", "/login?password=[redacted]&next=/home"),
        ("password%3DX", "password%3D[redacted]"),
        ("password => X", "password => [redacted]"),
        ("password          =          X", "password          =          [redacted]"),
        ("db_pass=X PGPASS=Y smtp_pw=Z", "db_pass=[redacted] PGPASS=[redacted] smtp_pw=[redacted]"),
        ("Server=y;Pwd={a;b};Uid=sa", "Server=y;Pwd=[redacted];Uid=sa"),
        ("userPassword:: aHVudGVy", "userPassword:: [redacted]"),
        ("password: correct horse battery staple\nuser: bob", "password: [redacted]\nuser: bob"),
        ("password: |\n  line one\n\n  line two\nuser: bob", "password: [redacted]\nuser: bob"),
        ("a:\n  tokens:\n    - X\n    - Y\n  n: 1", "a:\n  tokens:\n    [redacted]\n  n: 1"),
        ("tokens:\n- X\n- Y\nn: 1", "tokens:\n[redacted]\nn: 1"),
        ("secret:\n  user: bob\n  value: X\nn: 1", "secret:\n  [redacted]\nn: 1"),
        ("password:\n\nhunter2", "password:\n\n[redacted]"),
        ("%22password%22%3A%22X%22", "%22password%22%3A%22[redacted]"),
        ("{&quot;password&quot;: &quot;X&quot;}", "{&quot;password&quot;: &quot;[redacted]}"),
        ('api_key: {"pin": 1234}', "api_key: [redacted]"),
        ("пароль=hunter2 contraseña=hunter2", "пароль=[redacted] contraseña=[redacted]"),
        ("ｐａｓｓｗｏｒｄ=hunter2", "ｐａｓｓｗｏｒｄ=[redacted]"),
        # --- headers
        ("Authorization: ApiKey X\r\nHost: example.org", "Authorization: [redacted]\r\nHost: example.org"),
        ("Authorization: X", "Authorization: [redacted]"),
        ("Authorization: Basic YTpi", "Authorization: [redacted]"),
        (
            'Authorization: Digest username="bob", realm="a b", response="6629fae4"\nAccept: */*',
            "Authorization: [redacted]\nAccept: */*",
        ),
        (
            "Authorization: AWS4-HMAC-SHA256 Credential=A/2020, SignedHeaders=host, Signature=fe5f80",
            "Authorization: [redacted]",
        ),
        ("Proxy-Authorization: SSWS 00QCj", "Proxy-Authorization: [redacted]"),
        ("Cookie: theme=dark; remember=X; a=Y\nHost: h", "Cookie: [redacted]\nHost: h"),
        ("Set-Cookie: a=1; Path=/; HttpOnly", "Set-Cookie: [redacted]"),
        ("curl -H 'Authorization: ApiKey X' https://h/", "curl -H 'Authorization: [redacted]' https://h/"),
        ("[('Authorization', 'ApiKey X'), ('Accept', '*/*')]", "[('Authorization', '[redacted]'), ('Accept', '*/*')]"),
        ("[(b'x-api-key', b'X'), (b'a', b'b')]", "[(b'x-api-key', b'[redacted]'), (b'a', b'b')]"),
        ("['id', 'password', 'email']", "['id', 'password', 'email']"),
        # --- command lines
        ("pg_dump --password X -h db", "pg_dump --password [redacted] -h db"),
        ("pg_dump --password 'X Y' -h db", "pg_dump --password '[redacted]' -h db"),
        ("['pg_dump', '--password', 'X', '-h', 'db']", "['pg_dump', '--password', '[redacted]', '-h', 'db']"),
        ('["run", "--api-key", "X"]', '["run", "--api-key", "[redacted]"]'),
        ("[b'run', b'--token', b'X']", "[b'run', b'--token', b'[redacted]']"),
        ("run --token=X --verbose", "run --token=[redacted] --verbose"),
        ("run --token --verbose", "run --token --verbose"),
        ("curl -u admin:X:/@Y https://h/", "curl -u admin:[redacted] https://h/"),
        ("['curl', '-u', 'admin:X', 'https://h/']", "['curl', '-u', 'admin:[redacted]', 'https://h/']"),
        ("docker run -u 1000:1000 image", "docker run -u 1000:1000 image"),
        ("curl --user admin:X", "curl --user admin:[redacted]"),
        ("mysql -uroot -pX db", "mysql -uroot -p[redacted] db"),
        ("sshpass -p X ssh bob@h", "sshpass -p [redacted] ssh bob@h"),
        ("redis-cli -h h -a X ping", "redis-cli -h h -a [redacted] ping"),
        # --- markup
        ("<user><password>X</password><id>1</id></user>", "<user><password>[redacted]</password><id>1</id></user>"),
        ('<ns:apiKey kind="a">X &amp; Y</ns:apiKey>', '<ns:apiKey kind="a">[redacted]</ns:apiKey>'),
        ("&lt;password&gt;X&lt;/password&gt;", "&lt;password&gt;[redacted]&lt;/password&gt;"),
        ("<user password='X' id='1'/>", "<user password='[redacted]' id='1'/>"),
        ('<input name="password" value="X">', '<input name="password" value="[redacted]">'),
        ('<add value="X" key="DbPassword"/>', '<add value="[redacted]" key="DbPassword"/>'),
        # --- databases
        ("Key (api_token)=(X) already exists.", "Key (api_token)=([redacted]) already exists."),
        ("Key (id, api_token)=(1, X) already exists.", "Key (id, api_token)=(1, [redacted]) already exists."),
        ("Key (id, api_token)=(1, X, Y) already exists.", "Key (id, api_token)=([redacted]) already exists."),
        (
            "Key (lower(api_token::text))=(X)y) already exists.",
            "Key (lower(api_token::text))=([redacted]) already exists.",
        ),
        ("Key (email)=(a@b.c) already exists.", "Key (email)=(a@b.c) already exists."),
        (
            "Duplicate entry 'it's X' for key 'users.api_token'",
            "Duplicate entry '[redacted]' for key 'users.api_token'",
        ),
        ("Duplicate entry 'bob' for key 'users.name'", "Duplicate entry 'bob' for key 'users.name'"),
        ("Failing row contains (1, bob, X, null).", "Failing row contains ([redacted])."),
        (
            "INSERT INTO users (mail, password, age) VALUES ('a, b', 'X, ''Y', 3), ('c', 'Z', 4) RETURNING id",
            "INSERT INTO users (mail, password, age) VALUES ('a, b', [redacted], 3), ('c', [redacted], 4) RETURNING id",
        ),
        (
            'insert into "u" ("id", "api_key")\nvalues (1, \'X\')',
            'insert into "u" ("id", "api_key")\nvalues (1, [redacted])',
        ),
        (
            "[SQL: INSERT INTO users (email, password) VALUES (?, ?)]\n[parameters: ('a@b', 'X')]",
            "[SQL: INSERT INTO users (email, password) VALUES (?, ?)]\n[parameters: ('a@b', [redacted])]",
        ),
        (
            "[SQL: INSERT INTO u (a, token) VALUES (%s, %s)]\n[parameters: [('b', 'X'), ('c', 'Y')]]",
            "[SQL: INSERT INTO u (a, token) VALUES (%s, %s)]\n[parameters: [('b', [redacted]), ('c', [redacted])]]",
        ),
        (
            "[SQL: UPDATE u SET name=%s, password=%s WHERE id = %s]\n[parameters: ('b', 'X', 3)]",
            "[SQL: UPDATE u SET name=%s, password=[redacted] WHERE id = %s]\n[parameters: ('b', [redacted], 3)]",
        ),
        ("UPDATE u SET password = 'X' WHERE id = 3", "UPDATE u SET password = '[redacted]' WHERE id = 3"),
        # --- prose
        ("machine h login bob password X", "machine h login bob password [redacted]"),
        ("CREATE USER 'bob'@'h' IDENTIFIED BY 'X'", "CREATE USER 'bob'@'h' IDENTIFIED BY '[redacted]'"),
        ("ALTER ROLE bob WITH PASSWORD 'X'", "ALTER ROLE bob WITH PASSWORD '[redacted]'"),
        ("the login of bob is good", "the login of bob is good"),
        ("invalid password 'X' for bob", "invalid password '[redacted]' for bob"),
        ("shop/tokens.py:42: in log_in", "shop/tokens.py:42: in log_in"),
        ("unexpected token ')' in line 3", "unexpected token ')' in line 3"),
    ],
)
def test_a_value_is_hidden_to_its_end_and_no_further(text, clean):
    assert REDACTOR.text(text) == clean


def test_each_grammar_finds_something_in_the_examples_alone():
    examples = test_a_value_is_hidden_to_its_end_and_no_further.pytestmark[0].args[1]
    for grammar in GRAMMARS:
        assert any(list(grammar.find(text, REDACTOR.is_secret_name)) for text, _ in examples), grammar.find.__name__


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("redis://:p@ss@host:6379/0", "redis://:[redacted]@host:6379/0"),
        ("postgres://bob:pa/s@s/w@host/db", "postgres://bob:[redacted]@host/db"),
        ("postgres://bob:12/34@host/db", "postgres://bob:[redacted]@host/db"),
        ("postgres://bob:pa'ss#x?y@host/db", "postgres://bob:[redacted]@host/db"),
        ("mongodb://bob:X@h1,h2/db", "mongodb://bob:[redacted]@h1,h2/db"),
        ("https://bob:X@host/?mail=ada@example.org", "https://bob:[redacted]@host/?mail=ada@example.org"),
        ("https://bob:p@s/s@host/x", "https://bob:[redacted]@host/x"),
        ("https://0123456789abcdef0123@github.com/x.git", "https://[redacted]@github.com/x.git"),
        ("redis://a:X@h,redis://b:Y@i", "redis://a:[redacted]@h,redis://b:[redacted]@i"),
        ("('amqp://bob:X@h', 5)", "('amqp://bob:[redacted]@h', 5)"),
        ("redis://bob:cut-off-he", "redis://bob:[redacted]"),
        ("bob:hun@ter2@host", "bob:[redacted]@host"),
    ],
)
def test_a_url_loses_its_password_whatever_that_holds(url, clean):
    assert REDACTOR.text(url) == clean


# --- properties

PUNCTUATION = "!#$%&*+-./:;=?@^_~,()[]{}<>|"
VALUES = st.text(string.ascii_letters + string.digits + PUNCTUATION + "\"'\\", min_size=8, max_size=40)
WORDS = st.text(string.ascii_letters + string.digits + "!#$%*+-._~", min_size=8, max_size=40)
IN_URLS = st.text(string.ascii_letters + string.digits + "!$*+-._~/@:", min_size=8, max_size=40)
NAMES = st.sampled_from(["password", "db_pass", "DB_PASS", "PGPASS", "smtp_pw", "newPass", "FERNET_KEY", "STRIPE_KEY",
                         "apiKey", "X-Auth-Token", "client_secret", "user_tokens", "session_id"])  # fmt: skip

QUOTED = {
    "JSON": lambda name, value: json.dumps({"a": 1, name: value, "z": "end"}),
    "JSON in JSON": lambda name, value: json.dumps({"body": json.dumps({name: value, "z": "end"})}),
    "JSON thrice": lambda name, value: json.dumps([json.dumps([json.dumps({name: value})])]),
    "JSON list": lambda name, value: json.dumps({name: ["first", value, "last"], "z": 1}),
    "repr": lambda name, value: repr({"a": 1, name: value, "z": "end"}),
    "repr of bytes": lambda name, value: repr({name.encode(): value.encode()}),
    "repr of a repr": lambda name, value: repr([repr({name: value})]),
    "call": lambda name, value: f"Client(a=1, {name.replace('-', '_')}={value!r}, z=2)",
    "row of two": lambda name, value: repr([("Accept", "*/*"), (name, value)]),
    "command line": lambda name, value: repr(["run", f"--{name}", value, "end"]),
    "SQL": lambda name, value: "INSERT INTO t (a, {}) VALUES ('b', '{}')".format(name, value.replace("'", "''")),
    "XML": lambda name, value: f"<x><{name}>{escape(value)}</{name}></x>",
}
BARE = {
    "assignment": lambda name, value: f"with {name}={value} it failed",
    "header": lambda name, value: f"Accept: */*\n{name}: {value}\nHost: h",
    "query": lambda name, value: f"/path?a=1&{name}={quote(value, safe='')}&z=2",
    "option": lambda name, value: f"run --{name} {value} --end",
    "login": lambda name, value: f"curl -u bob:{value} https://h/",
    "Authorization": lambda name, value: f"Authorization: Custom {value}\nHost: h",
    "Cookie": lambda name, value: f"Cookie: a=b; c={value}; d=e",
    "PostgreSQL": lambda name, value: f"DETAIL:  Key ({name})=({value}) already exists.",
    "MySQL": lambda name, value: f"Duplicate entry '{value}' for key 'users.{name}'",
    "element": lambda name, value: f"<{name}>{value}</{name}>",
}


def is_hidden(value, shown):
    """No six characters in a row of the value are left that the mark does not have itself."""
    pieces = {value[at : at + 6] for at in range(len(value) - 5)}
    return not any(piece in shown for piece in pieces)


@settings(max_examples=300)
@given(how=st.sampled_from(sorted(QUOTED)), name=NAMES, value=VALUES)
@example(how="JSON", name="password", value='aaaaaa"bbbbbb')
@example(how="JSON in JSON", name="password", value='aaaaaa\\"bbbbbb\\')
@example(how="SQL", name="password", value="aaaaaa''bbbbbb")
def test_a_quoted_value_is_hidden_whatever_it_holds(how, name, value):
    assume(value.lower() not in MARK and "redact" not in value and not value.startswith("-"))
    text = QUOTED[how](name, value)
    written = {value, json.dumps(value)[1:-1], repr(value)[1:-1], escape(value)}
    shown = REDACTOR.text(text)
    assert not any(spelling in shown for spelling in written), shown
    assert is_hidden(value, shown.replace(QUOTED[how](name, ""), "")) or how == "row of two", shown


@settings(max_examples=300)
@given(how=st.sampled_from(sorted(BARE)), name=NAMES, value=WORDS)
def test_a_bare_value_is_hidden(how, name, value):
    assume("redact" not in value and not value.startswith("-"))
    shown = REDACTOR.text(BARE[how](name, value))
    assert value not in shown
    assert quote(value, safe="") not in shown


@settings(max_examples=300)
@given(
    scheme=st.sampled_from(["redis", "postgres", "amqp", "mysql+pymysql", "mongodb+srv", "https", "git+https"]),
    value=IN_URLS,
    around=st.sampled_from(["{}", "no {} for you", "'{}'", '{{"url": "{}"}}', "[{}]", "a\n{}\nb"]),
)
def test_a_urls_password_is_hidden_whatever_it_holds(scheme, value, around):
    assume(not value.startswith("/") and "://" not in value and "redact" not in value)
    is_port = value.partition("/")[0].isdigit() and scheme.endswith("https")
    shown = REDACTOR.text(around.format(f"{scheme}://bob:{value}@db.example.org/x"))
    assert value not in shown or is_port
    assert "db.example.org" in shown or ":" in value  # what stands before it can be a name


@given(st.text(max_size=300))
def test_no_text_breaks_a_search(text):
    once = REDACTOR.text(text)
    assert isinstance(once, str)
    assert REDACTOR.source(text).count("\n") == text.count("\n")


# --- time

HOSTILE = {
    "names": "a=",
    "names that are secret": "token=a,",
    "quotes": "'token':'",
    "backslashes": '\\"',
    "escaped quotes": '"token": "\\\\\\"',
    "brackets": "token=[({",
    "URLs": "a://b:c",
    "ats": "a:b@",
    "at signs": "@@@",
    "tokens": "eyJ-",
    "tokens in a row": "eyJeyJ.",
    "starts": "sk-rk_pk-ghp_xoxb-SG.",
    "SendGrid": "SG.aaaaaaaaaaaaaaaaaaaa",
    "keys": "-----BEGIN PRIVATE KEY",
    "open keys": "-----BEGIN PRIVATE KEY-----",
    "ends": "-----END A",
    "tags": "<password ",
    "escaped tags": "&lt;password ",
    "inserts": "INSERT INTO a (token",
    "rows": "INSERT INTO a (token) VALUES (",
    "Postgres": "Key (token",
    "Postgres values": "Key (token)=(a",
    "MySQL": "Duplicate entry 'a",
    "options": "--token ",
    "logins": " -u a:",
    "blanks": "token      ",
    "colons": "token:",
    "cookies": "Cookie: a; ",
    "authorization": "Authorization: a ",
    "digits": "4 4-4",
    "PuTTY": "Private-Lines: 1\n",
    "base64": "MIIEvQ" * 12 + "\n",
    "parameters": "[parameters: (token=?",
    "percent": "sig%3Dtoken%3D",
    "pages": "a=%s token=? ",
    "YAML": "token:\n",
    "YAML blocks": "token:\n  a\n",
    "YAML lists": "- token:\n- ",
    "netrc": "login a password ",
    "entities": "&quot;token",
    "users": "IDENTIFIED BY ",
    "quoted passwords": "password '",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_the_time_grows_with_the_text_and_not_with_its_square(piece):
    def took_s(length):
        text = (piece * (length // len(piece) + 1))[:length]
        searched = Redactor()
        best_s = 1e9
        for _ in range(3):
            start_s = time.thread_time()
            searched.text(text)
            searched.source(text)
            best_s = min(best_s, time.thread_time() - start_s)
        return best_s

    short_s, long_s = took_s(4_000), took_s(32_000)
    # Eight times the length: by the square it would be 64 times the time.
    assert long_s < 24 * short_s + 0.005
    assert long_s < 0.5
