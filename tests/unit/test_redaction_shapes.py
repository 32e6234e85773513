"""Each vendor's credentials, in the lengths and alphabets that the vendor documents, wherever they stand."""

import json
import random
import string
from functools import partial
from urllib.parse import quote

import msgspec
import pytest

from celery_trace.failures.capture.heap import HeapEncoder
from celery_trace.failures.capture.leaves import LEAVES
from celery_trace.failures.capture.shapes import shape_of
from celery_trace.redaction import MARK, Redactor, Scrubber
from celery_trace.redaction.grammars import GRAMMARS
from celery_trace.redaction.shapes import SHAPES
from celery_trace.redaction.sieve import Sieve
from celery_trace.settings import Limits

REDACTOR = Redactor()

UPPER, LOWER, DIGITS = string.ascii_uppercase, string.ascii_lowercase, string.digits
HEX = DIGITS + "abcdef"
ALNUM = UPPER + LOWER + DIGITS
URL_SAFE = ALNUM + "-_"
BASE64 = ALNUM + "+/"

# A form is a row of literal texts and (how many characters, from which alphabet), as the vendors write them down.
# Several forms of one shape take turns. The names are those of the table.
FORMS = {
    "private key in Base64": [["MIIEv", (59, BASE64)], ["MIIJK", (59, BASE64)], ["b3BlbnNzaC1r", (52, BASE64)]],
    "JSON Web Token": [["eyJ", (33, URL_SAFE), ".eyJ", (60, URL_SAFE), ".", (43, URL_SAFE)], ["eyJ", (20, HEX), ".."]],
    "Slack webhook": [["hooks.slack.com/services/T", (8, ALNUM), "/B", (8, ALNUM), "/", (24, ALNUM)]],
    "Discord webhook": [["discord.com/api/webhooks/", (18, DIGITS), "/", (68, URL_SAFE)]],
    "Teams webhook": [["x.webhook.office.com/webhookb2/", (36, HEX), "@", (36, HEX), "/IncomingWebhook/", (32, HEX)]],
    "Telegram bot": [[(10, DIGITS), ":AA", (33, URL_SAFE)], ["/bot", (10, DIGITS), ":AA", (33, URL_SAFE), "/send"]],
    "secret key": [
        ["sk_live_", (24, ALNUM)], ["sk_test_", (24, ALNUM)], ["rk_live_", (24, ALNUM)], ["pk_live_", (24, ALNUM)],
        ["sk-proj-", (74, URL_SAFE), "T3BlbkFJ", (74, URL_SAFE)], ["sk-ant-api03-", (93, URL_SAFE), "AA"],
        ["sk-", (20, ALNUM)], ["sk_", (20, ALNUM)],
    ],
    "GitHub": [[f"gh{kind}_", (36, ALNUM)] for kind in "pousr"],
    "GitHub, fine-grained": [["github_pat_", (22, ALNUM), "_", (59, ALNUM)]],
    "GitLab": [["glpat-", (20, URL_SAFE)], ["glrt-", (20, URL_SAFE)], ["glptt-", (40, HEX)], ["gldt-", (20, URL_SAFE)]],
    "Slack": [
        ["xoxb-", (12, DIGITS), "-", (12, DIGITS), "-", (24, ALNUM)], ["xoxp-", (12, DIGITS), "-", (32, HEX)],
        ["xapp-1-A", (10, UPPER + DIGITS), "-", (13, DIGITS), "-", (64, HEX)],
    ],
    "AWS access key": [["AKIA", (16, UPPER + "234567")], ["ASIA", (16, UPPER + "234567")]],
    "AWS Bedrock": [["ABSK", (120, BASE64)]],
    "Alibaba Cloud": [["LTAI", (20, ALNUM)]],
    "Google API": [["AIza", (35, URL_SAFE)]],
    "Google OAuth": [["ya29.", (60, URL_SAFE)]],
    "Google OAuth client": [["GOCSPX-", (28, URL_SAFE)]],
    "Azure AD client": [[(3, ALNUM), "8Q~", (34, ALNUM + "_~.-")]],
    "SendGrid": [["SG.", (22, URL_SAFE), ".", (43, URL_SAFE)]],
    "Sendinblue": [["xkeysib-", (64, HEX), "-", (16, ALNUM)]],
    "Mailgun": [["key-", (32, HEX)]],
    "Mailchimp": [[(32, HEX), "-us20"]],
    "Twilio": [["SK", (32, HEX)]],
    "npm": [["npm_", (36, ALNUM)]],
    "PyPI": [["pypi-AgEIcHlwaS5vcmc", (80, URL_SAFE)]],
    "RubyGems": [["rubygems_", (48, HEX)]],
    "Hugging Face": [["hf_", (34, UPPER + LOWER)]],
    "Perplexity": [["pplx-", (48, ALNUM)]],
    "Groq": [["gsk_", (52, ALNUM)]],
    "Replicate": [["r8_", (37, ALNUM)]],
    "Stripe webhook": [["whsec_", (32, ALNUM)]],
    "Square": [["sq0atp-", (22, URL_SAFE)], ["sq0csp-", (43, URL_SAFE)], ["EAAA", (60, URL_SAFE)]],
    "Facebook": [["EAAC", (100, ALNUM)]],
    "Shopify": [["shpat_", (32, HEX)], ["shpss_", (32, HEX)], ["shpca_", (32, HEX)]],
    "Shippo": [["shippo_live_", (40, HEX)]],
    "EasyPost": [["EZAK", (54, ALNUM)]],
    "Duffel": [["duffel_live_", (43, URL_SAFE)]],
    "Flutterwave": [["FLWSECK_TEST-", (32, HEX), "-X"]],
    "HashiCorp Vault": [["hvs.", (95, URL_SAFE)], ["hvb.", (140, URL_SAFE)]],
    "Terraform Cloud": [[(14, ALNUM), ".atlasv1.", (67, URL_SAFE)]],
    "Doppler": [["dp.pt.", (43, ALNUM)]],
    "DigitalOcean": [["dop_v1_", (64, HEX)]],
    "Fly.io": [["fo1_", (43, URL_SAFE)], ["fm2_", (120, BASE64)]],
    "Heroku": [["HRKU-AA", (58, URL_SAFE)]],
    "Databricks": [["dapi", (32, HEX)]],
    "Docker": [["dckr_pat_", (27, URL_SAFE)]],
    "Tailscale": [["tskey-auth-", (17, ALNUM), "-", (32, ALNUM)]],
    "Pulumi": [["pul-", (40, HEX)]],
    "PlanetScale": [["pscale_tkn_", (43, URL_SAFE)]],
    "OpenShift": [["sha256~", (43, URL_SAFE)]],
    "Artifactory": [["AKCp", (69, ALNUM)]],
    "Dynatrace": [["dt0c01.", (24, UPPER + DIGITS), ".", (64, UPPER + DIGITS)]],
    "Grafana": [["glsa_", (32, ALNUM), "_", (8, HEX)], ["glc_", (60, BASE64)]],
    "New Relic": [["NRAK-", (27, UPPER + DIGITS)]],
    "Sentry": [["sntryu_", (64, HEX)], ["sntrys_", (120, BASE64), "_", (43, BASE64)]],
    "Atlassian": [["ATATT3", (186, URL_SAFE)]],
    "Linear": [["lin_api_", (40, ALNUM)]],
    "Notion": [["ntn_", (46, ALNUM)]],
    "Postman": [["PMAK-", (24, HEX), "-", (34, HEX)]],
    "Prefect": [["pnu_", (36, ALNUM)]],
    "ReadMe": [["rdme_", (70, LOWER + DIGITS)]],
    "age": [["AGE-SECRET-KEY-1", (58, UPPER + DIGITS)]],
    "1Password": [["ops_eyJ", (250, ALNUM)]],
    "Azure SAS": [["sv=2022&sig=", (43, BASE64), "%3D"]],
    "PuTTY": [["Private-Lines: 2\n", (64, BASE64), "\n", (40, BASE64)]],
    "PEM": [
        ["-----BEGIN PRIVATE KEY-----\n", (64, BASE64), "\n", (64, BASE64), "\n-----END PRIVATE KEY-----"],
        ["-----BEGIN RSA PRIVATE KEY-----\n", (64, BASE64), "\n", (40, BASE64)],
    ],
    "HTTP authorization": [["Bearer ", (32, ALNUM)], ["Basic ", (20, BASE64), "=="]],
    "password of a URL": [["amqp://bob:", (14, ALNUM + "/@#+!"), "@broker:5672/v"]],
    "login without a scheme": [["bob:", (14, ALNUM + "!+-_.")  , "@db.example.org"]],
}  # fmt: skip


