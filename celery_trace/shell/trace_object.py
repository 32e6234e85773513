"""
``trace``: the failure as an object in the shell.

The live shell has real values in it, the recreated one values decoded from the capture. Only the standard library: the
sandbox loads this module too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


class ShellObject:
    """An object of ours with known members, which completion can read without running code."""

    def _members(self) -> Mapping[str, object]:
        return {}

    def __dir__(self) -> list[str]:
        return sorted(self._members())


class Locals(dict[str, object]):
    """A frame's variables: ``locals["a"]`` and ``locals.a``."""

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(sorted(self)[:20]) or "none"
            raise AttributeError(f"this frame has no variable {name!r}; it has: {known}") from None


class ShellFacts(ShellObject):
    """Plain facts by name, such as a task's queue or a leak's line."""

    def __init__(self, title: str, facts: Mapping[str, object]) -> None:
        self.__dict__.update(facts)
        self._title = title

    def _members(self) -> Mapping[str, object]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __repr__(self) -> str:
        return f"<{self._title} " + " ".join(f"{name}={value!r}" for name, value in self._members().items()) + ">"


class ShellFrame(ShellObject):
    """
    One frame of the failure.

    Args:
        namespace: The frame's globals, for names that are not variables. Never written to.
        source: Returns the source lines around ``line`` as (number, text); called only for ``list``.
        note: A sentence about missing parts.
    """

    def __init__(
        self,
        file: str,
        line: int,
        function: str,
        variables: Mapping[str, object],
        *,
        namespace: Mapping[str, object] | None = None,
        source: Callable[[], Sequence[tuple[int, str]]] | None = None,
        in_app: bool = True,
        note: str = "",
    ) -> None:
        self.file = file
        self.line = line
        self.function = function
        self.locals = Locals(variables)
        self.globals: Mapping[str, object] = {} if namespace is None else namespace
        self.in_app = in_app
        self.note = note
        self._source = source

    def source(self) -> Sequence[tuple[int, str]]:
        """Source lines around the failing one; empty without source."""
        return self._source() if self._source is not None else ()

    def _members(self) -> Mapping[str, object]:
        return {name: getattr(self, name) for name in ("file", "line", "function", "locals", "globals")}

    def __repr__(self) -> str:
        return f"<frame {self.function} at {self.file}:{self.line}, {len(self.locals)} locals>"


class Trace(ShellObject):
    """
    The failure: ``trace.frames[i].locals``, ``exception``, ``args``, ``kwargs``, ``task``, ``request``, ``leaks``.

    Every other attribute is a variable by that name: first of the selected frame, then of the others from the innermost
    outwards.
    """

    def __init__(
        self,
        frames: Sequence[ShellFrame],
        *,
        exception: object = None,
        args: object = None,
        kwargs: object = None,
        task: object = None,
        request: object = None,
        leaks: object = (),
        mode: str = "recreated",
    ) -> None:
        self.frames = list(frames)
        self.exception = exception
        self.args = args
        self.kwargs = kwargs
        self.task = task
        self.request = request
        self.leaks = leaks
        self.mode = mode
        self._chosen = 0

    def choose(self, index: int) -> None:
        """Select a frame."""
        self._chosen = index

    @property
    def frame(self) -> ShellFrame | None:
        """The selected frame."""
        return self.frames[self._chosen] if self.frames else None

    def _members(self) -> Mapping[str, object]:
        members: dict[str, object] = {}
        for frame in reversed(self.frames):
            members.update(frame.locals)
        if self.frame is not None:
            members.update(self.frame.locals)
        members.update({name: value for name, value in self.__dict__.items() if not name.startswith("_")})
        members["frame"] = self.frame
        return members

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or "frames" not in self.__dict__:
            raise AttributeError(name)
        chosen = self.frame
        for frame in ([chosen] if chosen is not None else []) + self.frames:
            if name in frame.locals:
                return frame.locals[name]
        raise AttributeError(f"no frame of this failure has a variable {name!r}; `where` lists the frames")

    def __repr__(self) -> str:
        chosen = self.frame
        at = f"in {chosen.function} at {chosen.file}:{chosen.line}" if chosen is not None else "without frames"
        return f"<trace ({self.mode}) of {type(self.exception).__name__} {at}; try trace.frames, help>"
