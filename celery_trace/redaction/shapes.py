"""
Formats that only credentials have, whatever their name: one table.

The formats of vendors' keys are those that the vendors document and that the rules of gitleaks and detect-secrets agree
on. Where those require an exact length, a shorter one is accepted here, as a text may be cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from celery_trace.redaction.pem import pem_bodies
from celery_trace.redaction.spans import Find, Span
from celery_trace.redaction.urls import url_passwords


class Shape(NamedTuple):
    """
    One kind of credential.

    ``starts`` are literals: every text with the shape contains at least one; a text without them
    is never searched. ``find`` returns the spans to hide.
    """

    name: str
    starts: tuple[str, ...]
    find: Find


def _like(pattern: str) -> Find:
    """All matches of a pattern, or of its group if it has one."""
    compiled = re.compile(pattern)
    group = 1 if compiled.groups else 0

    def find(text: str) -> Iterator[Span]:
        for match in compiled.finditer(text):
            if match.start(group) >= 0:
                yield match.span(group)

    return find


def _token(name: str, starts: str, rest: str) -> Shape:
    """A credential that begins with one of some literals, anywhere: no other text contains it by chance."""
    literals = tuple(starts.split())
    return Shape(name, literals, _like(rf"(?:{'|'.join(map(re.escape, literals))}){rest}"))


#: The beginning of a word, also after an escape: ``"\nsk-…"`` in a repr, ``%22sk-…`` in a URL.
_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f][0-9A-Fa-f]))"
#: Not only lower-case words, so that ``pk_orders_customer`` is not hidden.
_MIXED = r"(?=[a-z_-]{0,64}[A-Z0-9])"
_SCHEMES = ("Bearer", "Basic", "Digest", "Negotiate", "ApiKey")

SHAPES: tuple[Shape, ...] = (
    # --- formats and protocols
    Shape("PEM", ("-----BEGIN ",), pem_bodies),
    _token(
        "private key in Base64",
        "MIIEv MIIEp MIIEo MIIEq MIIJK MIIJQ MIIJR MIICX MIICd MHcCAQEE MC4CAQAw b3BlbnNzaC1r",
        r"[A-Za-z0-9+/]{24,}={0,2}",
    ),
    # The second alternative consumes a run without a dot, so that it is not searched again from each `eyJ` in it.
    Shape(
        "JSON Web Token",
        ("eyJ",),
        _like(r"(eyJ[A-Za-z0-9_-]{4,}+\.[A-Za-z0-9_-]*+(?:\.[A-Za-z0-9_-]*+){0,3})|eyJ[A-Za-z0-9_-]*+"),
    ),
    Shape("password of a URL", ("://",), url_passwords),
    Shape(
        "login without a scheme",
        ("@",),
        _like(
            r"""(?<![\w/:.@+%-])(?!(?i:mailto|e?mail|to|from|b?cc|sip|acct|sender|recipient):)"""
            r"""[\w.+%-]{1,64}:([^\s/:'"<>]{3,128})@(?=[\w\[])"""
        ),
    ),
    Shape(
        "HTTP authorization",
        tuple(f"{scheme[1:]} " for scheme in _SCHEMES),
        _like(
            rf"[A-Za-z](?:{'|'.join(scheme[1:] for scheme in _SCHEMES)}) +"
            r"(?=[a-z._~/+-]{0,64}[A-Z0-9=])([A-Za-z0-9._~+/=-]{6,})"
        ),
    ),
    Shape("Azure SAS", ("sig=", "sig%3D", "sig%3d"), _like(rf"{_START}sig(?:=|%3[Dd])([\w%+/=~.-]{{8,}})")),
    Shape(
        "PuTTY",
        ("Private-Lines: ",),
        _like(r"Private-Lines: \d{1,4}((?:(?:\s|\\[rn]){1,4}[A-Za-z0-9+/=]+(?![\w-]*:))+)"),
    ),
    # --- addresses that are keys
    Shape(
        "Slack webhook", ("hooks.slack.com/",), _like(r"hooks\.slack\.com/((?:services|workflows|triggers)/[\w+/-]+)")
    ),
    Shape("Discord webhook", ("/api/webhooks/",), _like(r"/api/webhooks/(\d+/[\w-]+)")),
    Shape("Teams webhook", ("webhook.office.com/",), _like(r"webhook\.office\.com/([\w@/-]{16,})")),
    Shape("Telegram bot", (":AA",), _like(r"\d{8,10}:AA[\w-]{30,}")),
    # --- vendors
    Shape(
        "secret key",
        ("sk-", "sk_", "rk-", "rk_", "pk-", "pk_"),
        _like(rf"{_START}(?:sk|rk|pk)[-_]{_MIXED}[A-Za-z0-9_-]{{12,}}"),
    ),
    _token("GitHub", "ghp_ gho_ ghu_ ghs_ ghr_", r"[A-Za-z0-9]{16,}"),
    _token("GitHub, fine-grained", "github_pat_", r"[A-Za-z0-9_]{16,}"),
    _token(
        "GitLab",
        "glpat- gldt- glrt- glptt- glcbt- glsoat- glft- glimt- glagent- gloas- glffct-",
        r"[\w-]{16,}(?:\.[0-9a-z]{2,9}){0,2}",
    ),
    _token("Slack", "xoxa- xoxb- xoxe- xoxe. xoxo- xoxp- xoxr- xoxs- xoxc- xoxd- xapp-", r"[\w%.-]{8,}"),
    Shape(
        "AWS access key",
        ("AKIA", "ASIA", "ABIA", "ACCA"),
        _like(rf"{_START}(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{{16}}(?![A-Z0-9])"),
    ),
    _token("AWS Bedrock", "ABSK bedrock-api-key-", r"[A-Za-z0-9+/]{28,}={0,2}"),
    _token("Alibaba Cloud", "LTAI", r"[A-Za-z0-9]{16,}"),
    _token("Google API", "AIza", r"[\w-]{30,}"),
    _token("Google OAuth", "ya29.", r"[\w-]{16,}"),
    _token("Google OAuth client", "GOCSPX-", r"[\w-]{16,}"),
    Shape("Azure AD client", ("Q~",), _like(r"[\w~.-]{3}\dQ~[\w~.-]{24,}")),
    _token("SendGrid", "SG.", r"[\w-]{16,}\.[\w-]{16,}"),
    _token("Sendinblue", "xkeysib-", r"[a-f0-9]{32,}(?:-[A-Za-z0-9]{4,})?"),
    Shape("Mailgun", ("key-",), _like(rf"{_START}key-[a-f0-9]{{32}}(?![A-Za-z0-9])")),
    Shape("Mailchimp", ("-us",), _like(rf"{_START}[a-f0-9]{{32}}-us\d{{1,2}}(?!\w)")),
    Shape("Twilio", ("SK",), _like(rf"{_START}SK[a-f0-9]{{32}}(?![A-Za-z0-9])")),
    _token("npm", "npm_", r"[A-Za-z0-9]{30,}"),
    _token("PyPI", "pypi-", r"[\w-]{32,}"),
    _token("RubyGems", "rubygems_", r"[a-f0-9]{32,}"),
    _token("Hugging Face", "hf_ api_org_", r"[A-Za-z0-9]{24,}"),
    _token("Perplexity", "pplx-", r"[A-Za-z0-9]{24,}"),
    _token("Groq", "gsk_", r"[A-Za-z0-9]{24,}"),
    _token("Replicate", "r8_", r"[A-Za-z0-9]{32,}"),
    _token("Stripe webhook", "whsec_", r"[A-Za-z0-9+/]{16,}={0,2}"),
    # Four zero bytes in Base64 begin like these, so they are only searched at the start of a word.
    Shape(
        "Square", ("sq0atp-", "sq0csp-", "sq0idp-", "EAAA"), _like(rf"{_START}(?:sq0(?:atp|csp|idp)-|EAAA)[\w-]{{22,}}")
    ),
    Shape("Facebook", ("EAAC", "EAAM", "EAAB", "EAAG"), _like(rf"{_START}EAA[BCGM][A-Za-z0-9]{{40,}}")),
    _token("Shopify", "shpat_ shpca_ shppa_ shpss_ shptka_", r"[A-Fa-f0-9]{24,}"),
    _token("Shippo", "shippo_live_ shippo_test_", r"[A-Fa-f0-9]{24,}"),
    _token("EasyPost", "EZAK EZTK", r"[A-Za-z0-9]{32,}"),
    _token("Duffel", "duffel_live_ duffel_test_", r"[\w=-]{24,}"),
    _token("Flutterwave", "FLWSECK- FLWSECK_TEST- FLWPUBK_TEST-", r"[A-Za-z0-9]{12,}(?:-X)?"),
    Shape("HashiCorp Vault", ("hvs.", "hvb.", "hvr."), _like(r"hv[sbr]\.[\w-]{20,}")),
    Shape("Terraform Cloud", (".atlasv1.",), _like(r"[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{40,}")),
    _token("Doppler", "dp.pt. dp.st. dp.ct. dp.sa.", r"[A-Za-z0-9._-]{24,}"),
    _token("DigitalOcean", "dop_v1_ doo_v1_ dor_v1_", r"[a-f0-9]{32,}"),
    _token("Fly.io", "fo1_ fm1a_ fm1r_ fm2_", r"[\w+/-]{40,}={0,3}"),
    _token("Heroku", "HRKU-", r"[\w-]{32,}"),
    _token("Databricks", "dapi", r"[a-f0-9]{32}(?:-\d)?"),
    _token("Docker", "dckr_pat_ dckr_oat_", r"[\w-]{20,}"),
    _token("Tailscale", "tskey-", r"[\w-]{16,}"),
    _token("Pulumi", "pul-", r"[a-f0-9]{40}"),
    _token("PlanetScale", "pscale_tkn_ pscale_oauth_ pscale_pw_", r"[\w=.-]{24,}"),
    _token("OpenShift", "sha256~", r"[\w-]{40,}"),
    _token("Artifactory", "AKCp", r"[A-Za-z0-9]{50,}"),
    _token("Dynatrace", "dt0c01. dt0s01. dt0s16.", r"[A-Za-z0-9]{20,}\.[A-Za-z0-9]{32,}"),
    _token("Grafana", "glc_ glsa_", r"[\w+/]{24,}={0,3}"),
    _token("New Relic", "NRAK- NRII- NRJS- NRBR-", r"[\w-]{16,}"),
    _token("Sentry", "sntrys_ sntryu_", r"[\w+/=-]{24,}"),
    _token("Atlassian", "ATATT3 ATCTT3 ATBB", r"[\w=-]{24,}"),
    _token("Linear", "lin_api_ lin_oauth_", r"[A-Za-z0-9]{24,}"),
    _token("Notion", "ntn_", r"[A-Za-z0-9]{32,}"),
    _token("Postman", "PMAK- PMAT-", r"[A-Za-z0-9-]{24,}"),
    _token("Prefect", "pnu_ pnb_", r"[A-Za-z0-9]{32,}"),
    _token("ReadMe", "rdme_", r"[a-z0-9]{32,}"),
    _token("age", "AGE-SECRET-KEY-1", r"[A-Z0-9]{16,}"),
    _token("1Password", "ops_eyJ", r"[\w+/=-]{40,}"),
)


def cards_in(text: str) -> Iterator[Span]:
    """The numbers of payment cards in a text."""
    if _DIGITS.search(text):
        for match in _CARD.finditer(text):
            if passes_luhn(_NO_DIGIT.sub("", match.group())):
                yield match.span()


# --- payment cards, which have no literal

_CARD = re.compile(r"(?<![\d.])[2-6](?:[ -]?\d){12,18}(?!\d)")
_DIGITS = re.compile(r"\d[\d -]{11}")
_NO_DIGIT = re.compile(r"\D")


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, character in enumerate(reversed(digits)):
        digit = int(character)
        if place % 2:
            digit = digit * 2 - 9 if digit > 4 else digit * 2
        total += digit
    return total % 10 == 0


def is_card_number(number: int) -> bool:
    """Whether an integer looks like a payment card's number: 13 to 19 digits, an issuer's range, a check digit."""
    if not 2_000_000_000_000 <= number < 7_000_000_000_000_000_000:
        return False
    digits = str(number)
    return "2" <= digits[0] <= "6" and passes_luhn(digits)