def made(form, dice):
    """An example of a form, and the parts of it that are random and so long that they can't stand there by chance."""
    parts = [part if isinstance(part, str) else "".join(dice.choices(part[1], k=part[0])) for part in form]
    secrets = [text for text, part in zip(parts, form, strict=True) if not isinstance(part, str) and len(text) >= 14]
    return "".join(parts), secrets


def in_heap(value):
    encoder = HeapEncoder(Limits(), REDACTOR, Scrubber(), shape_of, LEAVES)
    encoder.variables([("value", value)])
    encoder.open_pending(nodes=4000, bytes=200_000)
    return msgspec.json.encode(encoder.finish()).decode()


CONTEXTS = {
    "alone": REDACTOR.text,
    "text": lambda token: REDACTOR.text(f"cannot clone with {token}, giving up"),
    "escaped": lambda token: REDACTOR.text(repr(f"it said\n{token}\nand left")),
    "JSON": lambda token: REDACTOR.text(json.dumps({"given": token, "other": [token]})),
    "URL": lambda token: REDACTOR.text(f"https://example.org/x?given={token}&page=2"),
    "quoted in a URL": lambda token: REDACTOR.text(f"https://example.org/x?given=%22{token}%22"),
    "header": lambda token: REDACTOR.text(f"GET / HTTP/1.1\r\nX-Given: {token}\r\nHost: example.org"),
    "command line": lambda token: REDACTOR.text(repr(["run", "--given", token])),
    "source": lambda token: REDACTOR.source(f"    client = Client({token!r}, retries=3)"),
    "value": in_heap,
    "bytes": lambda token: in_heap(token.encode()),
    "argument list": lambda token: in_heap(["run", "--given", token, token.encode()]),
    "key": lambda token: in_heap({token: 1, "other": {token: {token: 2}}}),
    "key of bytes": lambda token: in_heap({token.encode(): 1}),
    "exception": lambda token: in_heap(ValueError(f"bad {token}", token)),
    "attribute": lambda token: in_heap(partial(print, **{token: 1})),
}


