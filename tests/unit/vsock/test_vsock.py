"""`alcove.vsock` over Unix sockets, against the vsock device itself where a guest is needed."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alcove import vsock
from alcove.devices.vsock.handshake import peer_name
from alcove.enclave.paths import Paths
from alcove.errors import MachineError, UsageError
from alcove.types import Cid, Port
from alcove.vsock import aio
from alcove.vsock.unix_listener import TakenError, listening

CID, PORT = 16, 5000


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own."""
    monkeypatch.setenv("ALCOVE_RUN", str(tmp_path / "run"))
    monkeypatch.delenv("ALCOVE_VSOCK", raising=False)
    (tmp_path / "run").mkdir(mode=0o755)
    return tmp_path / "run"


@pytest.fixture
def enclave(run: Path) -> Iterator[Path]:
    """The hybrid socket of CID 16: it accepts port 5000, says `hello`, and answers in upper case at the end."""
    home = run / "enclaves" / "i-1"
    home.mkdir(parents=True)
    (run / "cid").mkdir()
    (run / "cid" / str(CID)).symlink_to(home)
    listener = socket.create_server(str(home / "vsock.sock"), family=socket.AF_UNIX)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                command = b""
                while not command.endswith(b"\n"):
                    command += client.recv(1)
                if command == b"CONNECT 5000\n":
                    client.sendall(b"OK 1073741824\nhello ")  # the guest's first bytes right behind the answer
                    client.sendall(read_all(client).upper())

    threading.Thread(target=serve, daemon=True).start()
    yield home / "vsock.sock"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def dial_as_guest(run: Path, port: int) -> socket.socket:
    """What the vsock device does for a guest of CID 16 that connects from its port 1234."""
    stream = socket.socket(socket.AF_UNIX)
    stream.bind(peer_name(Cid(CID), Port(1234), os.urandom(8).hex()))
    stream.connect(str(run / "vsock" / f"{port}.sock"))
    return stream


def read_all(stream: socket.socket) -> bytes:
    return b"".join(iter(lambda: stream.recv(1 << 16), b""))


def test_an_enclave_that_does_not_answer_has_the_callers_time(run: Path) -> None:
    """A supervisor that accepts and says nothing: `timeout` is for the whole way to the enclave's port."""
    home = run / "enclaves" / "i-1"
    home.mkdir(parents=True)
    (run / "cid").mkdir()
    (run / "cid" / str(CID)).symlink_to(home)
    with socket.create_server(str(home / "vsock.sock"), family=socket.AF_UNIX):
        with pytest.raises(TimeoutError):
            vsock.connect((CID, PORT), timeout=0.05)
        with pytest.raises(TimeoutError):
            asyncio.run(aio.connect((CID, PORT), timeout=0.05))


@pytest.fixture
def crowded(run: Path) -> Iterator[socket.socket]:
    """A listener on the parent's port whose queue is full."""
    (run / "vsock").mkdir()
    path = str(run / "vsock" / f"{PORT}.sock")
    with socket.create_server(path, family=socket.AF_UNIX, backlog=0) as listener, socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
        yield listener


def connect_blocking(seconds: float) -> socket.socket:
    return vsock.connect((3, PORT), timeout=seconds)


def connect_async(seconds: float) -> socket.socket:
    return asyncio.run(aio.connect((3, PORT), timeout=seconds))


@pytest.mark.parametrize("connect", [connect_blocking, connect_async])
def test_who_comes_to_a_full_queue_waits_for_a_place(
    crowded: socket.socket, connect: Callable[[float], socket.socket]
) -> None:
    """connect(2) does not wait by itself; nobody is told of a connection that is none."""
    with pytest.raises(TimeoutError):
        connect(0.05)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(connect, 60)
        with pytest.raises(TimeoutError):
            coming.result(0.1)
        crowded.accept()[0].close()
        with coming.result(60) as stream, crowded.accept()[0] as peer:
            peer.sendall(b"your turn")
            assert stream.recv(100) == b"your turn"


def test_a_full_queue_is_somebody_s(crowded: socket.socket, run: Path) -> None:
    """Its socket is not taken for one that nobody has: who wants to listen there hears that it is taken."""
    with pytest.raises(TakenError), listening(run / "vsock" / f"{PORT}.sock"):
        pass
    assert crowded.accept()


