"""A failure's summary and detail of the JSON contract, from a stored record."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from celery_trace.failures.capture import render
from celery_trace.model import (
    Capture,
    CapturedException,
    ChainLink,
    Failure,
    FailureDetail,
    FailureSummary,
    Frame,
    FrameView,
    LocalValue,
    Node,
    Variable,
)

#: Characters of a local's one-line text; the tree shows the rest.
VALUE_WIDTH = 200


def summary(failure: Failure, *, count: int = 1, live: bool = False) -> FailureSummary:
    """
    A row of the failures' list.

    Args:
        failure: The merged record.
        count: How many failures share its fingerprint.
        live: Whether a running process still holds its objects.
    """
    return FailureSummary(
        id=failure.id,
        kind=failure.kind.value,
        name=failure.name,
        task_id=failure.task_id,
        retries=failure.retries,
        outcome=failure.outcome,
        exception=failure.exception,
        fingerprint=failure.fingerprint,
        count=count,
        worker=failure.worker,
        pid=failure.last_pid,
        hostname=failure.hostname,
        at=failure.at_s,
        live=live,
        root_id=failure.task.root_id if failure.task else "",
        parent_id=failure.task.parent_id if failure.task else "",
        group_id=failure.task.group_id if failure.task else "",
        kills=len(failure.kills),
    )


def detail(
    failure: Failure,
    *,
    count: int = 1,
    live: bool = False,
    live_until: float | None = None,
    first_seen: float | None = None,
    last_seen: float | None = None,
) -> FailureDetail:
    """
    All of one failure. Arguments as for :func:`summary`; the others describe its group.

    A failure without frames shows the last stack in the black box.
    """
    capture = failure.capture or Capture()
    chain = [_link(exception, capture.heap) for exception in capture.exceptions]
    frames = chain[0].frames if chain else []
    crashed = failure.last_sample is not None and bool(failure.last_sample.crash)
    if not frames and failure.last_sample is not None:
        frames = [
            FrameView(
                file=line.file,
                line=line.line,
                function=line.function,
                code=line.code,
                context=[(line.line, line.code)] if line.code else [],
                in_app=True,
                locals=[],
                note="where the process crashed" if crashed else "last sample before the process died",
            )
            for line in failure.last_sample.stack
        ]
    row = summary(failure, count=count, live=live)
    return FailureDetail(
        **msgspec.structs.asdict(row),
        frames=frames,
        chain=chain,
        args=arguments(capture),
        kwargs=keywords(capture),
        request=failure.request,
        memory=failure.memory,
        process=failure.process,
        task=failure.task,
        last_sample=failure.last_sample,
        traceback_text=failure.traceback_text,
        duration_s=failure.duration_s,
        witness=failure.witness,
        note=failure.note,
        returned=failure.returned,
        killed=failure.kills,
        logs=failure.logs,
        heap=capture.heap,
        cut_values=capture.cut_values,
        redacted_values=capture.redacted_values,
        live_until=live_until,
        first_seen=first_seen,
        last_seen=last_seen,
    )


def frames(capture: Capture) -> list[FrameView]:
    """The frames of what was raised, innermost first."""
    return [_frame(frame, capture.heap) for frame in capture.exceptions[0].frames] if capture.exceptions else []


def value(heap: Sequence[Node], name: str, ref: int) -> LocalValue:
    """One named value as text."""
    node = heap[ref] if 0 <= ref < len(heap) else None
    if node is None:
        return LocalValue(name=name, type="", value=render.ELLIPSIS, cut=1, redacted=False, ref=-1)
    shown = render.text(heap, ref, VALUE_WIDTH)
    cut = node.cut or (1 if node.kind == "absent" else 0)
    return LocalValue(name=name, type=node.type, value=shown, cut=cut, redacted=node.kind == "redacted", ref=ref)


def arguments(capture: Capture) -> list[LocalValue]:
    """The positional arguments; their names are their positions."""
    if not 0 <= capture.args < len(capture.heap):
        return []
    return [value(capture.heap, str(place), ref) for place, ref in enumerate(capture.heap[capture.args].items)]


def keywords(capture: Capture) -> list[LocalValue]:
    """The keyword arguments."""
    if not 0 <= capture.kwargs < len(capture.heap):
        return []
    items = capture.heap[capture.kwargs].items
    return [
        value(capture.heap, _key(capture.heap, key), ref) for key, ref in zip(items[::2], items[1::2], strict=False)
    ]


def _key(heap: Sequence[Node], ref: int) -> str:
    node = heap[ref]
    return node.value if node.kind == "plain" and isinstance(node.value, str) else render.text(heap, ref, 60)


def _values(heap: Sequence[Node], variables: Sequence[Variable]) -> list[LocalValue]:
    return [value(heap, variable.name, variable.ref) for variable in variables]


def _frame(frame: Frame, heap: Sequence[Node]) -> FrameView:
    return FrameView(
        file=frame.file,
        line=frame.line,
        function=frame.function,
        code=frame.code,
        context=[(frame.context_start + place, line) for place, line in enumerate(frame.context)],
        in_app=frame.in_app,
        locals=_values(heap, frame.locals),
        qualname=frame.qualname,
        module=frame.module,
        columns=frame.columns,
        locals_cut=frame.locals_cut,
        folded=frame.folded,
        stale=frame.stale,
        note=frame.note,
    )


def _link(exception: CapturedException, heap: Sequence[Node]) -> ChainLink:
    return ChainLink(
        type=exception.type,
        module=exception.module,
        message=exception.message,
        link=exception.link,
        parent=exception.parent,
        frames=[_frame(frame, heap) for frame in exception.frames],
        frames_cut=exception.frames_cut,
        notes=exception.notes,
        attributes=_values(heap, exception.attributes),
    )
