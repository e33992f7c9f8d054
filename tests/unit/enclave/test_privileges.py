"""What a supervisor gives up, tried in a process that gave it up."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.forked import in_child

from alcove.enclave.landlock import confine, version
from alcove.enclave.privileges import Capability, confine_files, drop_capabilities

needs_landlock = pytest.mark.skipif(version() == 0, reason="this kernel has no Landlock")


def outcome(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"


def capabilities() -> dict[str, int]:
    lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(value, 16) for name, value in lines if name.startswith("Cap")}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to drop")
def test_only_what_is_kept_is_left() -> None:
    """In every set, and for every program that is executed: root or not, none comes back."""

    def drop() -> object:
        drop_capabilities([Capability.KILL])
        after = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
        effective = next(line.split()[1] for line in after.splitlines() if line.startswith("CapEff"))
        return [capabilities(), int(effective, 16)]

    own, executed = in_child(drop)
    kept = 1 << Capability.KILL
    assert own == {"CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": 0}
    assert executed in {0, kept}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to lose")
def test_privileges_do_not_come_back() -> None:
    """A second drop may only take away; user ids, mounts and the host's name are out of reach."""

    def attempts() -> object:
        drop_capabilities([Capability.KILL])
        drop_capabilities([Capability.KILL, Capability.SYS_NICE])
        return [
            outcome(lambda: os.setuid(1)),
            outcome(lambda: os.chown("/tmp", 1, 1)),
            outcome(lambda: socket.sethostname("x")),
            capabilities()["CapEff"],
        ]

    assert in_child(attempts) == ["PermissionError"] * 3 + [1 << Capability.KILL]


@needs_landlock
def test_files_outside_are_out_of_reach(tmp_path: Path) -> None:
    """What is written stays below the given directories; what is read, too; what is open stays open."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "secret").write_text("s")
    (tmp_path / "readable").write_text("r")

    def attempts() -> object:
        with (tmp_path / "others" / "secret").open() as already_open:
            confine(read=[tmp_path / "readable"], write=[tmp_path / "mine", tmp_path / "absent"])
            return {
                "make": outcome(lambda: (tmp_path / "mine" / "file").write_text("x")),
                "directory": outcome((tmp_path / "mine" / "new").mkdir),
                "remove": outcome((tmp_path / "mine" / "file").unlink),
                "read": outcome((tmp_path / "readable").read_text),
                "write what may be read": outcome(lambda: (tmp_path / "readable").write_text("x")),
                "read others": outcome((tmp_path / "others" / "secret").read_text),
                "write others": outcome(lambda: (tmp_path / "others" / "new").write_text("x")),
                "execute": outcome(lambda: os.execv("/bin/true", ["true"])),  # noqa: S606
                "open before": already_open.read(),
            }

    refused = "PermissionError"
    assert in_child(attempts) == {
        "make": "done",
        "directory": "done",
        "remove": "done",
        "read": "done",
        "write what may be read": refused,
        "read others": refused,
        "write others": refused,
        "execute": refused,
        "open before": "s",
    }


@pytest.mark.skipif(version() < 4, reason="this kernel's Landlock knows no sockets")
def test_no_tcp_but_unix_sockets() -> None:
    """A supervisor talks to sockets on this machine by their paths; it has no business on a network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        def attempts() -> object:
            confine(read=[], write=[])
            first, second = socket.socketpair()
            first.send(b"x")
            return [
                outcome(lambda: socket.create_connection(address, 5)),
                outcome(lambda: socket.create_server(("127.0.0.1", 0))),
                second.recv(1).decode(),
            ]

        assert in_child(attempts) == ["PermissionError", "PermissionError", "x"]


@needs_landlock
def test_a_confined_supervisor_still_finds_its_code(tmp_path: Path) -> None:
    """Modules that are imported late, randomness, /proc and its own directories; but not /etc."""

    def attempts() -> object:
        modules = ("sqlite3", "cbor2", "cryptography.x509", "alcove.sdk")
        for name in modules:
            sys.modules.pop(name, None)
        confine_files(write=[tmp_path])
        for name in modules:
            __import__(name)
        return [
            outcome(lambda: Path("/dev/urandom").open("rb").close()),
            outcome(lambda: Path("/dev/null").open("wb").close()),
            outcome(lambda: Path("/proc/self/status").read_text()),
            outcome(lambda: (tmp_path / "record").write_text("x")),
            outcome(lambda: Path("/etc/passwd").read_text()),
        ]

    assert in_child(attempts) == ["done"] * 4 + ["PermissionError"]
