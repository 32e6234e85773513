"""
Django's ``@sensitive_variables``: locals that the view's author has hidden.

Django marks a call with a wrapper frame right outside the decorated function's, which has a local
``sensitive_variables``; for coroutine functions it keeps a table in ``django.views.decorators.debug``. Both are read as
data; Django need not be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import FunctionType

from celery_trace.failures.capture.anatomy import resident
from celery_trace.failures.capture.frames import FramePlace, Hidden

_WRAPPER = "sensitive_variables_wrapper"
_DECORATORS = "django.views.decorators.debug"


def hidden_locals(places: Sequence[FramePlace]) -> dict[int, Hidden]:
    """
    By the address of a frame, which of its locals to hide: a tuple of names, or ``"__ALL__"``.

    Args:
        places: Innermost first.
    """
    if resident(_DECORATORS, "sensitive_variables") is None:
        return {}
    hidden: dict[int, Hidden] = {}
    asynchronous = resident(_DECORATORS, "coroutine_functions_to_sensitive_variables")
    for inner, place in enumerate(places):
        code = place.frame.f_code
        if code.co_name == _WRAPPER and inner > 0:
            # Django stores the names on the wrapper itself, which is a closure variable of its own frame.
            wrapper = place.frame.f_locals.get(_WRAPPER)
            names = _names(wrapper.__dict__.get("sensitive_variables")) if type(wrapper) is FunctionType else None
            if names is not None:
                hidden[id(places[inner - 1].frame)] = names
                hidden[id(place.frame)] = "__ALL__"  # its own func_args and func_kwargs hold the same values
        elif type(asynchronous) is dict and asynchronous:
            names = _names(asynchronous.get(hash(f"{code.co_filename}:{code.co_firstlineno}")))
            if names is not None:
                hidden[id(place.frame)] = names
    return hidden


def _names(value: object) -> Hidden | None:
    if value == "__ALL__" if type(value) is str else False:
        return "__ALL__"
    if type(value) is tuple or type(value) is list:
        return tuple(name for name in value if type(name) is str) or "__ALL__"
    return None
