"""The preload library, loaded into Python's own AF_VSOCK sockets, against a fake of the enclave's hybrid socket."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alcove import hostvsock
from alcove.devices.vsock.handshake import peer_name
from alcove.errors import MachineError, UsageError
from alcove.types import Cid, Port

ROOT = Path(__file__).parents[3]
CID = 20
Run = Callable[..., str]
# Python's own setsockopt gives every option of AF_VSOCK eight bytes, and a time-out has sixteen.
PRELUDE = """
import ctypes, errno, fcntl, os, socket, struct, sys
ANY, V = 0xFFFFFFFF, socket.AF_VSOCK
libc = ctypes.CDLL(None, use_errno=True)
def option(s, name, value):
    if libc.setsockopt(s.fileno(), V, name, value, len(value)):
        raise OSError(ctypes.get_errno(), "setsockopt")
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="preloads a Linux library")


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """A runtime directory with one enclave's place in it; short, as its sockets have addresses."""
    with tempfile.TemporaryDirectory(prefix="alcove-") as name:
        run = Path(name)
        (run / "vsock").mkdir()
        (run / "cid").mkdir()
        (run / "enclaves" / "i-1").mkdir(parents=True)
        (run / "cid" / str(CID)).symlink_to("../enclaves/i-1")
        yield run


@pytest.fixture
def enclave(run_directory: Path) -> Iterator[list[bytes]]:
    """The supervisor's socket: port 5 echoes after a greeting, 6 refuses, 7 says nothing, 8 talks too much.

    The list has the command lines that came.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(run_directory / "enclaves" / "i-1" / "vsock.sock"))
    listener.listen(16)
    commands: list[bytes] = []
    kept: list[socket.socket] = []

    def serve(client: socket.socket) -> None:
        line = b""
        while not line.endswith(b"\n"):
            line += client.recv(1)
        commands.append(line)
        if line == b"CONNECT 5\n":
            client.sendall(b"OK 1234\nhello ")  # data right behind the answer
            with contextlib.suppress(OSError):  # some hang up early
                while data := client.recv(4096):
                    client.sendall(data)
                client.sendall(b" bye")
                client.shutdown(socket.SHUT_WR)
        elif line == b"CONNECT 7\n":
            kept.append(client)
            return
        elif line == b"CONNECT 8\n":
            client.sendall(b"x" * 4096)
        client.close()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield commands
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for client in kept:
        client.close()


@pytest.fixture
def run(run_directory: Path) -> Run:
    """Runs Python code under the library; returns what it printed."""

    def run(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-u", "-c", PRELUDE + textwrap.dedent(code)],
            env=hostvsock.environment(run_directory, platform.machine(), os.environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_connect_reaches_the_enclave(run: Run, enclave: list[bytes]) -> None:
    """The stream begins behind the handshake; both ends have vsock addresses; half-close works both ways."""
    said = run(f"""
        s = socket.socket(V)
        s.connect(({CID}, 5))
        print(s.getsockname(), s.getpeername())
        s.sendall(b"there")
        s.shutdown(socket.SHUT_WR)
        data = b""
        while chunk := s.recv(100):
            data += chunk
        print(data.decode())
    """)
    assert said.splitlines() == [f"(3, 1234) ({CID}, 5)", "hello there bye"]
    assert enclave == [b"CONNECT 5\n"]


def test_connect_fails_as_with_vsock(run: Run, enclave: list[bytes]) -> None:
    """Refused, unknown, silent, babbling and out of address family; the same socket can try again."""
    said = run(f"""
        def attempt(s, *address):
            try:
                s.connect(address)
            except OSError as error:
                print(errno.errorcode[error.errno])
        s = socket.socket(V)
        option(s, 8, struct.pack("qq", 0, 300000))
        for port in (6, 7, 8):
            attempt(s, {CID}, port)
        attempt(s, 21, 5)
        attempt(s, 3, 5)
        s.connect(({CID}, 5))
        attempt(s, {CID}, 5)
        print(s.recv(5).decode())
        for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            try:
                socket.socket(V, kind)
            except OSError as error:
                print(errno.errorcode[error.errno])
    """)
    assert said.split() == [
        "ECONNRESET", "ETIMEDOUT", "EPROTO", "ENODEV", "ECONNRESET", "EISCONN", "hello",
        "ESOCKTNOSUPPORT", "ESOCKTNOSUPPORT",
    ]  # fmt: skip


def test_a_non_blocking_connect_is_done_at_once(run: Run, enclave: list[bytes]) -> None:
    """With asyncio sock_connect works; the first bytes it reads are the enclave's."""
    said = run(f"""
        import asyncio
        async def main():
            loop = asyncio.get_running_loop()
            s = socket.socket(V)
            s.setblocking(False)
            await loop.sock_connect(s, ({CID}, 5))
            print((await loop.sock_recv(s, 5)).decode(), s.gettimeout())
        asyncio.run(main())
    """)
    assert said == "hello 0.0"