def test_each_shape_has_an_example():
    assert set(FORMS) == {shape.name for shape in SHAPES}


@pytest.mark.parametrize("name", sorted(FORMS))
def test_credentials_of_each_vendor_are_hidden_wherever_they_stand(name):
    dice = random.Random(name)
    contexts = list(CONTEXTS.items())
    for turn in range(6 * len(contexts) * len(FORMS[name])):  # each form in each context, six times
        form = FORMS[name][turn % len(FORMS[name])]
        token, secrets = made(form, dice)
        where, say = contexts[(turn // len(FORMS[name])) % len(contexts)]
        shown = say(token)
        for secret in secrets:
            assert secret not in shown, f"{where}: {shown}"
            assert quote(secret, safe="") not in shown, where
        assert MARK in shown or "redacted" in shown, where


@pytest.mark.parametrize("name", sorted(FORMS))
def test_the_sieve_lets_through_whatever_a_shape_finds(name):
    shape = next(shape for shape in SHAPES if shape.name == name)
    sieve = Sieve([(shape, shape.starts)])
    dice = random.Random(name)
    for turn in range(200):
        token, _ = made(FORMS[name][turn % len(FORMS[name])], dice)
        text = "".join(dice.choices(string.printable, k=dice.randrange(30))) + " " + token + " "
        assert not list(shape.find(text)) or sieve.rows(text) == [shape]


def test_the_sieve_finds_each_literal_of_each_row_in_any_text():
    rows = [(row, row.starts if hasattr(row, "starts") else row.needs) for row in (*SHAPES, *GRAMMARS)]
    sieve = Sieve(rows)
    dice = random.Random(5)
    for row, literals in rows:
        for literal in literals:
            for noise in ("", "-" * 80, "_-./=:" * 20):
                around = [noise + "".join(dice.choices(string.printable, k=dice.randrange(20))) for _ in "ab"]
                assert row in sieve.rows(literal.join(around)), literal
    assert sieve.rows("nothing to see in these words") == []


def test_an_identifier_of_a_shape_is_no_credential():
    for innocent in (
        "pk_orders_customer_id", "sk-learn-contrib-extra", "rk_user_permissions_all", "task-key-value-store-of-mine",
        "d670460b4b4aece5915caf5c68d12f560a9fe3e4", "550e8400-e29b-41d4-a716-446655440000",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "SKU-12345678", "basic authentication is",
        "Bearer token expected", "npm_config_registry_url", "2024-05-01T00:00:00.123456+00:00", "hf_hub_download_files",
        "/usr/lib/python3/dist-packages/kombu/connection.py", "mailto:ada@example.org", "ada@example.org",
        "http://localhost:8000", "http://localhost:8000/@scope/package", "http://[::1]:8000/", "redis://localhost:6379/0",
        "git@github.com:owner/repo.git", "https://example.org/a?mail=ada@example.org", "celery@worker-1.example.org",
        "postgres://db.example.org/shop", "12:30:45.123456", "the ratio is 4:3@60", "amqp://broker.example.org:5672//",
    ):  # fmt: skip
        assert REDACTOR.text(innocent) == innocent
        assert innocent in REDACTOR.text(f"it was {innocent} then")
