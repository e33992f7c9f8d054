"""Unmodified programs of the parent that speak AF_VSOCK, and the guest's clock, against a real enclave."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DOCKERFILE = 'FROM scratch\nCOPY --chmod=0755 peer /peer\nCMD ["/peer"]\n'
needs_socat = pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed (scripts/setup --tests)")
Python = Callable[..., str]


@pytest.fixture(scope="module")
def peer_eif(cli: Any) -> Path:
    """An image that runs peer.c."""
    context = cli.directory / "peer"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-static", "-Os", "-s"]
    subprocess.run([*compiler, "-o", context / "peer", Path(__file__).with_name("peer.c")], check=True)
    eif: Path = cli.directory / "peer.eif"
    built = cli(
        "nitro-cli", "build-enclave", "--docker-dir", context, "--docker-uri", "peer:test", "--output-file", eif
    )
    assert built.returncode == 0, built.stderr
    return eif


@pytest.fixture(scope="module")
def peer(cli: Any, peer_eif: Path) -> Iterator[dict[str, Any]]:
    """An enclave that runs peer.c."""
    started = cli.run_enclave(peer_eif, "--debug-mode", "--enclave-name", "peer")
    wait_until_ready(cli, "peer")
    yield started
    cli.terminate(started)


def wait_until_ready(cli: Any, name: str) -> None:
    for _ in range(300):
        if "peer: ready" in cli("alcove", "logs", name).stdout:
            return
        time.sleep(0.2)
    pytest.fail(cli("alcove", "logs", name).stdout[-1000:])


@pytest.fixture
def python(cli: Any) -> Python:
    """Runs Python code, with arguments, under `alcove exec`; returns what it printed."""

    def python(code: str, *arguments: object) -> str:
        prelude = "import socket, struct, sys, time\nCID, PORTS = int(sys.argv[1]), list(map(int, sys.argv[2:]))\n"
        command = ["exec", "--", sys.executable, "-c", prelude + textwrap.dedent(code), *arguments]
        done = cli("alcove", *command, timeout=120)
        assert done.returncode == 0, done.stderr
        said: str = done.stdout
        return said.strip()

    return python


def test_a_python_client_reaches_an_enclave(peer: dict[str, Any], python: Python) -> None:
    """`socket.AF_VSOCK`, connect to the enclave's CID: a megabyte there and back, half-close, addresses."""
    said = python(
        """
        import threading
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        s.settimeout(30)
        s.connect((CID, 7))
        data = bytes(range(256)) * 4096
        def send():
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
        threading.Thread(target=send).start()
        back = b""
        while chunk := s.recv(65536):
            back += chunk
        print(back == data, s.getpeername() == (CID, 7), s.getsockname()[0])
        try:
            socket.socket(socket.AF_VSOCK).connect((CID, 6))
        except ConnectionResetError:
            print("refused")
        """,
        peer["EnclaveCID"],
    )
    assert said.splitlines() == ["True True 3", "refused"]


def test_a_python_server_hears_an_enclave(peer: dict[str, Any], python: Python) -> None:
    """bind, listen, accept: the peer's address is the enclave's CID and the port that it says it has."""
    said = python(
        """
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen()
        asker = socket.socket(socket.AF_VSOCK)
        asker.connect((CID, 39))
        asker.sendall(struct.pack("<I", listener.getsockname()[1]))
        stream, address = listener.accept()
        heard = stream.makefile().readline()
        print(address[0] == CID, heard == f"from port {address[1]}\\n", stream.getpeername() == address)
        stream.sendall(b"an answer")
        stream.close()
        print(asker.recv(100, socket.MSG_WAITALL).decode())
        """,
        peer["EnclaveCID"],
    )
    assert said.splitlines() == ["True True True", "an answer"]


