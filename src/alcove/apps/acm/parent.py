"""The enclave as the parent sees it: started and ended by nitro-cli, provisioned over its vsock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from alcove.apps.acm.rpc import pack_request, reply_reader
from alcove.apps.acm.settings import EnclaveSettings
from alcove.errors import AlcoveError, MachineError
from alcove.vsock.hybrid import connect

COMMAND_SECONDS: Final = 120.0  # systemd gives a service 90 to stop
ENCLAVE_NAME: Final = "alcove-acm"
REPLY_SECONDS: Final = 180.0  # an RSA-4096 key under emulation, and KMS
_CHUNK: Final = 65536
_HINT: Final = "hint: "
_BY_SIGNAL: Final = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class RpcError(AlcoveError):
    """The enclave denied a request.

    Args:
        name: AWS's name of the error.
        detail: The enclave's sentence.
    """

    def __init__(self, name: Any, detail: str) -> None:
        said = name if isinstance(name, str) else json.dumps(name)
        super().__init__(f"{said}: {detail}" if detail else said)
        self.name = name


def ask(vsock: Path, port: int, request: Any, seconds: float = REPLY_SECONDS) -> Any:
    """What is in the `Ok` of the reply to a request, which must come within some seconds.

    Raises:
        RpcError: The reply is an `Err`.
        MachineError: The enclave cannot be reached, or hung up.
        ProtocolError: It says something else.
    """
    try:
        with connect(vsock, port) as stream:
            stream.settimeout(seconds)
            stream.sendall(pack_request({"Alcove": request}))
            message, reply = reply_reader(), ...
            while reply is ...:
                data = stream.recv(_CHUNK)
                if not data:
                    raise MachineError("the enclave hung up without a reply")
                reply = message.receive(data)
    except OSError as error:
        raise MachineError(f"the enclave does not answer on port {port}: {error.strerror or error}") from None
    if not isinstance(reply, dict) or "Ok" not in reply:
        found = reply if isinstance(reply, dict) else {}
        raise RpcError(found.get("Err", "InternalError"), str(found.get("Detail", "")))
    return reply["Ok"]


class RunningEnclave:
    """An enclave that was started.

    Args:
        description: nitro-cli's JSON.
        vsock: Its hybrid socket.
    """

    def __init__(self, description: dict[str, Any], vsock: Path) -> None:
        self.id: Final = str(description["EnclaveID"])
        self.cid: Final = int(description["EnclaveCID"])
        self.pid: Final = int(description["ProcessID"])
        self.vsock: Final = vsock

    async def ended(self) -> None:
        """Return when it has ended: its process is what keeps the machine."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(fd, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)


class Launcher(Protocol):
    """Starts and ends the enclave."""

    def start(self, settings: EnclaveSettings, runtime: Path) -> RunningEnclave:
        """Start it, in Alcove's runtime directory; raises MachineError."""

    def end(self, enclave: RunningEnclave) -> None:
        """End it, if it runs."""


class NitroCli:
    """By nitro-cli, as AWS's agent does."""

    def start(self, settings: EnclaveSettings, runtime: Path) -> RunningEnclave:
        """See `Launcher`. An enclave that an earlier agent left behind is ended first."""
        for entry in _nitro("describe-enclaves"):
            if entry.get("EnclaveName") == ENCLAVE_NAME:
                _nitro("terminate-enclave", "--enclave-id", entry["EnclaveID"])
        description = _nitro(
            "run-enclave", "--eif-path", str(settings.image_path), "--cpu-count", str(settings.cpu_count), "--memory",
            str(settings.memory_mib), "--enclave-name", ENCLAVE_NAME,
        )  # fmt: skip
        return RunningEnclave(description, runtime / "enclaves" / description["EnclaveID"] / "vsock.sock")

    def end(self, enclave: RunningEnclave) -> None:
        """See `Launcher`."""
        with contextlib.suppress(MachineError):
            _nitro("terminate-enclave", "--enclave-id", enclave.id)


def _nitro(*arguments: str) -> Any:
    program = shutil.which("nitro-cli") or str(Path(sys.executable).with_name("nitro-cli"))  # beside ours
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, errors="replace", check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise _failure(arguments[0], done.returncode, done.stderr)
        return json.loads(done.stdout)
    except OSError as error:
        raise MachineError(f"nitro-cli cannot be run: {error.strerror}") from None
    except ValueError:
        raise MachineError(f"nitro-cli {arguments[0]} did not print JSON") from None


def _failure(verb: str, status: int, stderr: str) -> MachineError:
    """What nitro-cli said at last, and its hint."""
    if status < 0 or status in _BY_SIGNAL:
        return MachineError(f"nitro-cli {verb} was interrupted")
    lines = [line for line in stderr.splitlines() if line.strip()]
    hints = [line.removeprefix(_HINT) for line in lines if line.startswith(_HINT)]
    said = [line for line in lines if not line.startswith(_HINT)] or [f"status {status}"]
    return MachineError(f"nitro-cli {verb}: {said[-1]}", hint=hints[-1] if hints else None)


def run_quietly(command: Sequence[str]) -> None:
    """Run a program.

    Raises:
        MachineError: It cannot be run, fails, or does not end; its last words.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
        )  # fmt: skip
    except OSError as error:
        raise MachineError(f"{command[0]} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise MachineError(f"`{' '.join(command)}` did not end in {COMMAND_SECONDS:.0f} s and was killed") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise MachineError(f"`{' '.join(command)}` ended with {done.returncode}: {said[-1] if said else 'no words'}")
