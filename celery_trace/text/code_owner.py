"""
The owner of a file's code: the user, a library, or celery-trace.

The same for leaks, failures, pages and commands. It depends on whole parts of a path, so that it is valid for records
of other hosts too: ``/srv/site-packages-demo/tasks.py`` is the user's,
``/usr/lib/python3/dist-packages/kombu/connection.py`` is not.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import Protocol, TypeVar

#: ``(file, line)`` pairs, the innermost first.
Frames = tuple[tuple[str, int], ...]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_PACKAGES = tuple(
    os.path.join(os.path.dirname(_PACKAGE.rstrip(os.sep)), name) + os.sep
    for name in ("celery_trace", "django_bridge", "flower_plugin")
)
#: Our files that only call the user's code: around a traced block, around a task's tracer.
WRAPPERS = frozenset(os.path.join(_PACKAGE, "runtime", name) for name in ("blocks.py", "tracers.py"))

_INSTALLED = frozenset(("site-packages", "dist-packages"))
_ARCHIVES = (".egg", ".whl")
_PYTHON = re.compile(r"(?:python|pypy)3\.\d+t?")
#: A program that starts other code, such as ``bin/celery``.
_PROGRAM = re.compile(r"/bin/[^/.]+$")
_ZIPPED_PYTHON = re.compile(r"python3\d+\.zip")
#: File names of typed code. Other such names come from libraries that use ``exec``.
_TYPED = ("<stdin>", "<console>", "<ipython", "<doctest ")

_MOST_REMEMBERED = 4096


def is_ours(file: str) -> bool:
    """Whether a file belongs to celery-trace itself."""
    return file.startswith(_PACKAGE)


def is_our_own(frames: Frames) -> bool:
    """
    Whether an allocation is celery-trace's own.

    Frames of the wrappers around the user's code do not count.
    """
    if is_ours(frames[0][0]):
        return True
    return any(is_ours(file) and file not in WRAPPERS for file, _ in frames)


class _InFile(Protocol):
    """A line of a stack."""

    @property
    def file(self) -> str:
        """Its file's name, as its code has it."""


_L = TypeVar("_L", bound=_InFile)


def innermost_own(stack: Iterable[_L], is_users: Callable[[str], bool]) -> _L | None:
    """
    The innermost of the user's own lines; None if there is none.

    Args:
        stack: Lines, innermost first.
        is_users: Whether a file is the user's, such as a :class:`CodeOwner`.
    """
    return next((line for line in stack if is_users(line.file)), None)


class CodeOwner:
    """
    Distinguishes the user's own files from those of libraries.

    The deepest known folder in a path decides: a folder of ``in_app``, the project's root, a folder of installed
    packages, Python's own. Without one, a file is the user's.

    Args:
        in_app: Folders (with a path separator) or module prefixes that are the user's own, wherever they are.
        roots: The project's folders. What is installed below one, as in a virtual environment, is not the user's.
    """

    def __init__(self, in_app: Iterable[str] = (), roots: Iterable[str] = ()) -> None:
        in_app = tuple(in_app)
        self._folders = _folders(entry for entry in in_app if os.sep in entry)
        self._modules = tuple(entry for entry in in_app if entry and os.sep not in entry)
        self._roots = _folders(roots)
        self._known: dict[tuple[str, str], bool] = {}

    def __call__(self, file: str, module: str = "") -> bool:
        """
        Whether a file is the user's own.

        Args:
            file: The file name of a code object.
            module: The name of its module, if known.
        """
        key = (file, module)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._decide(file, module)
        return known

    def first(self, frames: Frames) -> int:
        """The index of the first of the user's own lines, from the innermost outwards; 0 if there is none."""
        return next((index for index, (file, _) in enumerate(frames) if self(file)), 0)

    def short(self, file: str) -> str:
        """A file relative to the project, to the folder of installed packages, or to Python's own, on any host."""
        root = _deepest(file, self._roots)
        depth, shown_from = _library(file)
        return file[root:] if root and root >= depth else file[shown_from:]

    def _decide(self, file: str, module: str) -> bool:
        if not file or file.startswith("<"):
            typed = file.startswith(_TYPED) or (file == "<string>" and module == "__main__")
            return typed or self._is_in_app(module)
        if file.startswith(_PACKAGES):
            return False
        library = max(_library(file)[0], _deepest(file, _PYTHON_FOLDERS))
        if self._is_in_app(module) or (library and self._is_in_app(_module(file[library:]))):
            return True
        chosen = _deepest(file, self._folders)
        if _PROGRAM.search(file):
            return chosen > 0
        return max(chosen, _deepest(file, self._roots)) >= library

    def _is_in_app(self, module: str) -> bool:
        return any(module == entry or module.startswith(entry + ".") for entry in self._modules)


