"""
Finds values with their names in a text: one small function for each notation.

Each returns the spans of the values with secret names. None changes the text, so their order does not matter, and
overlapping spans are joined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from celery_trace.redaction.spans import Span
from celery_trace.redaction.values import end_of_bare, end_of_brackets, end_of_quoted, is_harmless

IsSecret = Callable[[str], bool]


class Grammar(NamedTuple):
    """
    A notation of names and values.

    Every text in this notation contains one of the literals ``needs``. With ``by_name`` it finds nothing in a text
    without a secret name.
    """

    needs: tuple[str, ...]
    find: Callable[[str, IsSecret], Iterator[Span]]
    by_name: bool = True


# --- name=value, "name": "value"

#: A name and what separates it from its value, as in query strings, headers, DSNs, JSON, YAML and reprs. A name is
#: matched whole, and the value is searched only after a secret name, so the time is linear in the text.
_PAIR = re.compile(
    r"""(?<![\w.\-])(?P<name>[\w.\-\u200b-\u200d]++)
        (?P<gap>(?:\\*["']|%2[27]|&quot;|&\#\w{2,4};)?\s?\]?\s{0,64}+(?:=>|->|:=|::(?=\s)|={1,3}|:(?!:)|%3[AaDd])\s{0,64}+)""",
    re.VERBOSE,
)
#: What may come between that and the value itself: ``SecretStr(``, and a quote.
_OPENING = re.compile(
    r"""(?:%2[27]|&quot;|&\#\w{2,4};)?
        (?:(?:[A-Za-z]\w{0,40}\.)?[A-Za-z]\w{0,40}\((?=["'\[({]|[bru]{1,2}["']))?
        (?:[bru]{0,2}(?P<quote>\\*["']))?""",
    re.VERBOSE,
)
#: A place in a file is not a pair: ``shop/tokens.py:42``.
_FILES = (".py", ".pyx", ".html", ".js", ".ts", ".c", ".so")
#: After these names comes `scheme credentials`, or a scheme with parameters.
_AUTHORIZATION = re.compile(r"authori[sz]ation", re.IGNORECASE)
_CREDENTIALS = re.compile(r"""[A-Za-z][\w-]*[ \t]+(?:[^\s,"'<>]|"[^"\n]*")+(?:,[ \t]*(?:[^\s,"'<>]|"[^"\n]*")+)*""")
_COOKIE = re.compile(r"cookie", re.IGNORECASE)
_COOKIES = re.compile(r"""[^\s;"'<>]+(?:;[ \t]*[^\s;"'<>]+)*""")
#: A passphrase may have blanks, up to the end of its line.
_TYPED = re.compile(r"pass|pwd", re.IGNORECASE)
_TO_END_OF_LINE = re.compile(r"""[^\n\r"'=:;,{}()\[\]]*(?=[\n\r]|\Z)""")
#: In YAML, the lines below a name: a text, a list or a mapping.
_OPENS_A_BLOCK = re.compile(r"[ \t]*(?:[|>][+-]?\d?[ \t]*)?\n")
_LINE = re.compile(r"[ \t]*([^\n]*)(?:\n|\Z)")


def pairs(text: str, is_secret: IsSecret) -> Iterator[Span]:
    """``password=X``, ``"token": "X"``, ``api_keys: ['X', 'Y']``, ``Authorization: Basic X``, ``Cookie: a=X; b=Y``."""
    at = 0
    while (match := _PAIR.search(text, at)) is not None:
        # Continue right after the name: its value may itself hold a pair, as in `url=…?token=…`.
        at = match.end("gap")
        if match["name"].endswith(_FILES) or not is_secret(match["name"]):
            continue
        opening = _OPENING.match(text, at)
        first, quote = (opening.end(), opening["quote"]) if opening else (at, None)
        stop = end_of_quoted(text, first, quote) if quote else _end_of_open(text, first, match)
        if not is_harmless(text, first, stop):
            yield first, stop
            at = max(at, stop)


def _end_of_open(text: str, first: int, match: re.Match[str]) -> int:
    if first >= len(text):
        return first
    if text[first] in "([{":
        return end_of_brackets(text, first)
    name = match["name"]
    for names, values in ((_AUTHORIZATION, _CREDENTIALS), (_COOKIE, _COOKIES)):
        if names.search(name):
            found = values.match(text, first)
            if found is not None:
                return found.end()
    block = _end_of_block(text, match)
    if block > first:
        return block
    stop = end_of_bare(text, first)
    is_alone = _TYPED.search(name) and "\n" not in match["gap"] and _begins_its_line(text, match.start())
    rest = _TO_END_OF_LINE.match(text, stop) if is_alone and text.startswith((" ", "\t"), stop) else None
    return rest.end() if rest else stop


def _end_of_block(text: str, match: re.Match[str]) -> int:
    """The end of the lines below a name that are indented more or are a list; 0 if there are none."""
    opening = _OPENS_A_BLOCK.match(text, match.end("name") + 1)
    if opening is None or text[match.end("name")] != ":":
        return 0
    line = text.rfind("\n", 0, match.start()) + 1
    depth = match.start() - line
    if text[line : match.start()].strip(" \t-"):
        return 0
    stop = 0
    at = opening.end()
    while at < len(text):
        found = _LINE.match(text, at)
        if found is None or not (found.start(1) - at > depth or found[1].startswith("- ") or not found[1]):
            break
        if found[1]:
            stop = found.end(1)
        at = found.end()
    return stop


def _begins_its_line(text: str, at: int) -> bool:
    line = text.rfind("\n", max(0, at - 200), at) + 1
    return not text[line:at].strip(" \t-")


# --- a name and a value side by side

#: ``("X-Api-Key", "X")``, alone between its brackets: in a longer row the second need not be the value of the first.
_TWO = re.compile(
    r"""[(\[]\s*[bru]{0,2}(?P<q>\\*["'])(?P<name>[\w.\-]{1,200})(?P=q)\s*,\s*[bru]{0,2}(?P<quote>\\*["'])"""
)
#: ``--password X``, ``'--password', 'X'``; the value is not another option.
_OPTION = re.compile(
    r"""(?<![\w\-])--?(?P<name>[A-Za-z][\w\-]*+)
        (?:[ \t]++|(?P<q>\\*["'])[\s,]{1,20}[bru]{0,2}(?=["'\\]))
        (?P<quote>\\*["'])?(?!-)""",
    re.VERBOSE,
)


def rows_of_two(text: str, is_secret: IsSecret) -> Iterator[Span]:
    """Headers and the like as tuples of two."""
    for match in _TWO.finditer(text):
        if is_secret(match["name"]):
            first, quote = match.end(), match["quote"]
            stop = end_of_quoted(text, first, quote)
            if text[stop + len(quote) : stop + len(quote) + 20].lstrip(" \n,")[:1] in (")", "]", ""):
                yield first, stop


def options(text: str, is_secret: IsSecret) -> Iterator[Span]:
    """A command line, as one text or as the repr of a list."""
    for match in _OPTION.finditer(text):
        if not is_secret(match["name"]):
            continue
        first, quote = match.end(), match["quote"]
        yield first, end_of_quoted(text, first, quote) if quote else end_of_bare(text, first)


#: ``-u bob:X`` of curl and the like; ``docker run -u 1000:1000`` names a group.
_LOGIN = re.compile(
    r"""(?<![\w\-])(?:-u|-U|--user|--proxy-user)(?:[ \t=]+|["'][\s,]{1,20}[bru]{0,2})["']?"""
    r"""(?!\d+:\d+(?!\S))[^\s:"'=]{0,128}:(?=[^\s"'])"""
)
#: Short options for passwords, by program.
_SHORT = (
    ("mysql", re.compile(r"""(?<=\s-p)(?=[^\s"'])""")),
    ("sshpass", re.compile(r"""sshpass\s+-p\s*["']?(?=[^\s"'])""")),
    ("redis-cli", re.compile(r"""(?<=\s-a)\s+["']?(?=[^\s"'-])""")),
    ("docker login", re.compile(r"""(?<=\s-p)\s+["']?(?=[^\s"'-])""")),
)


def logins(text: str, _: IsSecret) -> Iterator[Span]:
    """Passwords in options of well-known programs, which have no name."""
    for match in _LOGIN.finditer(text):
        yield match.end(), _end_of_word(text, match.end())
    for program, option in _SHORT:
        if program in text:
            for match in option.finditer(text):
                yield match.end(), _end_of_word(text, match.end())


_WORD = re.compile(r"""(?:[^\s"']|(?<=\w)["'](?=\w))+""")


def _end_of_word(text: str, first: int) -> int:
    match = _WORD.match(text, first)
    return match.end() if match else first


_QUOTED = re.compile(r"""(?i:\b(?:pass(?:word|wd|phrase|code)?|pwd))[ ](?P<quote>\\*["'])(?=[^"'])""")


def quoted(text: str, _: IsSecret) -> Iterator[Span]:
    """``invalid password 'X'``. Not so for tokens, as parsers say ``unexpected token ')'``."""
    for match in _QUOTED.finditer(text):
        yield match.end(), end_of_quoted(text, match.end(), match["quote"])


#: Statements and files without a sign between the name of a secret and the secret.
_SAID = (
    (" password ", re.compile(r"\b(?:login|user|account)\s+\S{1,200}\s+password\s+(?=\S)")),
    ("BY ", re.compile(r"""(?i:\bIDENTIFIED\s+(?:WITH\s+\S{1,64}\s+)?BY\s+(?:PASSWORD\s+)?)["']?(?=[^\s"'])""")),
)


def phrases(text: str, _: IsSecret) -> Iterator[Span]:
    """``IDENTIFIED BY 'X'``, and ``login bob password X`` of ``.netrc``."""
    for word, pattern in _SAID:
        if word in text:
            for match in pattern.finditer(text):
                yield match.end(), _end_of_word(text, match.end())


# --- markup

_ELEMENT = re.compile(r"(?:<|&lt;)(?:[\w.\-]{1,64}:)?(?P<name>[A-Za-z_][\w.\-]{0,128})(?:\s[^<>]{0,500})?(?:>|&gt;)")
#: ``<input name="password" value="X">``, ``<add key="Password" value="X"/>``: the name is in an attribute.
_TAG = re.compile(r"""<[A-Za-z][^<>]{0,2000}>""")
_NAMED = re.compile(r"""\s(?:name|key|id)\s*=\s*["']?(?P<name>[\w.\-]+)""", re.IGNORECASE)
_VALUED = re.compile(r"""\s(?:value|content)\s*=\s*(?P<quote>["'])""", re.IGNORECASE)


def elements(text: str, is_secret: IsSecret) -> Iterator[Span]:
    """``<password>X</password>``, escaped or not."""
    for match in _ELEMENT.finditer(text):
        if match.group().endswith(("/>", "/&gt;")) or not is_secret(match["name"]):
            continue
        first = match.end()
        end = text.find("</" if text[match.start()] == "<" else "&lt;/", first)
        stop = end if end >= 0 else len(text)
        if text[first:stop].strip():
            yield first, stop


def attributes(text: str, is_secret: IsSecret) -> Iterator[Span]:
    """Form fields and settings in XML, with name and value in two attributes."""
    for tag in _TAG.finditer(text):
        named = _NAMED.search(text, tag.start(), tag.end())
        valued = _VALUED.search(text, tag.start(), tag.end())
        if named and valued and is_secret(named["name"]):
            yield valued.end(), end_of_quoted(text, valued.end(), valued["quote"])


# --- databases

_END_OF_KEY = re.compile(
    r"\)(?= already exists| is not present| is still referenced| conflicts with|\.?[ \t]*(?:\n|\Z))"
)
_NAME = re.compile(r"\w+")
_IN_ROW = re.compile(r"""[()\[\]{}]|["']|,""")
_INSERT = re.compile(
    r"(?i:\b(?:INSERT|REPLACE)\b[^()'\"]{0,200}?\bINTO\b)\s+[^\s(]{1,200}\s*\(([^()]{1,4000})\)[^'\"]{0,200}?\b(?i:VALUES)\b\s*"
)
_PLACEHOLDER = re.compile(r"(?:\?|%s|\$\d{1,4}|:\d{1,4}|%\(\d{1,4}\)s)\Z")
_PARAMETERS = "[parameters: "
_SET = re.compile(r"(\w+)[\"`\]]?\s*(?:=|<>|!=|(?i:LIKE|ILIKE))\s*(?:\?|%s|\$\d{1,4}|:\d{1,4})(?!\w)")
_HOLDER = re.compile(r"(?<![\w%])(?:\?|%s|\$\d{1,4}|:\d{1,4})(?!\w)")


def keys_of_postgres(text: str, is_secret: IsSecret) -> Iterator[Span]:
    """``Key (api_token)=(X) already exists.``, also with several columns."""
    at = text.find("Key (")
    while at >= 0:
        between = text.find(")=(", at)
        if between < 0:
            return
        names, first = text[at + 5 : between], between + 3
        line = text.find("\n", first)
        end = _END_OF_KEY.search(text, first, line if line >= 0 else len(text))
        stop = end.start() if end else line if line >= 0 else len(text)
        secret = [any(is_secret(word) for word in _NAME.findall(name)) for name in names.split(", ")]
        if any(secret):
            yield from _of_secret_columns(_parts(text, first, stop), secret, (first, stop))
        at = text.find("Key (", stop)


def entries_of_mysql(text: str, is_secret: IsSecret) -> Iterator[Span]:
    """``Duplicate entry 'X' for key 'users.api_token'``."""
    opening = "Duplicate entry '"
    at = text.find(opening)
    while at >= 0:
        first = at + len(opening)
        stop = text.find("' for key '", first)
        if stop < 0:
            return
        name = text[stop + 11 : text.find("'", stop + 11)]
        if is_secret(name):
            yield first, stop
        at = text.find(opening, stop)


def failing_rows(text: str, _: IsSecret) -> Iterator[Span]:
    """``Failing row contains (1, ada, X).``: PostgreSQL names no columns, so the whole row is hidden."""
    opening = "Failing row contains ("
    at = text.find(opening)
    while at >= 0:
        first = at + len(opening)
        line = text.find("\n", first)
        stop = text.rfind(")", first, line if line >= 0 else len(text))
        stop = stop if stop >= 0 else line if line >= 0 else len(text)
        yield first, stop
        at = text.find(opening, stop)


def statements(text: str, is_secret: IsSecret) -> Iterator[Span]:
    """``INSERT INTO users (name, password) VALUES ('ada', 'X')``, and the parameters that SQLAlchemy adds."""
    holders: list[bool] = []
    at = 0
    for match in _INSERT.finditer(text):
        if match.start() < at:
            continue  # inside the values of the previous one
        secret = [any(is_secret(word) for word in _NAME.findall(name)) for name in match[1].split(",")]
        at = match.end()
        while any(secret) and text[at : at + 1] == "(":
            closing = end_of_brackets(text, at)
            row = _parts(text, at + 1, closing - 1 if text[closing - 1 : closing] == ")" else closing)
            if row and all(_PLACEHOLDER.match(text[start:stop]) for start, stop in row):
                holders = secret
            else:
                yield from _of_secret_columns(row, secret, (at + 1, closing))
            while text[closing : closing + 1] in (",", " ", "\n"):
                closing += 1
            at = closing
    at = text.find(_PARAMETERS)
    if at >= 0:
        yield from _parameters(text, at, holders or _holders(text[:at], is_secret))


def _holders(statement: str, is_secret: IsSecret) -> list[bool]:
    """For each placeholder in a statement, whether a secret name comes before it."""
    secret_ends = {match.end() for match in _SET.finditer(statement) if is_secret(match[1])}
    return [match.end() in secret_ends for match in _HOLDER.finditer(statement)] if secret_ends else []


def _parameters(text: str, at: int, secret: Sequence[bool]) -> Iterator[Span]:
    opening = at + len(_PARAMETERS)
    if not any(secret) or text[opening : opening + 1] not in ("(", "["):
        return
    closing = end_of_brackets(text, opening)
    whole = (opening + 1, max(opening + 1, closing - 1))
    row = _parts(text, *whole)
    if all(text[start : start + 1] == "(" for start, _ in row):
        for start, stop in row:
            yield from _of_secret_columns(_parts(text, start + 1, stop - 1), secret, (start + 1, stop - 1))
    else:
        yield from _of_secret_columns(row, secret, whole)


def _parts(text: str, first: int, stop: int) -> list[Span]:
    """The parts of a row between its commas outside of quotes and brackets, stripped."""
    parts: list[Span] = []
    at = start = first
    while (match := _IN_ROW.search(text, at, stop)) is not None:
        found = match.group()
        at = match.end()
        if found == ",":
            parts.append((start, match.start()))
            start = at
        elif found in "\"'":
            at = min(stop, end_of_quoted(text, at, found) + 1)
        elif found in "([{":
            at = min(stop, end_of_brackets(text, match.start()))
    parts.append((start, stop))
    return [span for span in (_trimmed(text, *part) for part in parts) if span[0] < span[1]]


def _trimmed(text: str, start: int, stop: int) -> Span:
    part = text[start:stop]
    return start + len(part) - len(part.lstrip()), stop - (len(part) - len(part.rstrip()))


def _of_secret_columns(row: list[Span], secret: Sequence[bool], whole: Span) -> Iterator[Span]:
    """The values of the secret columns; the whole row if it has another number of values than columns."""
    if len(row) != len(secret):
        yield whole
        return
    yield from (span for span, hidden in zip(row, secret, strict=True) if hidden)


GRAMMARS: tuple[Grammar, ...] = (
    Grammar(("=", ":", "->", "%3"), pairs),
    Grammar((" -", "--", "'-", '"-'), options),
    Grammar(("('", '("', "['", '["', "b'", 'b"', "\\'", '\\"'), rows_of_two),
    Grammar((" '", ' "', " \\"), quoted),
    Grammar((" password ", "IDENTIFIED "), phrases, by_name=False),
    Grammar(("</", "&lt;/"), elements),
    Grammar(("value=", "content=", "VALUE="), attributes),
    Grammar(("Key (",), keys_of_postgres),
    Grammar(("Duplicate entry '",), entries_of_mysql),
    Grammar(("INTO ", "into ", _PARAMETERS), statements),
    Grammar((" -u", "'-u", '"-u', " -U", "--user", "--proxy-user", " -p", " -a"), logins, by_name=False),
    Grammar(("Failing row contains (",), failing_rows, by_name=False),
)