@needs_socat
def test_socat_connects_and_listens(cli: Any, peer: dict[str, Any]) -> None:
    """VSOCK-CONNECT into the enclave; VSOCK-LISTEN on a port that the enclave then connects to."""
    cid = peer["EnclaveCID"]
    command = f"echo over and back | socat -t 10 - VSOCK-CONNECT:{cid}:7"
    assert cli("alcove", "exec", "--", "sh", "-c", command).stdout == "over and back\n"
    server = subprocess.Popen(
        cli.command("alcove", "exec", "--", "socat", "-t", "10", "VSOCK-LISTEN:5050", "SYSTEM:cat; echo and an answer"),
        env=cli.environment,
    )
    try:
        socket_file = cli.run_directory / "vsock" / "5050.sock"
        for _ in range(600):
            if socket_file.exists():
                break
            time.sleep(0.1)
        ask = f"printf '\\272\\023\\000\\000' | socat -t 10 - VSOCK-CONNECT:{cid}:39"  # 5050, little-endian
        said = cli("alcove", "exec", "--", "sh", "-c", ask).stdout
        assert said.startswith("from port ")
        assert said.endswith("and an answer\n")
        assert server.wait(120) == 0
        assert not socket_file.exists()
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def test_connect_joins_input_and_output_to_a_port(cli: Any, peer: dict[str, Any]) -> None:
    """By CID, name and id, with half-close; a port without a listener, and an enclave that is not there, fail."""
    for enclave in (peer["EnclaveCID"], peer["EnclaveName"], peer["EnclaveID"]):
        command = cli.command("alcove", "connect", enclave, 7, "--wait", 10)
        done = subprocess.run(
            command, env=cli.environment, input=b"x" * 300000, capture_output=True, check=False, timeout=240
        )
        assert (done.returncode, len(done.stdout), done.stderr) == (0, 300000, b"")
    refused = cli("alcove", "connect", "peer", 6, "--wait", 1)
    assert refused.returncode == 1
    assert "does not answer on port 6" in refused.stderr
    assert cli("alcove", "connect", 15, 7).returncode == 11


CLOCK = """
    s = socket.socket(socket.AF_VSOCK)
    s.connect((CID, 37))
    best = None
    for _ in range(20):
        before = time.time_ns()
        s.sendall(b"?")
        guest = struct.unpack("<q", s.recv(8, socket.MSG_WAITALL))[0]
        after = time.time_ns()
        error = (guest - (before + after) // 2) / 1e9
        if best is None or after - before < best[0]:
            best = after - before, error
    print(best[1])
"""


def test_the_clock_is_right_from_the_start(peer: dict[str, Any], python: Python) -> None:
    """A machine's own first time has whole seconds only; init sets it by the parent's before the application runs."""
    assert abs(float(python(CLOCK, peer["EnclaveCID"]))) < 0.1


JUMP = """
    s = socket.socket(socket.AF_VSOCK)
    s.connect((CID, 38))
    s.sendall(struct.pack("<q", -3600 * 10**9))
    print(s.recv(1).decode())
"""


def test_a_clock_set_wrong_is_set_right(peer: dict[str, Any], python: Python) -> None:
    """The application puts the clock an hour back; init's next look, within 20 s, puts it right."""
    cid = peer["EnclaveCID"]
    assert python(JUMP, cid) == "y"
    deadline = time.monotonic() + 120  # several of its looks, for a loaded machine
    while abs(error := float(python(CLOCK, cid))) > 0.1 and time.monotonic() < deadline:
        time.sleep(1)
    assert abs(error) < 0.1


def test_where_nobody_tells_the_time_nothing_is_changed(cli: Any, peer_eif: Path, python: Python) -> None:
    """As on AWS's hypervisor: init's question is refused, the application starts, and its clock is its own."""
    enclaves = cli.run_directory / "enclaves"
    before = set(enclaves.glob("*/vsock.sock_9037"))
    arguments = ["--eif-path", peer_eif, "--cpu-count", 1, "--memory", 256, "--debug-mode", "--enclave-name", "alone"]
    command = cli.command("nitro-cli", "run-enclave", *arguments)
    with subprocess.Popen(command, env=cli.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as starting:
        while not (found := set(enclaves.glob("*/vsock.sock_9037")) - before) and starting.poll() is None:
            time.sleep(0.01)
        found.pop().unlink()  # long before the guest's kernel has come to its init
        started = json.loads(starting.communicate()[0])
    try:
        wait_until_ready(cli, "alone")
        assert python(JUMP, started["EnclaveCID"]) == "y"
        time.sleep(25)  # more than the 20 s between two looks
        assert float(python(CLOCK, started["EnclaveCID"])) < -3500
    finally:
        cli.terminate(started)
