"""Which peer a socket is connected to, from ``/proc/<pid>/net``."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

_LISTENS: Final = "0A"


class Peer(Struct, frozen=True):
    """The other end of a connection; of a socket that listens, its own address."""

    address: str
    port: int = 0
    listens: bool = False

    def __str__(self) -> str:
        if not self.port:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Peers:
    """
    The sockets of a network namespace.

    Args:
        folder: ``/proc/<pid>/net``, or one like it.
    """

    def __init__(self, folder: Path) -> None:
        self._known = dict(_sockets(folder))

    def of(self, inode: int) -> Peer | None:
        """The peer of a socket; None if it has none, or it is unknown."""
        return self._known.get(inode)


def _sockets(folder: Path) -> Iterator[tuple[int, Peer]]:
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for fields in _rows(folder / name):
            try:
                listens = name.startswith("tcp") and fields[3] == _LISTENS
                address, _, port = fields[1 if listens else 2].partition(":")
                if int(port, 16):
                    peer = Peer(_address(address), int(port, 16), listens)
                    yield int(fields[9]), peer
            except (IndexError, ValueError, OSError):
                continue
    for fields in _rows(folder / "unix"):
        if len(fields) > 7 and fields[6].isdigit():
            yield int(fields[6]), Peer(fields[7].removeprefix("@"))


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            next(lines, "")  # the header
            for line in lines:
                yield line.split()
    except OSError:
        return


def _address(text: str) -> str:
    """An address as Linux writes it: words of 32 bits, in the machine's byte order."""
    words = bytes.fromhex(text)
    order = "<" if sys.byteorder == "little" else ">"
    packed = struct.pack(f">{len(words) // 4}I", *struct.unpack(f"{order}{len(words) // 4}I", words))
    address = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
    return address.removeprefix("::ffff:")