def test_a_listener_serves_an_enclave(run_directory: Path) -> None:
    """To listen makes the port's socket with mode 0600; accept names the enclave's CID and port; close removes it."""
    code = textwrap.dedent("""
        import os, socket, sys
        l = socket.socket(socket.AF_VSOCK)
        l.bind((socket.VMADDR_CID_ANY, 5005))
        l.listen()
        print(l.getsockname(), flush=True)
        c, peer = l.accept()
        print(peer, c.getpeername(), c.getsockname(), flush=True)
        c.sendall(c.recv(100).upper())
        c.close()
        l.close()
        print("closed", flush=True)
        sys.stdin.read()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=hostvsock.environment(run_directory, platform.machine(), os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        assert process.stdout.readline() == "(4294967295, 5005)\n"
        path = run_directory / "vsock" / "5005.sock"
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as guest:
            guest.bind(peer_name(Cid(CID), Port(777), "0a0b"))
            guest.connect(str(path))
            guest.sendall(b"from the enclave")
            assert process.stdout.readline() == f"({CID}, 777) ({CID}, 777) (3, 5005)\n"
            assert guest.recv(100) == b"FROM THE ENCLAVE"
        assert process.stdout.readline() == "closed\n"
        assert list((run_directory / "vsock").iterdir()) == []
    finally:
        process.communicate("")


def test_ports_are_exclusive_and_stale_files_are_not(run: Run, run_directory: Path) -> None:
    """A held port is EADDRINUSE for vsock and stays untouched; a dead program's file is replaced; any port is found."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(run_directory / "vsock" / "5006.sock"))
    live = socket.socket(socket.AF_UNIX)
    live.bind(str(run_directory / "vsock" / "5007.sock"))
    live.listen()
    live.settimeout(0.2)
    said = run("""
        def attempt(*address):
            s = socket.socket(V)
            try:
                s.bind(address)
                s.listen()
                print(address[1] == ANY or address[1] == s.getsockname()[1])
            except OSError as error:
                print(errno.errorcode[error.errno])
            return s
        a, b, c = attempt(ANY, 5006), attempt(3, 5007), attempt(2, 5006)
        d, e = attempt(ANY, ANY), attempt(ANY, ANY)
        print(d.getsockname() != e.getsockname() and d.getsockname()[1] >= 1024)
        attempt(16, 5008)
        print({'5006.sock', '5007.sock'} <= set(os.listdir(os.environ['ALCOVE_RUN'] + '/vsock')))
    """)
    assert said.split("\n") == [
        "True", "EADDRINUSE", "EADDRINUSE", "True", "True", "True", "EADDRNOTAVAIL", "True",
    ]  # fmt: skip
    with pytest.raises(TimeoutError):  # nobody knocked to find out
        live.accept()
    live.close()
    assert [path.name for path in (run_directory / "vsock").iterdir()] == ["5007.sock"]


def test_the_file_stays_while_anybody_holds_the_listener(run: Run, run_directory: Path) -> None:
    """dup, fork and exec keep a port; the last close gives it back, in whichever process it is."""
    said = run("""
        path = os.environ["ALCOVE_RUN"] + "/vsock/5009.sock"
        l = socket.socket(V)
        l.bind((ANY, 5009))
        l.listen()
        copy = l.dup()
        l.close()
        print(os.path.exists(path), copy.getsockname()[1])
        if os.fork() == 0:
            copy.close()
            os._exit(0)
        os.wait()
        print(os.path.exists(path))
        os.set_inheritable(copy.fileno(), True)
        if os.fork() == 0:
            code = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); print(s.family, s.getsockname())"
            os.execv(sys.executable, [sys.executable, "-c", code, str(copy.fileno())])
        os.wait()
        print(os.path.exists(path))
        copy.close()
        print(os.path.exists(path))
    """)
    assert said.split("\n") == ["True 5009", "True", "40 (4294967295, 5009)", "True", "False"]


def test_the_parent_reaches_itself(run: Run) -> None:
    """As over the loopback that a parent may have: CIDs 1, 2 and 3 are its own listeners, the peer is CID 3."""
    said = run("""
        l = socket.socket(V)
        l.bind((3, 5010))
        l.listen()
        for cid in (1, 2, 3):
            s = socket.socket(V)
            s.connect((cid, 5010))
            c, peer = l.accept()
            print(peer == s.getsockname(), peer[0])
    """)
    assert said.split("\n") == ["True 3"] * 3


def test_options_and_the_device(run: Run) -> None:
    """The local CID is 3 without /dev/vsock being opened; SO_DOMAIN, buffer sizes and time-outs read back."""
    said = run("""
        with open("/dev/vsock", "rb") as device:
            print(struct.unpack("I", fcntl.ioctl(device, socket.IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4)))[0])
            print(os.readlink(f"/proc/self/fd/{device.fileno()}"))
        s = socket.socket(V)
        print(s.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == V)
        s.setsockopt(V, socket.SO_VM_SOCKETS_BUFFER_SIZE, 123456)
        print(s.getsockopt(V, socket.SO_VM_SOCKETS_BUFFER_SIZE))
        for name, value in ((8, struct.pack("qq", -1, 0)), (0, b"1"), (77, bytes(8))):
            try:
                option(s, name, value)
            except OSError as error:
                print(errno.errorcode[error.errno])
    """)
    assert said.split() == ["3", "/dev/null", "True", "123456", "ERANGE", "EINVAL", "ENOPROTOOPT"]


def test_other_sockets_are_left_alone(run: Run, run_directory: Path) -> None:
    """A Unix socket on a port's file stays one, and so do what it accepts, pairs and TCP."""
    said = run("""
        path = os.environ["ALCOVE_RUN"] + "/vsock/5011.sock"
        u = socket.socket(socket.AF_UNIX)
        u.bind(path)
        u.listen()
        c = socket.socket(socket.AF_UNIX)
        c.connect(path)
        a, _ = u.accept()
        print(u.getsockname() == path, a.getsockname() == path, c.getpeername() == path)
        x, y = socket.socketpair()
        print(repr(x.getsockname()))
        t = socket.create_server(("127.0.0.1", 0))
        k = socket.create_connection(t.getsockname())
        print(t.accept()[1] == k.getsockname())
    """)
    assert said.split("\n") == ["True True True", "''", "True"]


def test_many_threads_and_descriptors(run: Run, enclave: list[bytes]) -> None:
    """Eight threads connect, read and close side by side; descriptors beyond the table are refused."""
    said = run(f"""
        import threading, resource
        good = []
        def work():
            for _ in range(25):
                with socket.socket(V) as s:
                    s.connect(({CID}, 5))
                    good.append(s.recv(5) == b"hello" and s.getpeername() == ({CID}, 5))
        threads = [threading.Thread(target=work) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print(len(good), all(good))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard > 65536:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            s = socket.socket(V)
            high = fcntl.fcntl(s.fileno(), fcntl.F_DUPFD, 65536)
            os.close(high)
        print("alive")
    """)
    assert said.split("\n") == ["200 True", "alive"]


def test_without_a_runtime_directory_nothing_changes() -> None:
    """The library in a program that `alcove exec` did not start passes everything through."""
    code = "import socket; s = socket.socket(socket.AF_UNIX); print(s.getsockname() == '')"
    variables = {**os.environ, "LD_PRELOAD": str(hostvsock.preload_library(platform.machine()))}
    variables.pop("ALCOVE_RUN", None)
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_path_too_long_and_a_library_not_built_are_said_at_once(tmp_path: Path) -> None:
    """Both have a hint; libraries that were preloaded before stay."""
    with pytest.raises(UsageError, match="80 bytes") as long:
        hostvsock.environment(tmp_path / ("x" * 80), "x86_64", {})
    assert long.value.hint
    with pytest.raises(MachineError, match="riscv64"):
        hostvsock.preload_library("riscv64")
    made = hostvsock.environment(Path("/r"), platform.machine(), {"LD_PRELOAD": "/other.so", "A": "b"})
    assert made["LD_PRELOAD"].endswith(".so:/other.so")
    assert (made["A"], made["ALCOVE_RUN"]) == ("b", "/r")


def test_the_place_of_the_build_leaves_no_trace(tmp_path: Path) -> None:
    """Compiled in another directory, the bytes are those that were built."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "scripts/hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    for path in (ROOT / "src/alcove/hostvsock").glob("*.[ch]"):
        shutil.copy(path, tmp_path)
    hook.compile_c(hook.PRELOAD, tmp_path, tmp_path / "made.so", "x86_64")
    digests = [
        hashlib.sha256(p.read_bytes()).digest() for p in (tmp_path / "made.so", hostvsock.preload_library("x86_64"))
    ]
    assert digests[0] == digests[1]
