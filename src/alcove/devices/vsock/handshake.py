r"""The hybrid protocol of the parent's socket (devices.md §5.6; Firecracker docs/vsock.md).

Core: bytes in, port out.

    client   CONNECT <port>\n
    device   OK <number>\n        after the guest accepted; else the socket is closed
"""

from __future__ import annotations

import re
from typing import Final

from alcove.errors import ProtocolError
from alcove.types import Cid, Port

MAX_COMMAND: Final = 32  # bytes with the line feed; §5.6
_COMMAND: Final = re.compile(rb"\s*CONNECT\s+([0-9]{1,10})\s*\n", re.IGNORECASE)
_NAME: Final = re.compile(rb"\0alcove-vsock/([0-9]+)/([0-9]+)/[0-9a-f]+")


def parse_command(line: bytes) -> Port:
    """The port that a client asks for; `line` ends with its line feed.

    Raises:
        ProtocolError: It is no CONNECT command.
    """
    match = _COMMAND.fullmatch(line)
    if match is None or int(match[1]) > 0xFFFFFFFF:
        raise ProtocolError("vsock: a client sent no CONNECT command")
    return Port(int(match[1]))


def accepted(number: int) -> bytes:
    """The device's answer; clients ignore the number."""
    return b"OK %d\n" % number


def peer_name(cid: Cid, port: Port, tag: str) -> bytes:
    """The abstract address that a guest's connection comes from: a server reads the peer's CID and port in it."""
    return b"\0alcove-vsock/%d/%d/%s" % (cid, port, tag.encode())


def parse_peer_name(address: object) -> tuple[Cid, Port] | None:
    """CID and port of the guest, from what `accept` or `getpeername` returned; None for another peer."""
    match = _NAME.fullmatch(address) if isinstance(address, bytes) else None
    return (Cid(int(match[1])), Port(int(match[2]))) if match else None
