"""Enclaves' connections on their way to a program on the kernel's own vsock.

The forwarding is real; where it would connect by AF_VSOCK, it connects to a Unix socket, as not every kernel has the
loopback.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from alcove.errors import MachineError
from alcove.hostvsock import forward


def test_without_a_loopback_it_says_what_to_do(tmp_path: Path) -> None:
    """The hint names the module, and the command that needs none."""
    with pytest.raises(MachineError) as caught:
        forward.check_loopback(tmp_path / "vsock_loopback")
    assert caught.value.hint
    assert "modprobe vsock_loopback" in caught.value.hint
    (tmp_path / "vsock_loopback").mkdir()
    forward.check_loopback(tmp_path / "vsock_loopback")


def test_connections_are_passed_on(tmp_path: Path) -> None:
    """Both ways with half-close, several at once; a server that is not there closes only that connection."""
    port, server = tmp_path / "80.sock", tmp_path / "server"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async def dial() -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(stream, str(server))
        return stream

    async def ask(text: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(port)
        writer.write(text)
        writer.write_eof()
        try:
            return await reader.read()
        except ConnectionResetError:  # closed with our bytes unread
            return b""
        finally:
            writer.close()

    async def play() -> list[bytes]:
        ready = asyncio.Event()
        serving = asyncio.create_task(forward.serve(port, dial, on_listening=ready.set))
        await ready.wait()
        said = [await ask(b"nobody yet")]
        listener = await asyncio.start_unix_server(answer, server)
        said += await asyncio.gather(*(ask(b"guest %d" % number) for number in range(5)))
        listener.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        return said

    said = asyncio.run(asyncio.wait_for(play(), 60))
    assert said == [b"", *(b"GUEST %d" % number for number in range(5))]
    assert not port.exists()
