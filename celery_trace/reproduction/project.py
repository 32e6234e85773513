"""The developer's project: its app, its tasks, and values of its own classes."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from celery import Celery, Task
from celery.app.utils import find_app

from celery_trace.errors import TraceError

#: Modules that hold the app without being part of the project.
_NOT_THE_PROJECT = ("celery", "celery_trace", "django_bridge", "flower", "flower_plugin", "__main__", "kombu")


class Missing(TraceError):
    """The checkout, its database or its libraries lack something that a captured value needs."""


def path_of(app: Celery) -> str:
    """
    Where an app can be imported from, as ``proj.celery:app``; empty if no module holds it.

    The shortest name of a module that holds it: the project's own modules import it from there.
    """
    found: list[str] = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in _NOT_THE_PROJECT:
            held = getattr(module, "__dict__", None)
            found += [f"{name}:{key}" for key, value in list(held.items()) if value is app] if held else []
    return min(found, key=lambda path: (path.count("."), len(path), path), default="")


class LoadedProject:
    """
    A project that is loaded when it is needed first.

    Args:
        app: The app, or its path as ``proj.celery:app``. The current folder is searched too, as by ``celery -A``.
    """

    def __init__(self, app: Celery | str) -> None:
        self._app = app
        self._loaded: Celery | None = None

    def load(self) -> Celery:
        """Import the app and its tasks."""
        if self._loaded is None:
            app = find_app(self._app) if isinstance(self._app, str) else self._app
            app.loader.import_default_modules()
            app.finalize()
            self._loaded = app
        return self._loaded

    def task(self, name: str) -> Task:
        """
        A task by its name.

        Raises:
            Missing: The project has no such task.
        """
        app = self.load()
        if name not in app.tasks:
            self.missing(f"the project has no task {name!r}")
        return app.tasks[name]

    def missing(self, what: str) -> NoReturn:
        """End: something is missing. A test is skipped instead."""
        raise Missing("Can't make a captured value", what, "Run this where the failed code runs")

    # --- makers of recipes; see :mod:`celery_trace.reproduction.recipes`

    def dataclass(self, path: str, members: Mapping[str, object]) -> object:
        """An instance with these members, as it was: neither ``__init__`` nor ``__post_init__`` runs."""
        cls = self._class(path)
        if not dataclasses.is_dataclass(cls):
            self.missing(f"{path} is not a dataclass")
        # A field with a default may be an attribute of the class only.
        own = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
        lacking = [name for name in own if name not in members]
        if lacking:
            self.missing(f"the capture has no {', '.join(lacking)} of {path}")
        made = object.__new__(cls)
        for name, value in members.items():
            object.__setattr__(made, name, value)
        return made

    def enum(self, path: str, name: str) -> object:
        """A member of an enum."""
        cls = self._class(path)
        if not issubclass(cls, enum.Enum) or name not in cls.__members__:
            self.missing(f"{path} is not an enum with {name!r}")
        return cls.__members__[name]

    def namedtuple(self, path: str, members: Mapping[str, object]) -> object:
        """A named tuple."""
        cls = self._class(path)
        if not issubclass(cls, tuple) or getattr(cls, "_fields", None) != tuple(members):
            self.missing(f"{path} is not a named tuple of {', '.join(members)}")
        return tuple.__new__(cls, members.values())

    def model(self, label: str, key: object) -> object:
        """A row of Django's database, as it is there now."""
        self.load()
        from django.apps import apps
        from django.core.exceptions import ObjectDoesNotExist
        from django.db import Error

        try:
            return apps.get_model(label)._base_manager.get(pk=key)
        except (LookupError, ObjectDoesNotExist, Error) as error:
            self.missing(f"there is no {label} with the key {key!r} in this database ({type(error).__name__})")

    def array(self, items: list[object], dtype: str, shape: tuple[int, ...]) -> object:
        """An array of numpy."""
        return self._numpy().array(items, dtype=dtype).reshape(shape)

    def number(self, dtype: str, value: object) -> object:
        """A scalar of numpy."""
        return self._numpy().dtype(dtype.rstrip("_")).type(value)

    def _numpy(self) -> Any:
        try:
            return importlib.import_module("numpy")
        except ImportError:
            self.missing("numpy is not installed")

    def _class(self, path: str) -> type[Any]:
        """A class by its full name. Modules are imported only in packages that the project has imported."""
        self.load()
        names = path.split(".")
        for at in range(len(names) - 1, 0, -1):
            module = sys.modules.get(".".join(names[:at]))
            if module is None and names[0] in sys.modules:
                try:
                    module = importlib.import_module(".".join(names[:at]))
                except ImportError:
                    continue
            found: object = module
            for name in names[at:] if module is not None else ():
                found = getattr(found, name, None)
            if isinstance(found, type):
                return found
        return self.missing(f"there is no class {path}")
