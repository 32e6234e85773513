"""Templates: ours, then Flower's with our parts inserted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tornado.template import BaseLoader, Template

from celery_trace import intervals
from celery_trace.text import format, roles
from celery_trace.text.escape import escaped_lines
from flower_plugin.rendering import badges, colours, markup
from flower_plugin.rendering.source import one_line

FOLDER = Path(__file__).parent.parent / "templates"

#: Names that all our templates may use, in addition to Tornado's.
HELPERS = {
    "show": markup.show,
    "clip": format.clip,
    "visible": escaped_lines,
    "size": markup.size,
    "size_text": format.size,
    "duration": format.duration,
    "percent": format.percent,
    "number": format.count,
    "plural": format.plural,
    "moment": partial(format.moment, utc=True),
    "data_block": markup.data_block,
    "badges": badges,
    "one_line": one_line,
    "roles": roles,
    "dot": colours.dot,
    "range_of": range,
    "intervals": intervals,
}


class MonitorLoader(BaseLoader):  # type: ignore[misc]
    """
    Loads templates by name from our folder, then from Flower's.

    Names come from code and templates, never from a request.

    Args:
        flower_folder: The folder of Flower's templates.
        splice: Inserts our parts into one of Flower's templates: name and text to the new text.
        names: Additional names that all templates may use.
    """

    def __init__(self, flower_folder: str, splice: Callable[[str, str], str], names: Mapping[str, object]) -> None:
        super().__init__(namespace={**HELPERS, **names})
        self._flower = Path(flower_folder)
        self._splice = splice

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:  # noqa: ARG002
        """Names are absolute: ``trace/x.html`` is ours, all others are Flower's."""
        return name

    def _create_template(self, name: str) -> Template:
        ours = FOLDER / name
        if ours.is_file():
            return Template(ours.read_text(encoding="utf-8"), name=name, loader=self, whitespace="single")
        text = (self._flower / name).read_text(encoding="utf-8")
        return Template(self._splice(name, text), name=name, loader=self)
