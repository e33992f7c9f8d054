"""The server under clients that do not mean well: they end themselves, and nobody else."""

from __future__ import annotations

import socket
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.apps.acm_device import PIN, ec_key, serving, token, unix_address

from alcove.apps.acm import message, server
from alcove.apps.acm.calls import BY_NAME
from alcove.apps.acm.cryptoki import Cka, Ckm, Cko, Ckr, Refused
from alcove.apps.acm.message import Frame
from alcove.apps.acm.token import Slots
from alcove.apps.acm.values import Attribute, Mechanism
from alcove.errors import MachineError, UsageError

SECONDS = 30.0


class Wire:
    """A client over a socket: calls one by one, or any bytes."""

    def __init__(self, path: Path, version: int = 0) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        self.socket.connect(str(path))
        self.version, self._code = version, 0x10
        self.stream = self.socket.makefile("rb")

    def close(self) -> None:
        """Hang up."""
        self.stream.close()
        self.socket.close()

    def begin(self) -> int:
        """Version and C_Initialize; the version that was agreed."""
        self.socket.sendall(bytes([self.version]))
        agreed = self.stream.read(1)[0]
        self("C_Initialize", message.HANDSHAKE, 0, b"\0")
        return agreed

    def frame(self, name: str, *arguments: Any) -> bytes:
        """A request as bytes, with the next code."""
        self._code += 1
        body = message.pack_request(BY_NAME[name], arguments, new=self.version >= 2)
        return Frame(self._code, body, b"client").pack()

    def answer(self) -> tuple[int, bytes]:
        """The code and the body of the next answer."""
        header = self.stream.read(12)
        if len(header) < 12:
            raise ConnectionError("the server has hung up")
        code, options, length = (int.from_bytes(header[at : at + 4]) for at in (0, 4, 8))
        assert options == 0
        return code, self.stream.read(length)

    def __call__(self, name: str, *arguments: Any) -> Any:
        """The results of a call; one alone without its tuple."""
        self.socket.sendall(self.frame(name, *arguments))
        code, body = self.answer()
        assert code == self._code
        results = message.parse_response(body, BY_NAME[name])
        return results[0] if len(results) == 1 else results

    def ended(self) -> bool:
        """Whether the server has hung up, without another byte."""
        try:
            return self.stream.read(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture(scope="module")
def device() -> Slots:
    slots = Slots(time.monotonic)
    slots.add(token("t", [ec_key()]))
    return slots


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("p11")


@pytest.fixture(scope="module")
def log(device: Slots, directory: Path) -> Iterator[list[str]]:
    with serving(device, unix_address(directory)) as lines:
        yield lines


@pytest.fixture
def path(log: list[str], directory: Path) -> Path:
    return directory / "p11.sock"


@pytest.fixture
def wire(path: Path) -> Iterator[Wire]:
    with closing(Wire(path)) as made:
        made.begin()
        yield made


def signs(wire: Wire) -> bool:
    """Whether a whole conversation goes well."""
    session = wire("C_OpenSession", 0, 4)
    wire("C_Login", session, 1, PIN)
    wire("C_FindObjectsInit", session, (Attribute(Cka.CLASS, int(Cko.PRIVATE_KEY)),))
    (key,) = wire("C_FindObjects", session, 9)
    wire("C_FindObjectsFinal", session)
    wire("C_SignInit", session, Mechanism(Ckm.ECDSA), key)
    signature: bytes = wire("C_Sign", session, bytes(32), 512)
    wire("C_CloseSession", session)
    return len(signature) == 64


@pytest.mark.parametrize(("offered", "agreed"), [(0, 0), (1, 1), (2, 2), (3, 2), (255, 2)])
def test_the_lower_version_is_agreed(path: Path, offered: int, agreed: int) -> None:
    """acm.md §6.1: and mechanisms come in the form of the version that the client offered."""
    with closing(Wire(path, offered)) as wire:
        assert wire.begin() == agreed
        assert signs(wire)


def test_requests_may_come_all_at_once(wire: Wire) -> None:
    """A hundred requests in one write, and in single bytes: a hundred answers with their codes, in order."""
    frames = b"".join(wire.frame("C_GetSlotList", 1, 9) for _ in range(100))
    wire.socket.sendall(frames)
    codes = [wire.answer()[0] for _ in range(100)]
    assert codes == list(range(codes[0], codes[0] + 100))
    for byte in wire.frame("C_GetSlotList", 1, None):
        wire.socket.sendall(bytes([byte]))
    assert wire.answer()[0] == codes[-1] + 1


@pytest.mark.parametrize(
    "frame",
    [
        b"\0" * 12,
        b"\0\0\0\1" + b"\xff" * 8,
        Frame(1, b"").pack(),
        Frame(1, b"\0\0\0\5\0\0\0\1u").pack(),
        Frame(1, message.pack_request(BY_NAME["C_Finalize"], (), new=False) + b"\0").pack(),
        Frame(1, b"\0\0\0\0\0\0\0\0").pack(),
    ],
)
def test_a_malformed_frame_ends_its_connection(path: Path, wire: Wire, log: list[str], frame: bytes) -> None:
    """One line in the log, no answer; another connection goes on."""
    before = len(log)
    with closing(Wire(path)) as other:
        other.begin()
        wire.socket.sendall(frame)
        assert wire.ended()
        assert signs(other)
    assert len(log) == before + 1
    assert log[-1].startswith("a connection was ended: ")


def test_unknown_calls_and_mechanisms_are_answered(wire: Wire) -> None:
    """The connection goes on after a call from the future and a mechanism that is not offered."""
    for number, ckr in ((90, Ckr.FUNCTION_NOT_SUPPORTED), (2**32 - 1, Ckr.FUNCTION_NOT_SUPPORTED)):
        wire.socket.sendall(Frame(5, number.to_bytes(4) + b"\0\0\0\1u" + bytes(8)).pack())
        code, body = wire.answer()
        assert (code, body) == (5, message.pack_error(ckr))
    session = wire("C_OpenSession", 0, 4)
    with pytest.raises(Refused) as caught:
        wire("C_SignInit", session, Mechanism(Ckm.RSA_PKCS), 1)
    assert caught.value.ckr is Ckr.USER_NOT_LOGGED_IN
    assert signs(wire)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), version=st.integers(0, 3))
