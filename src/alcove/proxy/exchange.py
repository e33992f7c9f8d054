"""Read the head of a message, and refuse politely: what both ends of the egress proxy need."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

from alcove.errors import ProtocolError
from alcove.proxy.http_head import END, MAX_HEAD

HEAD_SECONDS: Final = 20.0  # for a whole head; slow senders do not hold a place for longer
BODY_SECONDS: Final = 5.0
MAX_REASON: Final = 4096  # of an error's body
_DRAIN_SECONDS: Final = 1.0


async def read_head(stream: socket.socket, seconds: float = HEAD_SECONDS) -> tuple[bytes, bytes]:
    """The head of a message, and what came behind it already.

    Raises:
        ProtocolError: It is too long, too slow, or ends early.
        OSError: The peer broke off.
    """
    loop, data, start = asyncio.get_running_loop(), b"", 0
    try:
        async with asyncio.timeout(seconds):
            while (end := data.find(END, start)) < 0:
                if len(data) >= MAX_HEAD:
                    raise ProtocolError(f"the head of the message has more than {MAX_HEAD} bytes")
                start = max(len(data) - len(END) + 1, 0)
                chunk = await loop.sock_recv(stream, MAX_HEAD - len(data))
                if not chunk:
                    raise ProtocolError("the peer hung up before the end of its message's head")
                data += chunk
    except TimeoutError:
        raise ProtocolError("the head of the message did not come in time") from None
    end += len(END)
    return data[:end], data[end:]


async def read_reason(stream: socket.socket, begun: bytes) -> str:
    """The first line of an error's body, as far as it comes."""
    loop, data = asyncio.get_running_loop(), begun
    with contextlib.suppress(OSError):  # TimeoutError is one
        async with asyncio.timeout(BODY_SECONDS):
            while len(data) < MAX_REASON and b"\n" not in data:
                chunk = await loop.sock_recv(stream, MAX_REASON)
                if not chunk:
                    break
                data += chunk
    line = data[:MAX_REASON].split(b"\n")[0].decode(errors="replace")
    return "".join(each if each.isprintable() else "?" for each in line)


async def refuse(stream: socket.socket, answer: bytes) -> None:
    """Send an answer and end, so that it arrives: what the peer still sends is taken for a moment.

    A socket that is closed with unread data resets the connection, and the answer may be lost with it.
    """
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            await loop.sock_sendall(stream, answer)
            stream.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(stream, 65536):
                pass
