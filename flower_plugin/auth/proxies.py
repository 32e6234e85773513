"""
The proxies that are trusted to say where a visitor comes from.

Tornado's ``xheaders`` believes ``X-Real-Ip`` and ``X-Forwarded-For`` whoever sends them, and its
``trusted_downstream`` only says which entries of ``X-Forwarded-For`` to skip. So these headers are checked here,
before Tornado reads them: if the sender is no trusted proxy they are removed, otherwise one address is left.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Iterable
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine

from celery_trace.settings import SettingError

logger = logging.getLogger("celery_trace.monitor")

_HEADERS = ("X-Real-Ip", "X-Forwarded-For", "X-Scheme", "X-Forwarded-Proto")

_HINT = "Give the addresses that your proxies connect from, such as 127.0.0.1 or 10.0.0.0/8."

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_address(text: str) -> Address | None:
    """An address without its zone, an IPv4 address in IPv6 notation as IPv4; None where the text is no address."""
    try:
        address = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class Proxies:
    """
    The proxies in front of the monitor.

    Args:
        entries: ``--trace_trusted_proxies``: addresses, or networks such as ``10.0.0.0/8``.

    Raises:
        SettingError: An entry is neither, or stands for all addresses.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._networks = []
        for entry in filter(None, map(str.strip, entries)):
            try:
                network = ipaddress.ip_network(entry)
            except ValueError as error:
                raise SettingError(
                    f"--trace_trusted_proxies has the entry {entry!r}, which is no address or network ({error}). "
                    f"{_HINT}"
                ) from None
            if network.prefixlen == 0:
                raise SettingError(
                    f"--trace_trusted_proxies has the entry {entry!r}, which trusts every visitor to name an address "
                    f"of their choice. {_HINT}"
                )
            self._networks.append(network)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trust(self, address: Address | None) -> bool:
        """Whether this is the address of a trusted proxy."""
        return address is not None and any(address in network for network in self._networks)

    def visitor(self, headers: HTTPHeaders) -> str:
        """
        Who sent a request that one of these proxies handed on.

        In ``X-Forwarded-For`` each proxy appends the address that connected to it, so the visitor is the last entry
        that is no trusted proxy; the entries before it may be made up. A proxy that sets only one of the two headers
        passes on the other as the visitor sent it. So if both are present and differ, neither can be believed.

        Returns:
            The address; empty where the headers name none that can be believed.
        """
        real = parse_address(headers.get("X-Real-Ip", ""))
        chain = [part for part in headers.get("X-Forwarded-For", "").split(",") if part.strip()]
        if not chain:
            return str(real) if real else ""
        found = None
        for part in reversed(chain):
            found = parse_address(part)
            if found is None:
                logger.debug("X-Forwarded-For has %.100r, which is no address.", part)
                return ""
            if not self.trust(found):
                break
        if "X-Real-Ip" in headers and real != found and not self.trust(real):
            return ""
        return str(found)


class _Sifted(HTTPMessageDelegate):  # type: ignore[misc]
    """Passes a request on to Tornado after checking its proxy headers."""

    def __init__(self, delegate: HTTPMessageDelegate, proxies: Proxies, trusted: bool) -> None:
        self._delegate = delegate
        self._proxies = proxies
        self._trusted = trusted

    def headers_received(self, start_line: RequestStartLine, headers: HTTPHeaders) -> Any:
        visitor = self._proxies.visitor(headers) if self._trusted else ""
        for name in _HEADERS[:2] if self._trusted else _HEADERS:
            headers.pop(name, None)
        if visitor:
            headers["X-Real-Ip"] = visitor
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()


class ProxiedServer(HTTPServer):  # type: ignore[misc]
    """
    A server that takes a visitor's address and scheme from :attr:`proxies` alone.

    Whoever can open its Unix socket is trusted too: the file's owner and group decide who that is.
    """

    proxies = Proxies()

    def start_request(self, server_conn: object, request_conn: Any) -> HTTPMessageDelegate:
        """Tornado asks this for each request."""
        delegate = super().start_request(server_conn, request_conn)
        if not self.xheaders:
            return delegate
        context = request_conn.context
        local = context.address_family not in (socket.AF_INET, socket.AF_INET6)
        return _Sifted(delegate, self.proxies, local or self.proxies.trust(parse_address(context.remote_ip)))
