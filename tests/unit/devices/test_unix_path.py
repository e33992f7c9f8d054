"""Socket addresses for long paths."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from alcove.devices.unix_path import socket_address
from alcove.errors import MachineError


def test_a_long_path_binds_and_connects(tmp_path: Path) -> None:
    """A path over 107 bytes works for both ends."""
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    path = directory / "vsock.sock_4294967295"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with socket_address(path) as address:
            server.bind(address)
        server.listen()
        with socket_address(path) as address:
            client.connect(address)
        assert path.is_socket()


def test_a_short_path_is_used_as_it_is(tmp_path: Path) -> None:
    """Nothing is opened for it."""
    with socket_address(Path("/run/x.sock")) as address:
        assert address == "/run/x.sock"


def test_a_long_name_is_refused_with_a_hint(tmp_path: Path) -> None:
    """No trick helps a file name of 120 bytes."""
    with pytest.raises(MachineError) as caught, socket_address(tmp_path / ("n" * 120)):
        pass
    assert caught.value.hint
