"""Texts and values that somebody may send to do harm, for every place that takes a text from outside."""

from __future__ import annotations

from typing import Any

#: What each script does where one runs: a page on which ``window.pwned`` is set ran it.
_SCRIPT = "window.pwned=1"

_MARKUP = (
    f"<script>{_SCRIPT}</script>",
    f"<img src=x onerror={_SCRIPT}>",
    f"<img src=x onerror={_SCRIPT}>&amp;",
    f"<svg onload={_SCRIPT}>",
    f"<svg><animate onbegin={_SCRIPT} attributeName=x dur=1s>",
    f"<body onload={_SCRIPT}>",
    f"<details open ontoggle={_SCRIPT}>x</details>",
    f"<input autofocus onfocus={_SCRIPT}>",
    f"<iframe srcdoc='<script>parent.{_SCRIPT}</script>'></iframe>",
    f"<iframe src='javascript:parent.{_SCRIPT}'></iframe>",
    f"<object data='javascript:{_SCRIPT}'></object>",
    f"<a href='javascript:{_SCRIPT}'>x</a>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={_SCRIPT}>",
    f"<template><script>{_SCRIPT}</script></template>",
    f"<meta http-equiv=refresh content='0;javascript:{_SCRIPT}'>",
    f"<base href='javascript:{_SCRIPT}//'>",
    f"<style>@import 'javascript:{_SCRIPT}'</style>",
    f"<link rel=stylesheet href='javascript:{_SCRIPT}'>",
    f"<form action='javascript:{_SCRIPT}'><button autofocus>",
    f"<video><source onerror={_SCRIPT}></video>",
)
#: Each piece of markup is tried out of every place that a template or a script may put a text into.
_AROUND = ("{}", '">{}', "'>{}", "</script>{}", "</title>{}", "</textarea>{}", "-->{}", "&lt;{}&amp;{}")
_SYNTAX = (
    "{{ 7 * 7 }}", "{% raw handler %}", "{% import os %}", "${7*7}", "#{7*7}", "%(x)s", "%s%n", "{0.__class__}",
    f'";{_SCRIPT};"', f"';{_SCRIPT};'", f"`;{_SCRIPT};`", f"</script><script>{_SCRIPT}//", f"javascript:{_SCRIPT}",
    f'" onmouseover="{_SCRIPT}', f"' onfocus='{_SCRIPT}' autofocus='", "-- ; DROP TABLE runs", "' OR '1'='1",
)  # fmt: skip
_PATHS = (
    ".", "..", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "//host/share", "\\\\host\\share",
    "../../worker/shutdown/celery@x", "a/b/c", "?x=1", "#fragment", "a?b=c&d=e#f", "%00", "%", "%zz", "file:///etc",
    "http://[::1", "con", "a" * 399, "x:y@z", "celery@../../x",
)  # fmt: skip
_CHARACTERS = (
    "", " ", "\t", "\n", "\r\n", "a\x00b", "a\x1b[31mred", "\x7f", "\x85", "\u2028", "\u2029", "\u202egnp.exe",
    "\u2066x\u2069", "\u200b", "\ufeff", "\ud800", "a\udfffb", "\U0010ffff", "e\u0301" * 50, "😀👩‍👩‍👧", "ﷺ" * 20,
    "\ufffe", "\u0000", "İıſK", "𝕱𝖗𝖆𝖐", "１２３", "\xad",
)  # fmt: skip
_SIZES = ("x" * 401, "<" * 20_000, "x" * 1_000_000, "'" * 5_000, "(" * 5_000, "{" * 5_000, "\\" * 5_000)
_NUMBERS = (
    "NaN",
    "Infinity",
    "-1",
    "1e999",
    "0x10",
    "1_000",
    "None",
    "null",
    "true",
    "[]",
    "{}",
    "{[1]: 2}",
    "-" * 9_000,
)
_PYTHON = (
    "{'a': 1}",
    "{1: {2: {3: 4}}}",
    "{'password': 'opensesame'}",
    "(1,",
    "['<b>']",
    "{**{}}",
    "lambda: 1",
    "f'{x}'",
)

#: More than two hundred texts.
TEXTS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *(around.format(*[markup] * around.count("{}")) for markup in _MARKUP for around in _AROUND),
            *_SYNTAX, *_PATHS, *_CHARACTERS, *_SIZES, *_NUMBERS, *_PYTHON,
        )
    )
)  # fmt: skip


def nested(depth: int, kind: str = "list") -> Any:
    """A container within a container, so deep that no recursion comes to its end."""
    value: Any = f"<img src=x onerror={_SCRIPT}>"
    for _ in range(depth):
        value = [value] if kind == "list" else {"x": value}
    return value


def odd_values() -> list[Any]:
    """What is no text and no sensible number."""
    return [
        float("nan"), float("inf"), float("-inf"), 10**400, -(10**400), 2**53, -1, -0.5, 1e308, 5e-324, True, False,
        None, b"<b>bytes</b>", [], {}, [None] * 1000, [TEXTS[1]], {TEXTS[1]: TEXTS[1]}, [TEXTS[1], 1, 2.0],
        [10**400] * 3, [float("nan")] * 3, {"__class__": 1}, nested(10_000), nested(10_000, "mapping"), object(),
        complex(1, 2), {1: {2: 3}}, set(), [[]],
    ]  # fmt: skip
