"""An enclave that lives and does nothing: nginx's handshakes fail instead of waiting, and another takes its place."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.vm.test_acm import PATIENCE, Served, eventually, example, pytestmark, supervisor_of

__all__ = ["pytestmark"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    module = example()
    with tempfile.TemporaryDirectory(prefix="alcove-acm-") as made:
        directory = Path(made)
        directory.chmod(0o711)
        stack = module.Stack(directory, module.free_port())
        try:
            stack.up()
            yield Served(stack, {})
        finally:
            stack.down()


def machine_of(supervisor: int) -> list[int]:
    """The processes of an enclave's virtual machine."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.stdout.splitlines())}
    found = [supervisor]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def test_a_machine_that_is_stopped_is_replaced(served: Served) -> None:
    """The worker's request is refused while the machine stands still, and the agent starts another."""
    before: Any = served.stack.status()
    machine = machine_of(supervisor_of(served))
    assert machine
    assert served.get()[0]
    for pid in machine:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ssl.SSLError, match="alert internal error"):  # and not a timeout
        served.get(seconds=PATIENCE)

    def back() -> bool:
        try:
            return bool(served.get(seconds=5)[0]) and served.stack.served()
        except OSError:
            return False

    eventually(back, "the agent did not bring the service back")
    assert served.stack.status()["enclave"]["id"] != before["enclave"]["id"]
    assert "did not answer for 10 s" in (served.stack.directory / "agent.log").read_text()
