"""Every address that a monitor serves, from its own list of rules."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

#: A group of words, an optional piece, or anything else that stands for many words.
_PIECES = re.compile(r"\((?P<words>[\w|\\.-]*\w)\)|(?P<maybe>/\?|\(\?:/\.\*\)\?)|(?P<any>\([^()]*\)|\.\*)")


def _choices(piece: re.Match[str]) -> list[str]:
    if piece["words"]:
        return piece["words"].split("|")
    if piece["maybe"]:
        return ["", "/"]
    return ["x"]


def addresses(pattern: str) -> list[str]:
    """Addresses that a rule's pattern matches: each alternative, with ``x`` where any word may stand."""
    pattern = pattern.removesuffix("$")
    parts, ends = [], 0
    for piece in _PIECES.finditer(pattern):
        parts += [[pattern[ends : piece.start()]], _choices(piece)]
        ends = piece.end()
    parts.append([pattern[ends:]])
    found = ["".join(words).replace("\\", "") for words in itertools.product(*parts)]
    return [address if address.startswith("/") else f"/{address}" for address in found]


def every_address(application: Any) -> list[str]:
    """The addresses of all rules of the application, ours and Flower's, each once."""

    def walk(rules: Any) -> Iterator[str]:
        for rule in rules:
            if hasattr(rule.target, "rules"):
                yield from walk(rule.target.rules)
                continue
            for address in addresses(rule.matcher.regex.pattern):
                assert rule.matcher.regex.match(address), f"{address} is no address of {rule.matcher.regex.pattern}"
                yield address

    return list(dict.fromkeys(walk(application.default_router.rules)))
