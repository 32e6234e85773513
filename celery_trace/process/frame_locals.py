"""
The local variables of a frame, also of a function that runs in another thread, without any effect on that function.

Before Python 3.13, reading ``frame.f_locals`` writes the variables into the one dict that ``locals()`` has given to the
function. A loop over ``locals().items()`` then ends with a RuntimeError, a value that the function has put there is
lost, and what it has deleted stays alive. ``_thread_state.c`` copies the variables instead.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING

_copy: Callable[[FrameType], Mapping[str, object]] | None = None
if not TYPE_CHECKING:
    with contextlib.suppress(ImportError):  # f_locals has no such effect, or there is no extension module
        from celery_trace.process._thread_state import copy_locals as _copy


def locals_of(frame: FrameType) -> Mapping[str, object]:
    """The local variables; of a module or the body of a class its own namespace, of any type."""
    if _copy is not None and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return _copy(frame)
    return frame.f_locals
