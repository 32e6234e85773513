"""Flower's own handlers, with the gate in front of them."""

from __future__ import annotations

from typing import Any, ClassVar

from tornado.web import HTTPError, RequestHandler

from flower_plugin import upstream
from flower_plugin.auth.gate import Gate
from flower_plugin.auth.roles import Role
from flower_plugin.web import wire

#: Lists and objects inside each other in the arguments of a task that is sent by Flower's API.
MOST_TASK_DEPTH = 100


_guarded: dict[type[RequestHandler], type[RequestHandler]] = {}


def guarded(handler: type[RequestHandler]) -> type[RequestHandler]:
    """The handler class that really serves: see :func:`_behind_the_gate`."""
    if handler not in _guarded:
        _guarded[handler] = _behind_the_gate(handler)
    return _guarded[handler]


def _behind_the_gate(handler: type[RequestHandler]) -> type[RequestHandler]:
    """
    A handler class of Flower's (or Tornado's) with the gate in front of it.

    Reading needs ``look``, and ``locals`` where Flower shows arguments and results; whatever may change
    something needs ``live``, because Flower's own commands shut workers down and start tasks. Its static
    files are public: the login page needs them.
    """
    if issubclass(handler, Gate):
        return handler
    if issubclass(handler, upstream.FlowerLoginHandler):
        # Its __new__ would make an instance of the configured provider, without the gate.
        handler = upstream.login_handler(upstream.options.auth_provider)
        roles: dict[str, object] = {"role": Role.PUBLIC}
    elif issubclass(handler, upstream.StaticFileHandler):
        roles = {"role": Role.PUBLIC}
    elif issubclass(handler, upstream.SHOWS_VALUES):
        roles = {"role": Role.LOCALS, "change_role": Role.LIVE}
        if issubclass(handler, upstream.READS_BY_POST):
            roles["reading_methods"] = Gate.reading_methods | {"POST"}
    else:
        roles = {"role": Role.LOOK, "change_role": Role.LIVE}
    more = {
        "for_people": not issubclass(handler, upstream.BaseApiHandler),
        "cacheable": issubclass(handler, upstream.StaticFileHandler),
        "__module__": __name__,
    }
    bases: tuple[type, ...] = (FlowerGate if issubclass(handler, upstream.FlowerHandler) else Gate, handler)
    if issubclass(handler, upstream.StaticFileHandler):
        bases = (Gate, StaticFiles)
    elif issubclass(handler, upstream.RedactedResults.__base__):
        bases = (bases[0], upstream.RedactedResults, handler)
    return type(f"Guarded{handler.__name__}", bases, {**roles, **more})


class FlowerGate(Gate):
    """The gate in front of what Flower's own handlers do, and where they differ behind it."""

    #: Flower's API answers nobody where Flower knows of no login. It knows none of ours; the gate does.
    unauthenticated_api = True

    def render(self, template_name: str, **keywords: Any) -> Any:
        """A page of Flower's, without buttons that the gate would refuse."""
        if "read_only" in keywords:
            user = self.current_user
            changes = user is not None and user.may(self.change_role) and not self.gatekeeper.read_only
            keywords["read_only"] = keywords["read_only"] or not changes
        return super().render(template_name, **keywords)

    def get_task_args(self) -> Any:
        """The body of Flower's orders to run a task, refused where Flower would fail at it."""
        try:
            args, kwargs, options = super().get_task_args()
            wire.check((args, kwargs, options), MOST_TASK_DEPTH)
        except RecursionError:
            raise HTTPError(400, wire.TOO_DEEP) from None
        except wire.BadJson as error:
            raise HTTPError(400, str(error)) from None
        if not isinstance(kwargs, dict):
            raise HTTPError(400, "kwargs must be an object")
        return args, kwargs, options

    def normalize_options(self, options: object) -> None:
        """Flower's reading of ``eta``, ``countdown`` and ``expires``, which takes texts and numbers for granted."""
        try:
            super().normalize_options(options)
        except TypeError as error:
            raise ValueError(str(error)) from error


class StaticFiles(upstream.StaticFileHandler):  # type: ignore[misc]
    """
    Flower's static files and ours. The addresses of Flower's, a dozen on each page, are made once: the files do not
    change. The addresses of ours have the version of all of them in the path, so that modules import each other by
    relative addresses and no browser mixes two versions.

    Flower's script is served with what :data:`flower_plugin.upstream.SCRIPT_FIXES` makes of it. Its address changes
    with that, so no browser goes on with the one that it has.
    """

    _addresses: ClassVar[dict[tuple[str, str, bool], str]] = {}
    # Not Tornado's own, where the version of the file as Flower ships it may be.
    _static_hashes: ClassVar[dict[str, str | None]] = {}
    _versioned = False

    def initialize(self, path: str, default_filename: str | None = None, versioned: bool = False) -> None:
        """``versioned``: the path names a version, so what it serves never changes."""
        super().initialize(path, default_filename)
        self._versioned = versioned

    def get_cache_time(self, path: str, modified: object, mime_type: str) -> int:
        """How long a browser may keep a file without asking again, seconds."""
        return int(self.CACHE_MAX_AGE if self._versioned else super().get_cache_time(path, modified, mime_type))

    @classmethod
    def get_content(cls, abspath: str, start: int | None = None, end: int | None = None) -> Any:
        """The bytes to serve."""
        fixed = upstream.fixed_script(abspath)
        return super().get_content(abspath, start, end) if fixed is None else fixed[start:end]

    def get_content_size(self) -> int:
        """How many there are."""
        fixed = upstream.fixed_script(str(self.absolute_path))
        return int(super().get_content_size()) if fixed is None else len(fixed)

    @classmethod
    def make_static_url(cls, settings: dict[str, object], path: str, include_version: bool = True) -> str:
        """The address of a file, with its version."""
        key = (str(settings.get("static_url_prefix", "")), path, include_version)
        address = cls._addresses.get(key)
        if address is None:
            address = cls._addresses[key] = str(super().make_static_url(settings, path, include_version))
        return address
