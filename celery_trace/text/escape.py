r"""
Escapes characters that are invisible or change how their neighbours are shown, as in Python: ``\x1b``.

Names, messages and values come from tasks. A control character controls a terminal; a bidirectional or zero-width one
makes a text look like another one; tag characters are an invisible text. Pages, terminals, alerts and files show the
escape instead. The page's script uses the same table (``tests/support/format_cases.json``).
"""

from __future__ import annotations

import re

#: First and last of each range: controls, surrogates, line and paragraph separators, format characters, and the
#: letters that Unicode calls ignorable. The variation selectors U+FE00 to U+FE0F stay: they select an emoji's style.
HIDDEN_RANGES = (
    (0x0000, 0x001F), (0x007F, 0x009F), (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160),
    (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xD800, 0xDFFF), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip


def _pattern(kept: str) -> re.Pattern[str]:
    ranges = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in HIDDEN_RANGES)
    return re.compile(f"(?![{kept}])[{ranges}]" if kept else f"[{ranges}]")


_HIDDEN = _pattern("")
_HIDDEN_IN_LINES = _pattern(r"\n\t")


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def escaped(text: object) -> str:
    """A text on one line; line feeds and tabs become escapes too."""
    whole = str(text)
    # Most are plain, which is a hundred times faster to check.
    return whole if whole.isascii() and whole.isprintable() else _HIDDEN.sub(_escape, whole)


def escaped_lines(text: object) -> str:
    """A text that may have several lines; line feeds and tabs stay."""
    return _HIDDEN_IN_LINES.sub(_escape, str(text))
