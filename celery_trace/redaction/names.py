"""
Which names are secret. The lists are data; the rules are at the end.

A name is judged by its whole words: ``author`` is not ``auth`` and ``discard`` is not ``card``, while ``apiKey``,
``API_KEY`` and ``x-api-key`` are the same words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from celery_trace.redaction.sieve import any_of


def fold(text: str) -> str:
    """A text without accents, invisible characters and full-width forms; ASCII is returned unchanged."""
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFKD", text)
    return "".join(each for each in apart if unicodedata.category(each) not in ("Mn", "Cf")) or text


#: One of these words makes a name secret.
_SPELLED = (
    "password", "passwd", "passwrd", "pwd", "pswd", "psw", "pw", "pass", "passphrase", "passcode", "secret",
    "token", "credential", "cred", "authorization", "auth", "cookie", "session", "sessionid", "sid", "card",
    "creditcard", "cardnumber", "cvv", "cvc", "pan", "pin", "iban", "ssn", "csrf", "xsrf", "jwt", "bearer", "otp",
    "totp", "hotp", "psk", "mnemonic", "apikey", "signature", "dsn", "connstr",
    # The same in other languages.
    "passwort", "kennwort", "wachtwoord", "motdepasse", "contrasena", "senha", "parola", "losenord", "adgangskode",
    "salasana", "heslo", "haslo", "пароль", "密码", "密碼", "パスワード",
)  # fmt: skip
WORDS = frozenset(map(fold, _SPELLED))

#: At the end of a compound word: ``dbpassword``, ``PGPASS``, ``csrfmiddlewaretoken``.
ENDINGS = (
    "password", "passwd", "passphrase", "pass", "pwd", "pw", "secret", "token", "apikey", "sessionid", "cookie",
)  # fmt: skip
#: Harmless words with such an ending.
INNOCENT = frozenset(
    (
        "bypass", "compass", "encompass", "trespass", "overpass", "underpass", "surpass", "multipass", "lowpass",
        "highpass", "bandpass", "allpass",
    )
)  # fmt: skip

#: Before the word ``key``, in one word or two: ``FERNET_KEY``, ``stripeKey``, ``signingkey``. A ``sort_key``,
#: ``primary_key``, ``cache_key``, ``routing_key``, ``public_key`` or bare ``key`` is not secret.
KEYS = frozenset(
    (
        "access", "account", "admin", "aes", "api", "app", "auth", "bot", "cipher", "client", "consumer", "crypt",
        "crypto", "database", "db", "decryption", "deploy", "django", "enc", "encrypt", "encryption",
        "fernet", "flask", "gpg", "hmac", "instrumentation", "integration", "jwe", "jws", "license", "licence",
        "master", "pem", "pgp", "priv", "private", "recovery", "rsa", "secret", "security", "server", "service",
        "shared", "sign", "signing", "ssh", "ssl", "subscription", "tls", "vault", "webhook",
        "wrapping", "write",
        # Vendors.
        "adyen", "airtable", "algolia", "anthropic", "apns", "aws", "azure", "braintree", "captcha", "cloudflare",
        "cohere", "datadog", "deepl", "fcm", "firebase", "gcp", "gemini", "github", "gitlab", "google", "groq",
        "hcaptcha", "heroku", "huggingface", "intercom", "mailchimp", "mailgun", "mandrill", "mapbox",
        "mistral", "notion", "openai", "paypal", "plaid", "postmark", "pusher", "rapidapi", "recaptcha", "relic",
        "replicate", "sendgrid", "sentry", "shopify", "slack", "sparkpost", "stripe", "supabase",
        "tailscale", "turnstile", "twilio", "vapid",
    )
)  # fmt: skip

#: Before the word ``code``.
CODES = frozenset(
    (
        "access", "activation", "authentication", "backup", "login", "mfa", "otp", "recovery", "reset", "scratch",
        "security", "sms", "verification",
    )
)  # fmt: skip

#: These sequences of words make a name secret.
PHRASES = (
    ("pass", "word"),
    ("one", "time", "code"),
    ("connection", "string"),
    ("connection", "str"),
    ("conn", "string"),
    ("conn", "str"),
    ("code", "verifier"),
    ("oauth", "verifier"),
    ("security", "answer"),
    ("seed", "phrase"),
    ("recovery", "phrase"),
    ("github", "pat"),
    ("gitlab", "pat"),
    ("azure", "pat"),
    ("api", "hash"),
    ("sas", "url"),
    ("sas", "uri"),
    ("magic", "link"),
    ("reset", "link"),
    ("slack", "webhook"),
    ("discord", "webhook"),
    ("teams", "webhook"),
    ("passport", "number"),
    ("mot", "de", "passe"),
)

#: A pass that is not a password.
PASSES = frozenset(
    (
        "all", "backward", "band", "boarding", "day", "first", "forward", "high", "low", "multi", "next", "one",
        "render", "season", "second", "single", "third", "two",
    )
)  # fmt: skip
#: After the word ``pass``, where it is not a password either.
AFTER_PASS = frozenset(("fail", "id", "manager", "number", "percentage", "through", "by"))

#: The last word of a name that measures, dates or classifies secrets instead of holding one: ``session_count``,
#: ``token_type``, ``password_min_length``.
MEASURES = frozenset(
    (
        "age", "at", "brand", "budget", "count", "expiration", "expire", "expiry", "interval", "kind", "len", "length",
        "lifetime", "limit", "quota", "rate", "size", "timeout", "total", "ttl", "type", "usage",
    )
)  # fmt: skip
#: The first word of a name that counts what a later word in the plural names: ``max_tokens``, ``n_sessions``.
COUNTS = frozenset(("avg", "count", "max", "maximum", "mean", "min", "minimum", "n", "nb", "num", "sum", "total"))
#: After a plural: ``tokens_used``, ``tokens_per_second``.
COUNTED = frozenset(("detail", "left", "per", "remaining", "used"))
#: Right before ``tokens`` these mean the tokens of a language model.
TEXT_TOKENS = frozenset(
    ("audio", "cached", "completion", "context", "image", "input", "new", "output", "prompt", "reasoning", "thinking")
)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+")
#: Characters of a name that are checked; longer ones are the user's data, and not cached.
_LONGEST = 256
_REMEMBERED = 4096


def _split(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(fold(name))]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def split_name(name: str) -> list[str]:
    """The words of a name in lower case and singular: ``userApiKeys2`` is ``user``, ``api``, ``key``."""
    return [_singular(word) for word in _split(name)]


class SecretNames:
    """
    Decides which names are secret. Thread-safe; results are cached.

    Args:
        more: Further names, whole or as consecutive words of a longer one; the built-in ones always apply.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        names = [name for name in more if name]
        self._literal = frozenset(name.lower() for name in names)
        self._phrases = tuple(tuple(words) for words in map(split_name, names) if words)
        #: The cache, for hot loops that read it before they call.
        self.known: dict[str | None, bool] = {}
        self._hint = re.compile(any_of(self._hints())).search

    def is_secret(self, name: str) -> bool:
        """Whether a variable, key, attribute, header or cookie of that name holds a secret."""
        known = self.known.get(name)
        if known is None:
            known = self._decide(name[:_LONGEST])
            if len(name) <= _LONGEST:
                if len(self.known) > _REMEMBERED:  # keys can be the user's data: the cache is bounded
                    self.known.clear()
                self.known[name] = known
        return known

    def _decide(self, name: str) -> bool:
        if name.lower() in self._literal:
            return True
        spelled = _split(name)
        words = [_singular(word) for word in spelled]
        if any(_contains_phrase(phrase, words) for phrase in self._phrases):
            return True
        if not words or words[-1] in MEASURES:
            return False
        return any(_is_secret_part(place, words, spelled) for place in range(len(words))) or any(
            _contains_phrase(phrase, words) for phrase in PHRASES
        )

    def _hints(self) -> set[str]:
        """Literals: every lower-case text with a secret name contains one. Derived, so none is missing."""
        phrases = (*PHRASES, *self._phrases)
        return {*WORDS, *ENDINGS, "key", "code", *self._literal, *(max(phrase, key=len) for phrase in phrases)}

    def may_be_in(self, text: str) -> bool:
        """Whether a text may contain a secret name. False is certain."""
        return self._hint(fold(text).lower()) is not None


def _is_secret_part(place: int, words: list[str], spelled: list[str]) -> bool:
    word = words[place]
    before = words[place - 1] if place else ""
    after = words[place + 1] if place + 1 < len(words) else ""
    if word == "key":
        return before in KEYS
    if word == "code":
        return before in CODES
    if word == "pass" and (before in PASSES or after in AFTER_PASS):
        return False
    if word in INNOCENT or not (word in WORDS or word.endswith(ENDINGS) or _is_key(word)):
        return False
    plural = spelled[place] != word
    counted = words[0] in COUNTS or after in COUNTED or before in TEXT_TOKENS or words[:2] == ["number", "of"]
    return not (plural and counted)


def _is_key(word: str) -> bool:
    return word.endswith("key") and word[:-3] in KEYS


def _contains_phrase(phrase: tuple[str, ...], words: list[str]) -> bool:
    length = len(phrase)
    return any(tuple(words[start : start + length]) == phrase for start in range(len(words) - length + 1))
