"""Flower's own handlers behind the gate."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Iterator
from typing import ClassVar

from tornado.web import HTTPError, RequestHandler

from flower_plugin import upstream
from flower_plugin.auth.gate import Gate
from flower_plugin.auth.roles import UserRole
from flower_plugin.web import wire

#: Maximum nesting depth of task arguments in Flower's API.
MOST_TASK_DEPTH = 100


_guarded: dict[type[RequestHandler], type[RequestHandler]] = {}


def guarded(handler: type[RequestHandler]) -> type[RequestHandler]:
    """The handler class behind the gate; see :func:`_behind_the_gate`."""
    if handler not in _guarded:
        _guarded[handler] = _behind_the_gate(handler)
    return _guarded[handler]


def _behind_the_gate(handler: type[RequestHandler]) -> type[RequestHandler]:
    """
    A handler class of Flower (or Tornado) with the gate in front of it.

    Reading needs ``look``, or ``locals`` for pages with arguments and results. Changes need ``live``,
    as Flower's commands can shut down workers and start tasks. Static files are public: the login page
    needs them.
    """
    if issubclass(handler, Gate):
        return handler
    if issubclass(handler, upstream.FlowerLoginHandler):
        # Its __new__ would create the configured provider without the gate.
        handler = upstream.login_handler(upstream.options.auth_provider)
        roles: dict[str, object] = {"role": UserRole.PUBLIC}
    elif issubclass(handler, upstream.StaticFileHandler):
        roles = {"role": UserRole.PUBLIC}
    elif issubclass(handler, upstream.SHOWS_VALUES):
        roles = {"role": UserRole.LOCALS, "change_role": UserRole.LIVE}
        if issubclass(handler, upstream.READS_BY_POST):
            roles["reading_methods"] = Gate.reading_methods | {"POST"}
    else:
        roles = {"role": UserRole.LOOK, "change_role": UserRole.LIVE}
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
    """The gate for Flower's own handlers, with fixes for their behavior behind it."""

    #: Flower's API refuses all requests if Flower has no login configured. The gate handles the login.
    unauthenticated_api = True

    def render(self, template_name: str, **keywords: object) -> Future[None] | None:
        """Render a page of Flower without buttons for refused actions."""
        if "read_only" in keywords:
            user = self.current_user
            changes = user is not None and user.may(self.change_role) and not self.gatekeeper.read_only
            keywords["read_only"] = keywords["read_only"] or not changes
        sent: Future[None] | None = super().render(template_name, **keywords)
        return sent

    def get_task_args(self) -> tuple[object, dict[str, object], object]:
        """The body of Flower's requests to run a task; invalid ones are refused with 400."""
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
        """Flower's parsing of ``eta``, ``countdown`` and ``expires``, with an error for other types."""
        try:
            super().normalize_options(options)
        except TypeError as error:
            raise ValueError(str(error)) from error


class StaticFiles(upstream.StaticFileHandler):  # type: ignore[misc]
    """
    Flower's static files and ours. URLs of Flower's files, a dozen per page, are cached, as the files don't change.
    URLs of our files have a hash of all of them in the path, so that modules can import each other by relative URLs
    and no browser mixes two versions.

    Flower's script is served with :data:`flower_plugin.upstream.SCRIPT_FIXES` applied. Its URL changes with them, so
    browsers don't use a cached version.
    """

    _addresses: ClassVar[dict[tuple[str, str, bool], str]] = {}
    # Not Tornado's own cache, which may have the hash of Flower's original file.
    _static_hashes: ClassVar[dict[str, str | None]] = {}
    _versioned = False

    def initialize(self, path: str, default_filename: str | None = None, versioned: bool = False) -> None:
        """``versioned``: the path contains a version, so the files never change."""
        super().initialize(path, default_filename)
        self._versioned = versioned

    def get_cache_time(self, path: str, modified: object, mime_type: str) -> int:
        """How long a browser may cache a file, seconds."""
        return int(self.CACHE_MAX_AGE if self._versioned else super().get_cache_time(path, modified, mime_type))

    @classmethod
    def get_content(cls, abspath: str, start: int | None = None, end: int | None = None) -> bytes | Iterator[bytes]:
        """The content of a file."""
        fixed = upstream.fixed_script(abspath)
        return super().get_content(abspath, start, end) if fixed is None else fixed[start:end]

    def get_content_size(self) -> int:
        """The size of the file."""
        fixed = upstream.fixed_script(str(self.absolute_path))
        return int(super().get_content_size()) if fixed is None else len(fixed)

    @classmethod
    def make_static_url(cls, settings: dict[str, object], path: str, include_version: bool = True) -> str:
        """The URL of a file, with its version."""
        key = (str(settings.get("static_url_prefix", "")), path, include_version)
        address = cls._addresses.get(key)
        if address is None:
            address = cls._addresses[key] = str(super().make_static_url(settings, path, include_version))
        return address
