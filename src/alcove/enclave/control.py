"""The supervisor's control socket: one JSON line in, one JSON line out.

Everybody may describe; what more there is, only the enclave's owner and root may ask for (cli.md §3.4).
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alcove.devices.unix_path import socket_address
from alcove.errors import MachineError

if TYPE_CHECKING:
    import asyncio

ANSWER_SECONDS: Final = 3.0  # cli.md §2: an enclave process that takes longer counts as failed
_MAX_LINE: Final = 1024
_MAX_ANSWER: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Command:
    """What one word on the socket does: `answer` gives the JSON; `for_all` lets every local user ask."""

    answer: Callable[[], dict[str, Any]]
    for_all: bool = False


class NobodyListensError(MachineError):
    """Nobody answers at a supervisor's socket: it is ending, or has ended (E39)."""


class ControlServer:
    """Serve commands.

    Args:
        listener: The socket, listening; every local user may connect. It is closed with the server.
        commands: By the word that asks for them.
    """

    def __init__(self, listener: socket.socket, commands: Mapping[str, Command]) -> None:
        self._listener = listener
        self._commands = commands
        self._server: asyncio.Server | None = None
        self._owner = os.getuid()  # as it was at the start

    async def start(self) -> None:
        """Begin to answer; who has connected before is answered too."""
        import asyncio  # noqa: PLC0415 - slow to import, and those who only ask have no loop

        self._server = await asyncio.start_unix_server(self._client, sock=self._listener, limit=_MAX_LINE)

    def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()
        self._listener.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import asyncio  # noqa: PLC0415

        try:
            line = await asyncio.wait_for(reader.readline(), ANSWER_SECONDS)
            answer = self._answer(line, _peer_uid(writer.get_extra_info("socket")))
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError, TimeoutError):
            pass
        finally:
            writer.close()

    def _answer(self, line: bytes, uid: int) -> dict[str, Any]:
        word = line.strip().decode("ascii", "replace")
        command = self._commands.get(word)
        if command is None:
            return {"error": "the command is not known"}
        if not command.for_all and uid not in (0, self._owner):
            return {"error": f"only the enclave's owner and root may ask for `{word}`"}
        return command.answer()


def ask(path: Path, command: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """Ask a supervisor.

    Raises:
        MachineError: E39 without an answer in time, E38 when it refuses.
        NobodyListensError: E39 when the supervisor is not there, or ends before it has answered.
    """
    silence, hint = "the enclave process did not answer", "try again; `describe-enclaves` shows what runs"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            with socket_address(path) as address:
                connection.connect(address)
            connection.sendall(command.encode() + b"\n")
            answer = _read_all(connection)
        if not answer:
            raise ConnectionResetError
        decoded: dict[str, Any] = json.loads(answer)
    except (ConnectionError, FileNotFoundError):
        raise NobodyListensError(silence, code="E39", hint=hint) from None
    except (OSError, ValueError):
        raise MachineError(silence, code="E39", hint=hint) from None
    if "error" in decoded:
        raise MachineError(f"the enclave process refused: {decoded['error']}", code="E38")
    return decoded


def _read_all(connection: socket.socket) -> bytes:
    data = bytearray()
    while chunk := connection.recv(65536):
        data += chunk
        if len(data) > _MAX_ANSWER:
            raise OSError("the answer is too long")
    return bytes(data)


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)
