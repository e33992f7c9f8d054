"""A device that breaks ends its enclave, with its reason in the list of those that have ended."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alcove.attestation.attester import Attester
from alcove.enclave import ended
from alcove.enclave.config import RunRequest
from alcove.enclave.identity import ParentSource, new_enclave_id
from alcove.enclave.paths import Paths
from alcove.enclave.peripherals import Peripherals
from alcove.enclave.record import Record
from alcove.enclave.supervisor import Supervisor
from alcove.types import Cid

GARBAGE = b"\xff" * 12  # a vhost-user header of no version


@pytest.fixture
def paths() -> Iterator[Paths]:
    with tempfile.TemporaryDirectory() as name:
        yield Paths(Path(name, "state"), Path(name), Path(name, "config"))


def outcome(paths: Paths, sent: dict[str, bytes], seconds: float = 60.0) -> list[dict[str, Any]]:
    """What is written down when each of these front-ends sends this and hangs up, in this order."""
    parent = ParentSource(paths)
    attester = Attester(parent.load(), new_enclave_id(parent.load().instance_id))
    files = paths.enclave(attester.enclave_id)
    files.directory.mkdir(parents=True)

    async def live() -> None:
        loop = asyncio.get_running_loop()
        supervisor = Supervisor(RunRequest("app.eif", 64, cpu_count=1), paths)
        supervisor._record = Record(attester.enclave_id, "app", 16, (0,), 64, 1, debug_mode=False)
        devices = Peripherals(
            loop, paths, files, Cid(16), pcrs={}, attester=attester, parent=parent, on_broken=supervisor._device_broke
        )
        supervisor._devices = devices
        try:
            for name, data in sent.items():
                with socket.socket(socket.AF_UNIX) as front_end:
                    front_end.connect(str(files.directory / name))
                    front_end.sendall(data)
                    front_end.shutdown(socket.SHUT_WR)
                    front_end.setblocking(False)
                    assert await asyncio.wait_for(loop.sock_recv(front_end, 1), 60) == b""  # the device has let go
            await asyncio.wait_for(supervisor.serve(), seconds)
        finally:
            devices.close()

    asyncio.run(live())
    return ended.load(paths)


def test_the_first_reason_is_the_enclaves(paths: Paths) -> None:
    """One enclave, one end, one reason; that the other device breaks too adds nothing."""
    (entry,) = outcome(paths, {"nsm.dev": GARBAGE, "vsock.dev": GARBAGE})
    assert entry["Cause"] == "machine failed"
    assert entry["Reason"].startswith("the NSM device broke: vhost-user: ")
    assert entry["ExitStatus"] is None


def test_a_device_that_is_hung_up_on_ends_nothing(paths: Paths) -> None:
    """End of stream comes with QEMU's end, which has a reason of its own."""
    with pytest.raises(TimeoutError):
        outcome(paths, {"nsm.dev": b"", "vsock.dev": b""}, 1.0)
    assert ended.load(paths) == []


def test_devices_leave_no_socket_open(paths: Paths) -> None:
    """Whatever becomes of them, every listener is closed: nobody can connect any more."""
    with pytest.raises(TimeoutError):
        outcome(paths, {"nsm.dev": b""}, 1.0)
    (directory,) = paths.enclaves.iterdir()
    sockets = [path for path in directory.iterdir() if path.is_socket()]
    ports = {f"vsock.sock_{port}" for port in (9000, 9037, 9038)}
    assert {path.name for path in sockets} == {"nsm.dev", "vsock.dev"} | ports
    for path in sockets:
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect(str(path))
