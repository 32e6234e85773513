"""Finds the template line that was being parsed or rendered when an exception was raised."""

from __future__ import annotations

import linecache
import os
from types import TracebackType

from celery_trace.model import Line
from django_bridge.texts import plain

_TEMPLATE_CODE = os.path.join("django", "template", "base.py")


def template_line(error: BaseException) -> Line | None:
    """
    The template line of an exception, or None if no template was involved.

    Django itself records it only with ``debug``. In production the facts are still in the traceback: a node that
    renders and a template that compiles have their token and origin, and a syntax error has its token.
    """
    found: Line | None = None
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_filename.endswith(_TEMPLATE_CODE):
            owner = traceback.tb_frame.f_locals.get("self")
            if code.co_name == "render_annotated":
                # The innermost one wins, such as an include or a block inside the outer template.
                found = _line(getattr(owner, "origin", None), getattr(owner, "token", None)) or found
            elif code.co_name == "compile_nodelist":
                found = _line(getattr(owner, "origin", None), getattr(error, "token", None)) or found
        traceback = traceback.tb_next
    return found


def _line(origin: object, token: object) -> Line | None:
    number = getattr(token, "lineno", None)
    name = getattr(origin, "name", None)
    if not isinstance(number, int) or not isinstance(name, str):
        return None
    template = getattr(origin, "template_name", None)
    code = linecache.getline(name, number).strip() or getattr(token, "contents", "")
    return Line(file=plain(name), line=number, function=plain(template or ""), code=plain(code))
