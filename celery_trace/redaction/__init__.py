"""
Removes secrets before anything leaves the process: by name, by shape, and by value once found.

- **names** (:mod:`~celery_trace.redaction.names`): ``password``, ``apiKey``, ``DB_PASS`` hide their value;
- **shapes** (:mod:`~celery_trace.redaction.shapes`): a table of formats that only credentials have, anywhere in a text;
- **grammars** (:mod:`~celery_trace.redaction.grammars`): how texts write names and values;
- **source** (:mod:`~celery_trace.redaction.source`): which literals in code are secret;
- **scrubber**: secrets that were found by name are removed from every other text of the same capture.

To add a vendor, add a row to ``SHAPES``; to add a name, add a word to a list of ``names``; to add a notation, add
a function to ``GRAMMARS``. The tests fail for a row or a function without an example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote

from celery_trace.redaction.grammars import GRAMMARS, Grammar
from celery_trace.redaction.names import SecretNames
from celery_trace.redaction.pem import body_lines
from celery_trace.redaction.scrubber import Scrubber
from celery_trace.redaction.shapes import SHAPES, Shape, cards_in, is_card_number
from celery_trace.redaction.sieve import Sieve
from celery_trace.redaction.source import literals
from celery_trace.redaction.spans import MARK, Span, without

__all__ = ["MARK", "Redactor", "Scrubber", "is_card_number"]

#: Characters of the shortest text that is searched.
_SHORTEST = 8
#: The cache of harmless texts: characters of each, and their number. The same code fails repeatedly, mostly with the
#: same texts.
_REPEATED = 64
_REMEMBERED = 2048

_SIEVE: Sieve[Shape | Grammar] = Sieve(
    [*((shape, shape.starts) for shape in SHAPES), *((grammar, grammar.needs) for grammar in GRAMMARS)]
)


class Redactor:
    """
    Decides what is secret. Thread-safe: its lists never change, and its caches only hold results.

    Args:
        names: Further names, whole or as consecutive words of a longer one; the built-in ones always apply.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = SecretNames(names)
        #: Whether a variable, key, attribute, header or cookie of that name holds a secret.
        self.is_secret_name: Callable[[str], bool] = self._names.is_secret
        #: The cache, for hot loops that read it before they call :attr:`is_secret_name`.
        self.known = self._names.known
        self._innocent: set[str] = set()

    def text(self, text: str) -> str:
        """The text without what looks like a secret; the same object if nothing was found."""
        if len(text) < _SHORTEST or text in self._innocent:
            return text
        spans = self._spans(text)
        if spans:
            return without(text, spans)
        if len(text) <= _REPEATED:
            if len(self._innocent) >= _REMEMBERED:
                self._innocent.clear()
            self._innocent.add(text)
        return text

    def secrets_in(self, text: str) -> list[str]:
        """
        The secrets that :meth:`text` removes, for the scrubber: those that are long enough and not plain words.

        A password in a URL is returned escaped and unescaped.
        """
        if len(text) < _SHORTEST:
            return []
        found = {text[start:stop].strip() for start, stop in self._spans(text)}
        found |= {unquote(secret) for secret in found if "%" in secret}
        return [secret for secret in found if len(secret) >= _SHORTEST and not secret.isalpha()]

    def _spans(self, text: str) -> list[Span]:
        spans: list[Span] = []
        named: bool | None = None
        for row in _SIEVE.rows(text):
            if isinstance(row, Shape):
                spans += row.find(text)
                continue
            if row.by_name:
                if named is None:
                    named = self._names.may_be_in(text)
                if not named:
                    continue
            spans += row.find(text, self.is_secret_name)
        if len(text) > 12:
            spans += cards_in(text)
            spans += body_lines(text)
        return spans

    def source(self, text: str) -> str:
        """
        Lines of source without literal secrets, in the same number; ``password = read()`` is unchanged.

        Args:
            text: One line or several, possibly an excerpt.
        """
        spans = [span for row in _SIEVE.rows(text) if isinstance(row, Shape) for span in row.find(text)]
        spans += cards_in(text)
        spans += body_lines(text)
        if '"' in text or "'" in text:
            spans += literals(text, self.is_secret_name)
        return without(text, spans, keep_lines=True) if spans else text

    def traceback(self, text: str) -> str:
        """A formatted traceback: a message, and lines of source."""
        return self.source(self.text(text))

    def mapping(self, mapping: Mapping[str, str]) -> dict[str, str]:
        """Headers, cookies or the like: values of secret names are hidden, the others redacted."""
        return {
            self.text(name): MARK if value and self.is_secret_name(name) else self.text(value)
            for name, value in mapping.items()
        }
