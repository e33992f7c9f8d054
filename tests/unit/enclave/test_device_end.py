"""A device that breaks ends its enclave, with its reason in the list of those that have ended."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from alcove.enclave import ended
from alcove.enclave.config import RunRequest
from alcove.enclave.paths import Paths
from alcove.enclave.record import Record
from alcove.enclave.supervisor import Supervisor


def outcome(directory: Path, closings: list[tuple[str, str | None]]) -> list[dict[str, Any]]:
    """What is written down when an enclave's devices close like this."""
    paths = Paths(directory, directory, directory)

    async def live() -> None:
        supervisor = Supervisor(RunRequest("app.eif", 64, cpu_count=1), paths)
        supervisor._record = Record("i-1-enc2", "app", 16, (0,), 64, 1, debug_mode=False)
        for name, reason in closings:
            supervisor._device_closed(name)(reason)
        await asyncio.wait_for(supervisor.serve(), 0.2)

    asyncio.run(live())
    return ended.load(paths)


def test_the_first_reason_is_the_enclaves(tmp_path: Path) -> None:
    """One enclave, one end, one reason; that QEMU hangs up on the other device then adds nothing."""
    (entry,) = outcome(tmp_path, [("NSM", "virtqueue: descriptor 9 of 2"), ("vsock", None), ("vsock", "late")])
    assert entry["Cause"] == "machine failed"
    assert entry["Reason"] == "the NSM device broke: virtqueue: descriptor 9 of 2"
    assert entry["ExitStatus"] is None


def test_a_device_that_is_hung_up_on_ends_nothing(tmp_path: Path) -> None:
    """End of stream comes with QEMU's end, which has a reason of its own."""
    with pytest.raises(TimeoutError):
        outcome(tmp_path, [("NSM", None), ("vsock", None)])
    assert ended.load(Paths(tmp_path, tmp_path, tmp_path)) == []