def project_roots() -> tuple[str, ...]:
    """The working folder, and the folders of the project's code that ``sys.path`` has below it."""
    try:
        here = os.getcwd().rstrip(os.sep) + os.sep
    except OSError:  # it was removed
        return ()
    if _library(here)[0] == len(here):
        return ()  # packages are installed in it
    below = (entry + os.sep for entry in sys.path if entry.startswith(here))
    return (here, *(folder for folder in below if not _library(folder[len(here) :])[0]))


def code_of(thing: object) -> list[CodeType]:
    """
    The code that a call of ``thing`` leads to: a function's, of all it wraps, and of a class's own methods.

    Reads attributes of plain functions and classes only, and calls nothing of the user's.
    """
    found: list[CodeType] = []
    for _ in range(20):
        thing = getattr(thing, "__func__", thing) if type(thing).__name__ == "method" else thing
        if not isinstance(thing, FunctionType):
            break
        found.append(thing.__code__)
        view = thing.__dict__.get("view_class") or thing.__dict__.get("cls")
        if isinstance(view, type):
            found += [
                method.__code__
                for base in view.__mro__
                for method in vars(base).values()
                if isinstance(method, FunctionType)
            ]
        thing = thing.__dict__.get("__wrapped__")
    return found


def _library(file: str) -> tuple[int, int]:
    """
    The length of a path up to the deepest folder of a library, and where its shown part begins; 0 for none.

    ``/opt/venv/lib/python3.12/site-packages/kombu/mixins.py`` is shown from ``kombu`` on, and
    ``/usr/lib/python3.12/json/decoder.py`` from ``python3.12`` on.
    """
    depth = shown_from = at = 0
    before = ""
    for part in file.split(os.sep)[:-1]:
        begin, at = at, at + len(part) + 1
        if part in _INSTALLED or part.endswith(_ARCHIVES):
            depth = shown_from = at
        elif (_PYTHON.fullmatch(part) and before.startswith("lib")) or _ZIPPED_PYTHON.fullmatch(part):
            depth, shown_from = at, begin
        before = part
    return depth, shown_from


def _deepest(file: str, folders: tuple[str, ...]) -> int:
    """The length of the longest folder that a file is below; 0 for none."""
    return max((len(folder) for folder in folders if file.startswith(folder)), default=0)


def _folders(paths: Iterable[str]) -> tuple[str, ...]:
    """Folders with a separator at their end."""
    return tuple({path.rstrip(os.sep) + os.sep for path in paths if path.rstrip(os.sep)})


def _module(path: str) -> str:
    """The module of a path below an import folder: ``shop.tasks`` of ``shop/tasks.py``."""
    return path.removesuffix(".py").removesuffix(os.sep + "__init__").replace(os.sep, ".")


def _python_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    found = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib") if paths.get(name)}
    found |= {os.path.realpath(folder) for folder in found}
    return tuple(folder.rstrip(os.sep) + os.sep for folder in found)


_PYTHON_FOLDERS = _python_folders()
