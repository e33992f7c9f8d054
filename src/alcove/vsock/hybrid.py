"""Streams over the parent's Unix sockets (devices.md §5.6)."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Final

from alcove.enclave.paths import EnclavePaths, Paths
from alcove.types import HOST_CID, PARENT_CID, Port
from alcove.vsock import unix_stream

HANDSHAKE_SECONDS: Final = 30.0  # the device gives up two after asking the guest, and a crowd of callers takes turns
_LOCAL_CID: Final = 1  # VMADDR_CID_LOCAL, vsock(7)
_LONGEST_ANSWER: Final = 32  # OK <number>\n


def connect(path: Path, port: int, seconds: float = HANDSHAKE_SECONDS) -> socket.socket:
    """A blocking stream to the port of the enclave whose hybrid socket this is.

    Args:
        path: The socket.
        port: The enclave's port.
        seconds: For each step of the handshake; the stream has no time limit afterwards.

    Raises:
        ConnectionError: Nothing listens on the port, or not yet.
        OSError: The socket cannot be used.
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        unix_stream.connect(stream, path, seconds)
        stream.settimeout(seconds)
        stream.sendall(b"CONNECT %d\n" % port)
        # byte by byte: what follows the line is the enclave's
        line = b""
        while not _complete(line):
            line += stream.recv(1) or _hung_up()
        stream.settimeout(None)
    except BaseException:
        stream.close()
        raise
    return stream


async def connect_async(path: Path, port: int, seconds: float = HANDSHAKE_SECONDS) -> socket.socket:
    """The same without blocking; the stream does not block either.

    Raises:
        ConnectionError: Nothing listens on the port, or not yet.
        OSError: The socket cannot be used.
    """
    loop = asyncio.get_running_loop()
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        async with asyncio.timeout(seconds):
            await unix_stream.connect_async(stream, path)
            await loop.sock_sendall(stream, b"CONNECT %d\n" % port)
            line = b""
            while not _complete(line):
                line += await loop.sock_recv(stream, 1) or _hung_up()
                line += _rest_of_line(stream, line)
    except BaseException:
        stream.close()
        raise
    return stream


def _rest_of_line(stream: socket.socket, line: bytes) -> bytes:
    """What is there already of the line: it comes in one piece, and a turn of the loop for each byte would be slow."""
    try:
        ahead = stream.recv(_LONGEST_ANSWER - len(line), socket.MSG_PEEK) if not line.endswith(b"\n") else b""
        return stream.recv(ahead.find(b"\n") + 1 or len(ahead)) if ahead else b""
    except BlockingIOError:
        return b""


def _complete(line: bytes) -> bool:
    if not line.endswith(b"\n") and len(line) < _LONGEST_ANSWER:
        return False
    if not line.startswith(b"OK "):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "the answer is not that of an enclave's socket")
    return True


def _hung_up() -> bytes:
    raise ConnectionRefusedError(errno.ECONNREFUSED, "nothing listens there")


def socket_of(cid: int, port: int) -> tuple[Path, bool]:
    """The socket that leads to an address, and whether it has to be told the port.

    Raises:
        OSError: ENODEV: no enclave has that CID.
    """
    paths = Paths.from_environment()
    if cid in (_LOCAL_CID, HOST_CID, PARENT_CID):
        return paths.port(Port(port)), False
    directory = paths.cids / str(cid)
    if not directory.exists():
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), f"vsock CID {cid}")
    return EnclavePaths(directory).vsock, True
