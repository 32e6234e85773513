"""
Finds secret arguments of a task by the names of its parameters.

Celery's events and workers report arguments as ``('ada', 'opensesame')``, without parameter names, so a password is not
recognizable. The monitor's own app often has the task and its parameter names. Secrets that are found are redacted in
other texts too, such as exception messages, as captures do.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence

from celery import Celery

from celery_trace.redaction import Redactor, Scrubber

#: The names of a task's positional parameters; None if the app does not have the task.
Parameters = Callable[[str], Sequence[str] | None]

#: Longer texts are not parsed: Celery truncates arguments at 1,024 characters, and truncated text can't be parsed.
MOST_CHARACTERS = 16 * 1024
MOST_DEPTH = 10


def parameters_of(app: Celery) -> Parameters:
    """Parameter names from the tasks of a Celery app."""

    def names(task_name: str) -> Sequence[str] | None:
        task = app.tasks.get(task_name)
        if task is None:
            return None
        try:
            found = inspect.signature(task.run).parameters.values()
        except (TypeError, ValueError):  # such as a callable written in C
            return ()
        return [one.name for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]

    return names


class ArgumentSecrets:
    """Finds the secrets in arguments of tasks."""

    def __init__(self, redactor: Redactor, parameters: Parameters = lambda _: None) -> None:
        self._redactor = redactor
        self._parameters = parameters
        #: By task name: the positions of secret arguments.
        self._places: dict[str, tuple[int, ...]] = {}

    def knows(self, name: str) -> bool:
        """Whether the app has a task of this name."""
        if name in self._places:
            return True
        names = self._parameters(name)
        if names is None:
            return False
        secret = self._redactor.is_secret_name
        self._places[name] = tuple(place for place, one in enumerate(names) if secret(one))
        return True

    def scrubber(self, name: str, args: object, kwargs: object) -> Scrubber | None:
        """A scrubber for the secrets of one call; None if it has none."""
        found = [*self._in_args(name, args), *self._in_kwargs(kwargs)]
        if not found:
            return None
        scrubber = Scrubber()
        for secret in found:
            scrubber.learn(secret)
        return scrubber

    def _in_args(self, name: str, args: object) -> Iterator[str]:
        places = self._places[name] if self.knows(name) else ()
        values = _read(args) if places else None
        if isinstance(values, list | tuple):
            for place in places:
                if place < len(values):
                    yield from _texts(values[place], 0)

    def _in_kwargs(self, kwargs: object) -> Iterator[str]:
        # Fast path: nearly all texts have no secret name.
        if isinstance(kwargs, str) and self._redactor.text(kwargs) is kwargs:
            return
        yield from self._named(_read(kwargs), 0)

    def _named(self, value: object, depth: int) -> Iterator[str]:
        if depth > MOST_DEPTH:
            return
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if isinstance(key, str) and self._redactor.is_secret_name(key):
                    yield from _texts(inner, depth)
                else:
                    yield from self._named(inner, depth + 1)
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from self._named(inner, depth + 1)


def _read(value: object) -> object:
    """Arguments of workers, as values or as their repr."""
    if not isinstance(value, str):
        return value
    if len(value) > MOST_CHARACTERS:
        return None
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None  # objects, or truncated


def _texts(value: object, depth: int) -> Iterator[str]:
    """The texts in a secret value."""
    if isinstance(value, str):
        yield value
    elif depth <= MOST_DEPTH and isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner, depth + 1)
    elif depth <= MOST_DEPTH and isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, depth + 1)
