"""The texts of pages, commands and docs: headings, labels and banned words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
PACKAGES = ("celery_trace", "flower_plugin", "django_bridge")

#: Words that are not used, because the glossary or plain English has a better one.
BANNED = (
    "told", "heard", "goodbye", "worth a word", "allowed are", "is no setting", "is no age", "stands? back",
    "leave word", "heed", "beside", "blame[ds]?", "somebody", "nobody", "for good", "too dear", "the dear", "lay at",
    "speaks", "whose", "stands?", "sign of life", "let go", "nothing is to be", "foretold",
)  # fmt: skip
_BANNED = re.compile(rf"(?<![\w.\-/#])(?:{'|'.join(BANNED)})(?![\w\-])")
#: Common phrases with such a word.
_ALLOWED = re.compile(r"stands? for", re.IGNORECASE)


def banned(text: str) -> list[str]:
    """The banned words of a text, each with its context."""
    text = " ".join(_ALLOWED.sub("", text).split()).lower()
    return [text[max(0, found.start() - 30) : found.end() + 30] for found in _BANNED.finditer(text)]


# -- Texts ------------------------------------------------------------------------------------------------------------


def docs() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def templates() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("templates/**/*.html"))]


def scripts() -> list[Path]:
    return [path for path in sorted((ROOT / "flower_plugin" / "static").rglob("*.js")) if "vendor" not in path.parts]


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def prose(path: Path) -> str:
    """The text of a file that people read: without code and link targets; of a module its strings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        return re.sub(r"\]\([^)]*\)", "]", text)
    return " · ".join(_texts(text)) if path.suffix == ".py" else text


def _texts(source: str) -> Iterator[str]:
    """The strings of a module; of a docstring only the heading."""
    headings: dict[ast.expr, str] = {}
    for node in ast.walk(ast.parse(source)):  # a definition comes before its docstring
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                headings[first.value] = str(first.value.value).strip().partition("\n\n")[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield headings.get(node, node.value)


# -- Headings and labels ----------------------------------------------------------------------------------------------

_HEADING = re.compile(r"<(h[1-6]|legend|caption)\b[^>]*>(.*?)</\1>", re.DOTALL)
_LABEL = re.compile(r"<(th|dt)\b[^>]*>(.*?)</\1>|<(p) class=\"metric-label\">(.*?)</p>", re.DOTALL)
_CELL = re.compile(r"<td\b[^>]*\bdata-label=\"([^\"{]+)\"")
_SUBTITLE = re.compile(r"<span class=\"tr-muted[^\"]*\">.*?</span>", re.DOTALL)
_LISTED = re.compile(r"\{% for [^%]*\blabel\b.*?%\}", re.DOTALL)


def headings(path: Path) -> set[str]:
    """The headings of a page; each contains a term."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return set(re.findall(r"\btitle=\"([^\"]+)\"", text)) if "pages" in path.parts else set()
    found = {" ".join(_parts(heading[2])) for heading in _HEADING.finditer(_SUBTITLE.sub("", text))}
    return found - {""}


def labels(path: Path) -> set[str]:
    """The labels of columns and facts; each is a term."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return set(re.findall(r"\b(?:TableColumn|fact)\(\"([^\"]+)\"", text)) if "cli" in path.parts else set()
    found = {part for one in _LABEL.finditer(_SUBTITLE.sub("", text)) for part in _parts(one[2] or one[4] or "")}
    listed = {word for loop in _LISTED.findall(text) for word in re.findall(r"\"([A-Z][^\"]*)\"", loop)}
    return found | listed | set(_CELL.findall(text))


def _parts(markup: str) -> Iterator[str]:
    """The texts of some markup, split at its conditions."""
    for part in re.split(r"\{%.*?%\}", markup, flags=re.DOTALL):
        text = " ".join(re.sub(r"<[^>]*>|\{\{.*?\}\}", " ", part, flags=re.DOTALL).split()).strip(" ,.:–")
        if re.search(r"[a-zA-Z]{2}", text):
            yield text


def terms() -> dict[str, str]:
    """The terms of the glossary in lower case, each with its meaning."""
    found = {}
    for names, meaning in re.findall(r"^\| ([^|]+) \| ([^|]+) \|", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE):
        if names.strip() not in {"Term", "Label", "Word"} and not names.startswith("---"):
            for name in names.replace("`", "").split(", "):
                found[name.strip().lower()] = meaning.strip()
    return found


def unknown(path: Path, known: dict[str, str]) -> list[str]:
    """The headings without a term, and the labels that are not terms."""
    unknown_labels = [label for label in labels(path) if not _is_term(label, known)]
    return sorted(unknown_labels + [heading for heading in headings(path) if not _has_term(heading, known)])


def _is_term(label: str, known: dict[str, str]) -> bool:
    whole, *parts = label.lower(), *label.lower().split(", ")
    return any(all(not known.keys().isdisjoint(_singular(part)) for part in some) for some in ([whole], parts))


def _has_term(heading: str, known: dict[str, str]) -> bool:
    words = re.findall(r"[\w-]+", heading.lower())
    phrases = (" ".join(words[at : at + count]) for count in range(1, 4) for at in range(len(words)))
    return any(_is_term(phrase, known) for phrase in phrases)


def _singular(text: str) -> set[str]:
    """The text, and the singulars that it may be the plural of."""
    return {text, text.removesuffix("s"), text.removesuffix("es"), re.sub("ies$", "y", text)}


# -- Files still to do ------------------------------------------------------------------------------------------------
