"""The supervisor's process: a request on standard input, one line of JSON on standard output, then silence.

The process that asks keeps standard input open until it has its answer. If it goes away before the enclave is
up (Ctrl-C, a closed terminal), the start is undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from typing import Any

from alcove.attestation.private_memory import forbid_core_dumps
from alcove.devices.vsock.backend import RESERVED_DESCRIPTORS
from alcove.devices.vsock.muxer import MAX_CONNECTIONS
from alcove.enclave.config import RunRequest, decode_request
from alcove.enclave.paths import Paths
from alcove.enclave.supervisor import Supervisor, error_json
from alcove.errors import AlcoveError, MachineError


async def _boot_while_watched(supervisor: Supervisor) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()
    loop.add_reader(0, lambda: None if os.read(0, 1) or gone.done() else gone.set_result(None))
    boot = asyncio.ensure_future(supervisor.boot())
    either: set[asyncio.Future[Any]] = {boot, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not boot.done():
            boot.cancel()
        return await boot
    finally:
        loop.remove_reader(0)


def _answer(value: dict[str, Any]) -> None:
    line = json.dumps(value).encode() + b"\n"
    with contextlib.suppress(BrokenPipeError):  # nobody is waiting any more
        os.write(1, line)


async def _main(request: RunRequest) -> int:
    supervisor = Supervisor(request, Paths.from_environment())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, supervisor.terminate)
    loop.add_signal_handler(signal.SIGINT, supervisor.terminate)
    try:
        result = await _boot_while_watched(supervisor)
    except AlcoveError as error:
        _answer(error_json(error))
        return error.exit_status
    except asyncio.CancelledError:
        return 1
    _answer(result)
    _detach()
    try:
        await supervisor.serve()
    finally:
        supervisor.close()
    return 0


def _detach() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _allow_connections() -> None:
    """A descriptor for every vsock connection, as far as the hard limit goes; beyond, guests get RST."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, ceiling), hard))


def main() -> int:
    """Run one enclave from start to end."""
    forbid_core_dumps()  # leaf keys must not end up in a core file
    _allow_connections()
    try:
        request = decode_request(sys.stdin.buffer.readline())
        return asyncio.run(_main(request))
    except OSError as error:
        _answer(error_json(MachineError(f"cannot use `{error.filename}`: {error.strerror}", code="E19")))
        return 19


if __name__ == "__main__":
    sys.exit(main())