def test_any_bytes_leave_the_others_alone(path: Path, data: bytes, version: int) -> None:
    """Whatever is sent, in or out of a frame, the next client is served."""
    for stream in (data, Frame(9, data).pack()):
        with closing(Wire(path, version)) as hostile:
            hostile.begin()
            hostile.socket.sendall(stream)
            hostile.socket.shutdown(socket.SHUT_WR)
            while hostile.socket.recv(1 << 16):
                pass
    with closing(Wire(path)) as wire:
        wire.begin()
        assert signs(wire)


def test_a_client_that_does_not_read_is_not_answered_without_end(path: Path) -> None:
    """Its requests wait while its answers do; meanwhile others are served, and it gets every answer when it reads."""
    with closing(Wire(path)) as flood, closing(Wire(path)) as other:
        flood.begin()
        other.begin()
        session = flood("C_OpenSession", 0, 4)
        request = flood.frame("C_GenerateRandom", session, 4096)
        flood.socket.setblocking(False)
        sent = 0
        try:
            while sent < 1 << 26:
                sent += flood.socket.send(request * 64)
        except BlockingIOError:
            pass
        assert signs(other)
        flood.socket.settimeout(SECONDS)
        for _ in range(sent // len(request)):
            assert len(flood.answer()[1]) > 4096
        assert sent < 1 << 26


def test_connections_are_limited(path: Path, monkeypatch: pytest.MonkeyPatch, wire: Wire) -> None:
    """One more than the limit is closed at once; those that were there go on."""
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    with closing(Wire(path)) as more:
        assert more.ended()
    assert signs(wire)


def test_a_client_that_says_nothing_is_let_go(device: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its first request is whole a connection has limited time; one that made a request may rest."""
    with serving(device, unix_address(tmp_path)), closing(Wire(tmp_path / "p11.sock")) as resting:
        resting.begin()
        monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 0.3)
        with closing(Wire(tmp_path / "p11.sock")) as silent:
            silent.socket.sendall(b"\0")
            assert silent.stream.read() in {b"\0", b""}  # and the end
        assert signs(resting)


def test_the_socket_is_the_owners(path: Path) -> None:
    """Mode 0600: who may connect may try PINs."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_tcp_is_served_too(device: Slots) -> None:
    """For tests and other hosts' tunnels; any free port of the loopback."""
    listener = server.listen("tcp:127.0.0.1:0")
    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()


@pytest.mark.parametrize("address", ["", "unix:/tmp/x", "unix:path=relative", "tcp:localhost", "vsock:cid=3;port=1"])
def test_an_address_is_checked(address: str) -> None:
    """One sentence and a hint with the three forms."""
    with pytest.raises(UsageError, match="is no address") as caught:
        server.listen(address)
    assert "unix:path=" in str(caught.value.hint)


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/x.sock", "tcp:127.0.0.1:99999"])
def test_an_address_that_cannot_be_had(address: str) -> None:
    """One sentence with the reason."""
    with pytest.raises(MachineError, match="cannot listen at"):
        server.listen(address)