def test_the_transport_follows_the_machine(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hybrid where there is a runtime directory; the kernel's elsewhere, if it has any; a variable decides."""
    assert vsock.transport() is vsock.Transport.HYBRID
    elsewhere = {"ALCOVE_RUN": str(tmp_path / "none")}
    monkeypatch.setattr("alcove.vsock.transports._kernel_has_vsock", lambda: True)
    assert vsock.transport(elsewhere) is vsock.Transport.KERNEL
    assert vsock.transport(elsewhere | {"ALCOVE_VSOCK": "hybrid"}) is vsock.Transport.HYBRID
    monkeypatch.setattr("alcove.vsock.transports._kernel_has_vsock", lambda: False)
    with pytest.raises(MachineError, match="no vsock here"):
        vsock.transport(elsewhere)
    with pytest.raises(UsageError, match="ALCOVE_VSOCK"):
        vsock.transport({"ALCOVE_VSOCK": "tcp"})


def test_an_enclave_is_reached_by_its_cid(enclave: Path) -> None:
    """A plain socket: the guest's first bytes are there, and half-close works."""
    with vsock.connect((CID, PORT)) as stream:
        assert stream.gettimeout() is None
        stream.sendall(b"all of it")
        stream.shutdown(socket.SHUT_WR)
        assert read_all(stream) == b"hello ALL OF IT"


def test_an_enclave_is_reached_by_asyncio(enclave: Path) -> None:
    """Asyncio's streams over the same, `write_eof` included."""

    async def story() -> bytes:
        reader, writer = await aio.open_connection((CID, PORT))
        writer.write(b"and")
        writer.write_eof()
        data = await reader.read()
        writer.close()
        return data

    assert asyncio.run(story()) == b"hello AND"


def test_what_is_not_there_is_an_error_of_sockets(enclave: Path) -> None:
    """As with the kernel's sockets: refused when nobody listens, ENODEV for an unknown CID."""
    for address in ((CID, 1), (vsock.PARENT_CID, 77)):
        with pytest.raises(ConnectionRefusedError):
            vsock.connect(address)
        with pytest.raises(ConnectionRefusedError):
            asyncio.run(aio.connect(address))
    with pytest.raises(OSError, match="CID 99") as caught:
        vsock.connect((99, PORT))
    assert caught.value.errno == errno.ENODEV
    for address in ((CID, -1), (CID, 1 << 32), (-1, 1)):
        with pytest.raises(ValueError, match="cannot be"):
            vsock.connect(address)


def test_a_listener_is_told_who_connects(run: Path) -> None:
    """The enclave's CID and port from the device; programs of the parent itself are CID 3."""
    with vsock.listen(8000) as listener:
        assert listener.getsockname() == (3, 8000)
        with dial_as_guest(run, 8000) as guest:
            stream, peer = listener.accept()
            with stream:
                assert peer == (CID, 1234)
                guest.sendall(b"x")
                assert stream.recv(1) == b"x"
        with vsock.connect((3, 8000)):
            stream, peer = listener.accept()
            stream.close()
            assert peer == (3, 0)
    assert not (run / "vsock" / "8000.sock").exists()


def test_a_port_has_one_listener(run: Path) -> None:
    """The second is refused, and the first goes on."""
    with vsock.listen(8000) as listener:
        with pytest.raises(MachineError, match="another program"):
            vsock.listen(8000)
        with vsock.connect((3, 8000)):
            while listener.accept()[1] != (3, 0):  # the look of the one that was refused came first
                pass


def test_a_server_outlives_its_handlers_failures(run: Path) -> None:
    """A handler that raises ends its own connection only, and each hears who is there."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: vsock.Address) -> None:
        line = await reader.readline()
        if line == b"fail\n":
            raise RuntimeError("a fault of the program's")
        writer.write(b"%d %d " % peer + line)
        await writer.drain()

    async def ask(line: bytes) -> bytes:
        guest = await asyncio.to_thread(dial_as_guest, run, 8000)
        reader, writer = await asyncio.open_connection(sock=guest)
        writer.write(line)
        data = await reader.read()
        writer.close()
        return data

    async def story() -> list[bytes]:
        async with aio.serve(handle, 8000):
            return [await ask(b"fail\n"), *await asyncio.gather(*(ask(b"%d\n" % n) for n in range(50)))]

    first, *rest = asyncio.run(story())
    assert first == b""
    assert rest == [b"16 1234 %d\n" % n for n in range(50)]


def test_the_runtime_directory_is_made_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that starts before the first enclave listens where the enclaves will look."""
    monkeypatch.setenv("ALCOVE_RUN", str(tmp_path / "new"))
    monkeypatch.setenv("ALCOVE_VSOCK", "hybrid")
    with vsock.listen(8000):
        assert Paths.from_environment().port(Port(8000)).is_socket()


def test_a_port_of_the_kernel_that_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's, or there is no vsock at all: a sentence, as with the runtime directory's sockets."""
    monkeypatch.setenv("ALCOVE_VSOCK", "kernel")
    with pytest.raises(MachineError, match=r"^cannot listen on vsock port 52341: "), vsock.listen(52341):
        vsock.listen(52341)
