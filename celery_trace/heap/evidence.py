"""
Redacts records with lines of source: every window, run and profile passes through here before it leaves its process.

A path of holders names modules, classes, attributes and variables, which are code. A key of a dictionary is data: it is
in brackets (``['eu-west']: list[3]``), so that it can be recognised and hidden from roles that may not see values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec.structs import replace

from celery_trace.model import HeapProfile, Holder, Line, Run, Site, TimeProfile, TypeCount, Window
from celery_trace.redaction import Redactor

#: Characters of a dictionary's key that are kept; as many are searched for secrets before it is cut.
_LONGEST_KEY = 60
_SEARCHED = 2048
_KEY = re.compile(r"\[(?P<key>['\"].*)\](?=: )", re.DOTALL)
#: How records of 0.1.0 began a step, for keys and attributes alike.
_NAME = re.compile(r"(?P<name>.*)(?=: )", re.DOTALL)
#: An attribute, several names of a closure, a place in a list.
_PLACE = re.compile(r"\.?[^\W\d]\w*(?:, [^\W\d]\w*)*|\[\d+\]")


def key_step(key: str) -> str:
    """A dictionary's key as the step of a path to the next holder. Not redacted yet."""
    return f"[{key[:_SEARCHED]!r}]"


#: The records with lines of source, which may contain secrets.
WithSource = Window | Run | HeapProfile | TimeProfile


def without_secrets(record: WithSource, redactor: Redactor) -> WithSource:
    """A record as it may be written; the same object if there was nothing to redact."""
    if isinstance(record, HeapProfile | TimeProfile):
        return replace(
            record, name=redactor.text(record.name), frames=[_line(line, redactor) for line in record.frames]
        )
    if isinstance(record, Run):
        return (
            replace(record, name=redactor.text(record.name), top=_sites(record.top, redactor)) if record.top else record
        )
    return replace(
        record,
        name=redactor.text(record.name),
        sites=_sites(record.sites, redactor),
        types=[TypeCount(redactor.text(row.type), row.count, row.bytes) for row in record.types],
        retained_by=[_step(step, redactor) for step in record.retained_by],
        bounded=redactor.text(record.bounded),
        note=redactor.text(record.note),
        holder=_holder(record.holder, redactor) if record.holder is not None else None,
    )


def _holder(holder: Holder, redactor: Redactor) -> Holder:
    return replace(holder, path=[_step(step, redactor) for step in holder.path], bound=redactor.text(holder.bound))


def _sites(sites: Sequence[Site], redactor: Redactor) -> list[Site]:
    return [
        replace(
            site,
            code=redactor.source(site.code),
            traceback=[_line(line, redactor) for line in site.traceback],
        )
        for site in sites
    ]


def _line(line: Line, redactor: Redactor) -> Line:
    code = redactor.source(line.code)
    return line if code is line.code else replace(line, code=code)


def _step(step: str, redactor: Redactor) -> str:
    found = _KEY.match(step)
    if found is None:
        return redactor.text(step)
    key = redactor.text(found["key"])
    if len(key) > _LONGEST_KEY:
        key = f"{key[:_LONGEST_KEY]}…{key[-1]}"
    return f"[{key}]{redactor.text(step[found.end() :])}"


def without_keys(path: Sequence[str]) -> list[str]:
    """
    A path of holders for roles that may not see values: ``[str]: list[3]`` instead of a key.

    In records of 0.1.0 a key looks like an attribute; what can't be an attribute's name is hidden.
    """
    return [_without_key(step) for step in path]


def _without_key(step: str) -> str:
    found = _KEY.match(step)
    if found is not None:
        return f"[str]{step[found.end() :]}"
    named = _NAME.match(step)
    if named is None or named["name"] == "default argument" or _PLACE.fullmatch(named["name"]):
        return step
    return f"[str]{step[named.end() :]}"
