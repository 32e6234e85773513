"""
Trusted proxies and their headers with the client's address.

Tornado's ``xheaders`` accepts ``X-Real-Ip`` and ``X-Forwarded-For`` from any sender, and its
``trusted_downstream`` only selects the entries of ``X-Forwarded-For`` to skip. So these headers are checked here,
before Tornado reads them: unless the sender is a trusted proxy they are removed, otherwise one address is left.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Awaitable, Iterable

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, RequestStartLine

from celery_trace.settings import SettingError

logger = logging.getLogger("celery_trace.monitor")

_HEADERS = ("X-Real-Ip", "X-Forwarded-For", "X-Scheme", "X-Forwarded-Proto")

_HINT = "Set the addresses that your proxies connect from, such as 127.0.0.1 or 10.0.0.0/8."

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_address(text: str) -> Address | None:
    """An address without its zone, an IPv4-mapped IPv6 address as IPv4; None if the text is not an address."""
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
        SettingError: An entry is invalid, or matches all addresses.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._networks = []
        for entry in filter(None, map(str.strip, entries)):
            try:
                network = ipaddress.ip_network(entry)
            except ValueError as error:
                raise SettingError(
                    f"Invalid entry {entry!r} in --trace_trusted_proxies: not an address or network ({error}). {_HINT}"
                ) from None
            if network.prefixlen == 0:
                raise SettingError(
                    f"Invalid entry {entry!r} in --trace_trusted_proxies: it would trust all clients. {_HINT}"
                )
            self._networks.append(network)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trust(self, address: Address | None) -> bool:
        """Whether this is the address of a trusted proxy."""
        return address is not None and any(address in network for network in self._networks)

    def client(self, headers: HTTPHeaders) -> str:
        """
        The client of a request that one of these proxies forwarded.

        In ``X-Forwarded-For`` each proxy appends the address that connected to it, so the client is the last entry
        that is not a trusted proxy; earlier entries may be forged. A proxy that sets only one of the two headers
        forwards the other unchanged. So if both are present and differ, neither is trusted.

        Returns:
            The address; empty if the headers have no trustworthy one.
        """
        real = parse_address(headers.get("X-Real-Ip", ""))
        chain = [part for part in headers.get("X-Forwarded-For", "").split(",") if part.strip()]
        if not chain:
            return str(real) if real else ""
        found = None
        for part in reversed(chain):
            found = parse_address(part)
            if found is None:
                logger.debug("X-Forwarded-For has an invalid address: %.100r", part)
                return ""
            if not self.trust(found):
                break
        if "X-Real-Ip" in headers and real != found and not self.trust(real):
            return ""
        return str(found)


class _CheckedHeaders(HTTPMessageDelegate):  # type: ignore[misc]
    """Checks the proxy headers of a request before Tornado reads them."""

    def __init__(self, delegate: HTTPMessageDelegate, proxies: Proxies, trusted: bool) -> None:
        self._delegate = delegate
        self._proxies = proxies
        self._trusted = trusted

    def headers_received(self, start_line: RequestStartLine, headers: HTTPHeaders) -> Awaitable[None] | None:
        client = self._proxies.client(headers) if self._trusted else ""
        for name in _HEADERS[:2] if self._trusted else _HEADERS:
            headers.pop(name, None)
        if client:
            headers["X-Real-Ip"] = client
        going_on: Awaitable[None] | None = self._delegate.headers_received(start_line, headers)
        return going_on

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        going_on: Awaitable[None] | None = self._delegate.data_received(chunk)
        return going_on

    def finish(self) -> None:
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()


class ProxiedServer(HTTPServer):  # type: ignore[misc]
    """
    A server that takes a client's address and scheme from trusted :attr:`proxies` only.

    Clients of its Unix socket are trusted too; the file's owner and group control access.
    """

    proxies = Proxies()

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Called by Tornado for each request."""
        delegate = super().start_request(server_conn, request_conn)
        if not self.xheaders:
            return delegate
        context = request_conn.context
        local = context.address_family not in (socket.AF_INET, socket.AF_INET6)
        return _CheckedHeaders(delegate, self.proxies, local or self.proxies.trust(parse_address(context.remote_ip)))
