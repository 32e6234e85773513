"""
Secrets are taken out before anything leaves the process: by name, and by what they look like.

A name is secret by its whole words, so ``author`` is not ``auth`` and ``discard`` is no
``card``; ``apiKey``, ``API_KEY`` and ``x-api-key`` are the same words. A text is searched for
shapes that only credentials have. What was learned to be a secret under its name can be
scrubbed from every other text of the same capture (:class:`Scrubber`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

#: What stands in the place of a secret.
MARK = "[redacted]"

#: One of these words in a name makes it secret.
_WORDS = frozenset(
    (
        "password", "passwd", "pwd", "passphrase", "passcode", "passwort", "secret", "token", "credential", "cred",
        "authorization", "auth", "cookie", "session", "sessionid", "card", "creditcard", "cardnumber", "cvv", "cvc",
        "pan", "pin", "iban", "ssn", "csrf", "xsrf", "jwt", "bearer", "otp", "totp", "apikey", "secretkey",
        "privatekey", "accesskey", "signingkey", "sid", "signature", "dsn",
    )
)  # fmt: skip
#: These words in a row make it secret.
_PHRASES = (
    ("api", "key"),
    ("secret", "key"),
    ("private", "key"),
    ("access", "key"),
    ("signing", "key"),
    ("encryption", "key"),
    ("ssh", "key"),
    ("master", "key"),
    ("account", "key"),
    ("shared", "key"),
    ("license", "key"),
    ("security", "code"),
    ("one", "time", "code"),
    ("connection", "string"),
    ("pass", "word"),
)
#: Unmistakable at the end of a word that was written in one piece: ``dbpassword``, ``csrfmiddlewaretoken``.
_ENDINGS = ("password", "passwd", "passphrase", "secret", "token", "apikey", "sessionid", "cookie")

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+")

_SHAPES = re.compile(
    r"""
      (?P<pem>-----BEGIN[ ][A-Z0-9 ]*PRIVATE[ ]KEY[A-Z0-9 ]*-----.*?(?:-----END[ ][A-Z0-9 ]+-----|\Z))
    | (?P<jwt>\beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)?)
    | (?P<url>(?<=://)[^\s/:@'"<>]*:[^\s/@'"<>]*(?:@|\Z))
    | (?P<login>(?<![\w/:.@+%-])[\w.+%-]{1,64}:[^\s/@:'"<>]{3,128}@(?=[\w\[]))
    | (?P<scheme>\b(?:Bearer|Basic|Digest|Negotiate)[ ]+[A-Za-z0-9._~+/=-]{6,})
    | (?P<vendor>
          \b(?:sk|rk|pk)[-_][A-Za-z0-9_-]{12,}
        | \bgh[pousr]_[A-Za-z0-9]{16,} | \bgithub_pat_[A-Za-z0-9_]{20,} | \bglpat-[A-Za-z0-9_-]{16,}
        | \bxox[abeoprs]-[A-Za-z0-9-]{8,} | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b | \bAIza[A-Za-z0-9_-]{30,}
        | \bya29\.[A-Za-z0-9_-]{16,} | \bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,} | \bnpm_[A-Za-z0-9]{30,}
        | \bhf_[A-Za-z0-9]{24,} | \bpypi-[A-Za-z0-9_-]{32,} | \bwhsec_[A-Za-z0-9]{16,}
      )
    """,
    re.VERBOSE | re.DOTALL,
)


def _may_have_a_shape(text: str) -> bool:
    """
    A cheap sieve: a text that fails it has none of the shapes above.

    Plain searches, the rarest character of a group first, beat a pattern of alternatives.
    """
    if "://" in text or "eyJ" in text or ("@" in text and ":" in text):
        return True
    if "A" in text and ("AKIA" in text or "ASIA" in text or "AIza" in text):
        return True
    if "." in text and ("ya29." in text or "SG." in text):
        return True
    if " " in text and (
        "earer " in text or "asic " in text or "igest " in text or "egotiate " in text or "PRIVATE KEY" in text
    ):
        return True
    if "-" in text and ("k-" in text or "xox" in text or "glpat-" in text or "pypi-" in text):
        return True
    return "_" in text and ("k_" in text or "gh" in text or "npm_" in text or "hf_" in text or "whsec_" in text)


_CARD = re.compile(r"(?<![\d.])[2-6](?:[ -]?\d){12,18}(?!\d)")
_DIGITS = re.compile(r"\d[\d -]{11}")

#: The name and what stands before a value, in ``name=value`` and ``"name": "value"``, as in query strings, headers,
#: DSNs, JSON and reprs. A name begins where no part of a name stands before it and is never tried in pieces, and
#: the value is looked for only behind a secret name: so the time grows with the text and not with its square.
_PAIR = re.compile(
    r"""(?<![\w.\-])(?P<name>[\w.\-]++)(?P<gap>\\?["']?[ ]?\]?\s{0,4}(?:=>|[=:])\s{0,4}(?:[A-Za-z]\w{0,40}\()?)"""
    r"""(?:[bru]{0,2}(?P<quote>\\?["']))?"""
)
_BARE = re.compile(r"""[^\s,;&)\]}>"']+""")
_AFTER_SCHEME = re.compile(r"\s+[^\s,;]+")
#: The same in source, where only a literal can be a secret.
_LITERAL = re.compile(
    r"""(?<![\w\-])(?P<name>[\w\-]++)(?P<gap>["']?\s{0,40}\]?\s{0,40}(?::[^=,(){}\n"']{1,40})?(?:==?|:|,)\s{0,40})"""
    r"""(?P<prefix>[bBrRuUfF]{0,2})(?P<quote>\"\"\"|'''|["'])"""
)
#: Characters of a name that are looked at; longer ones are the user's data, and not remembered.
_LONGEST_NAME = 256
_HARMLESS = frozenset({"", "none", "null", "true", "false", "nil", MARK.lower()})


def words_of(name: str) -> list[str]:
    """The words of a name in lower case and singular: ``userApiKeys2`` is ``user``, ``api``, ``key``."""
    words = [word.lower() for word in _WORD.findall(name)]
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words]


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


def _without_shape(match: re.Match[str]) -> str:
    kind = match.lastgroup
    text = match.group()
    if kind == "url" or kind == "login":
        user, _, _ = text.partition(":")
        return f"{user}:{MARK}@" if text.endswith("@") else f"{user}:{MARK}"
    if kind == "scheme":
        return f"{text.split(' ', 1)[0]} {MARK}"
    return MARK


def _without_card(match: re.Match[str]) -> str:
    digits = re.sub(r"\D", "", match.group())
    return MARK if passes_luhn(digits) else match.group()


def _without_shapes(text: str) -> str:
    if _may_have_a_shape(text):
        text = _SHAPES.sub(_without_shape, text)
    if len(text) >= 13 and _DIGITS.search(text):
        text = _CARD.sub(_without_card, text)
    return text


def _value(text: str, match: re.Match[str]) -> tuple[int, int]:
    """Where the value behind a secret name begins and ends."""
    first = match.end()
    if match["quote"]:
        end = text.find(match["quote"], first)
        return first, end if end >= 0 else len(text)
    bare = _BARE.match(text, first)
    if bare is None:
        return first, first
    stop = bare.end()
    if bare.group().lower() in {"bearer", "basic", "digest", "token"}:
        # `Authorization: Token abc`: the secret is the word after the scheme.
        rest = _AFTER_SCHEME.match(text, stop)
        stop = rest.end() if rest else stop
    return first, stop


class Redactor:
    """
    Decides what is secret. Immutable, so it can be shared by threads; answers about names are remembered.

    Args:
        names: Further names, whole or as consecutive words of a longer one; the built-in ones always apply.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._phrases = _PHRASES + tuple(tuple(words_of(name)) for name in names if words_of(name))
        self._literal_names = frozenset(name.lower() for name in names)
        #: Answers so far, for hot loops that look before they ask :meth:`is_secret_name`.
        self.known: dict[str | None, bool] = {}
        hints = {*_WORDS, *_ENDINGS, *(word for phrase in self._phrases for word in phrase), *self._literal_names} - {
            ""
        }
        self._pair_hints = sorted(hint for hint in hints if not any(other in hint and other != hint for other in hints))

    def is_secret_name(self, name: str) -> bool:
        """Whether a variable, key, attribute, header or cookie of that name holds a secret."""
        known = self.known.get(name)
        if known is None:
            known = self._decide(name[:_LONGEST_NAME])
            if len(name) <= _LONGEST_NAME:
                if len(self.known) > 4096:  # keys can be the user's data: never grow with them
                    self.known.clear()
                self.known[name] = known
        return known

    def _decide(self, name: str) -> bool:
        if name.lower() in self._literal_names:
            return True
        words = words_of(name)
        if not words:
            return False
        if any(word in _WORDS or word.endswith(_ENDINGS) for word in words):
            return True
        for phrase in self._phrases:
            for start in range(len(words) - len(phrase) + 1):
                if tuple(words[start : start + len(phrase)]) == phrase:
                    return True
        return False

    def text(self, text: str) -> str:
        """The text without what looks like a secret. The very same object when nothing was found."""
        if len(text) < 8:
            return text
        text = _without_shapes(text)
        if ("=" in text or ":" in text) and self._may_name_a_secret(text):
            text = self._pairs(text)
        return text

    def _may_name_a_secret(self, text: str) -> bool:
        lower = text.lower()
        for hint in self._pair_hints:  # noqa: SIM110 - each failure comes here several times, and `any` takes twice as long
            if hint in lower:
                return True
        return False

    def _pairs(self, text: str) -> str:
        parts: list[str] = []
        start = at = 0
        while (match := _PAIR.search(text, at)) is not None:
            # Look on right behind the name: its value may itself hold a pair, as in `url=…?token=…`.
            at = match.end("gap")
            if not self.is_secret_name(match["name"]):
                continue
            first, stop = _value(text, match)
            if text[first:stop].lower() in _HARMLESS:
                continue
            parts += (text[start:first], MARK)
            start = at = stop
        if not parts:
            return text
        parts.append(text[start:])
        return "".join(parts)

    def shapes(self, text: str) -> str:
        """The text without what only a credential looks like; pairs of a name and a value are left alone."""
        return _without_shapes(text)

    def source(self, line: str) -> str:
        """A line of source without literal secrets; ``password = read()`` stays as it is."""
        line = _without_shapes(line)
        if ('"' in line or "'" in line) and self._may_name_a_secret(line):
            line = self._literals(line)
        return line

    def _literals(self, line: str) -> str:
        parts: list[str] = []
        start = at = 0
        while (match := _LITERAL.search(line, at)) is not None:
            end = line.find(match["quote"], match.end())
            stop = end if end >= 0 else len(line)
            if self.is_secret_name(match["name"]) and stop > match.end():
                parts += (line[start : match.end()], MARK)
                start = stop
            at = stop if end < 0 else end + len(match["quote"])  # what stands in a literal is no code
        if not parts:
            return line
        parts.append(line[start:])
        return "".join(parts)

    def mapping(self, mapping: Mapping[str, str]) -> dict[str, str]:
        """Headers, cookies or the like: secret names lose their value, the other values their secrets."""
        return {
            self.text(name): MARK if value and self.is_secret_name(name) else self.text(value)
            for name, value in mapping.items()
        }


class Scrubber:
    """
    Secrets that were met under a telling name, to be found again where nothing tells.

    A password in a local ``password`` is also in the message ``Can't log in with hunter2``
    and in a positional argument; whoever learned it takes it out there too.
    """

    #: Shorter ones would blot out innocent text everywhere.
    SHORTEST = 4
    MOST = 200

    __slots__ = ("_known_spellings", "_pattern", "_secrets")

    def __init__(self) -> None:
        self._secrets: set[str] = set()
        self._known_spellings: set[str] | None = None
        self._pattern: re.Pattern[str] | None = None

    def learn(self, secret: str) -> None:
        """Remember a text; too short ones, and those beyond the most that one capture can hold, are not."""
        secret = secret.strip()
        if len(secret) >= self.SHORTEST and secret.lower() not in _HARMLESS and len(self._secrets) < self.MOST:
            self._secrets.add(secret)
            self._pattern = self._known_spellings = None

    def __len__(self) -> int:
        return len(self._secrets)

    def has_short_or_digits(self, length: int) -> bool:
        """Whether a secret can stand in a text of fewer than ``length`` characters, or in a number."""
        return any(len(spelling) < length or spelling.strip("-").isdigit() for spelling in self._spellings())

    def may_be_in(self, text: str) -> bool:
        """Whether any learned secret is somewhere in a text. Much cheaper than :meth:`text` on each part of it."""
        return any(secret in text for secret in self._spellings())

    def text(self, text: str) -> str:
        """The text without any learned secret; the same object when it has none."""
        if not self._secrets or len(text) < self.SHORTEST:
            return text
        if self._pattern is None:
            longest_first = sorted(self._spellings(), key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        return self._pattern.sub(MARK, text)

    def _spellings(self) -> set[str]:
        """Each secret as it stands, and as it stands in a repr or in source."""
        if self._known_spellings is None:
            spellings = set(self._secrets)
            for secret in self._secrets:
                if not secret.isascii() or not secret.isprintable() or "\\" in secret or "'" in secret:
                    spellings.add(repr(secret)[1:-1])
                    spellings.add(secret.encode("unicode_escape").decode("ascii"))
            self._known_spellings = {spelling for spelling in spellings if len(spelling) >= self.SHORTEST}
        return self._known_spellings
