"""`alcove-enclave` as an image's CMD starts it, and `alcove publish` and `egress-relay` beside it, without a guest."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ports import free_port

BIN = Path(sys.executable).parent
SECONDS = 120


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short path, whose `run` is the runtime directory."""
    with tempfile.TemporaryDirectory(prefix="in-") as name:
        (Path(name) / "run").mkdir(mode=0o755)
        yield Path(name)


def start(home: Path, program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program; one that says nothing is ended, so that who reads its output does not wait for ever."""
    process = subprocess.Popen(
        [BIN / program, *map(str, arguments)],
        env={**os.environ, "ALCOVE_RUN": str(home / "run"), "ALCOVE_VSOCK": "hybrid"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = threading.Timer(SECONDS, process.kill)
    limit.daemon = True
    limit.start()
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, out, err


def test_run_is_the_program_with_what_it_needs(home: Path) -> None:
    """It starts when the ports listen, finds the proxy in its environment, and its status is the command's."""
    rules, port, mapping = home / "rules", free_port(), f"{free_port()}:{free_port()}"
    rules.write_text("allow a.org:443\n")
    arguments = ["run", "--egress", "--rules", rules, "--port", port, "--ingress", mapping, "--"]
    vsock = home / "run" / "vsock" / f"{mapping.partition(':')[0]}.sock"
    code, out, err = finish(
        start(home, "alcove-enclave", *arguments, "sh", "-c", f'echo "$HTTPS_PROXY $no_proxy"; test -S {vsock}; exit 7')
    )
    assert (code, out, err) == (7, f"http://127.0.0.1:{port} localhost,127.0.0.1,::1\n", "")
    assert not vsock.exists()


def test_signals_are_the_programs(home: Path) -> None:
    """SIGTERM reaches it, and it ends as it likes; a signal that ends it is 128 and its number."""
    process = start(
        home,
        "alcove-enclave",
        "run",
        "--",
        "sh",
        "-c",
        "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done",
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert finish(process)[:2] == (3, "bye\n")
    assert finish(start(home, "alcove-enclave", "run", "--", "sh", "-c", "kill -9 $$"))[0] == 137


def test_what_cannot_be_is_one_line(home: Path) -> None:
    """A list that is missing or wrong, a program that is not there, a port that is taken: no program starts."""
    rules = home / "rules"
    run = ("run", "--egress", "--rules", rules)
    code, out, err = finish(start(home, "alcove-enclave", *run, "--", "echo", "ran"))
    assert (code, out) == (1, "")
    assert "the list cannot be read" in err
    rules.write_text("allow everything\n")
    code, out, err = finish(start(home, "alcove-enclave", *run, "--", "echo", "ran"))
    assert (code, out) == (1, "")
    assert "the enclave's list, line 1: `allow everything` names no ports" in err
    rules.write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = finish(start(home, "alcove-enclave", *run, "--port", port, "--", "echo", "ran"))
    assert (code, out) == (1, "")
    assert f"cannot listen on 127.0.0.1 port {port}" in err
    code, _, err = finish(start(home, "alcove-enclave", "run", "--", "no-such-program"))
    assert code == 1
    assert "cannot run no-such-program" in err
    assert finish(start(home, "alcove-enclave", "run", "--dns", "--", "true"))[0] == 1
    assert finish(start(home, "alcove-enclave", "ingress", "70000:70000"))[0] == 1
    code, _, err = finish(start(home, "alcove-enclave", "ingress", "443:8443", "443:8444"))
    assert (code, len(err.splitlines())) == (1, 2)
    assert "443.sock: another program listens there\nhint: " in err
    code, _, err = finish(start(home, "alcove-enclave", "kms-proxy", "--proxy-port", "x"))
    assert code == 2
    assert "argument --proxy-port: a vsock port is from 1 to 4294967294" in err
    for pinned in ("=192.0.2.1", "a.org", "a.org=b"):
        code, _, err = finish(start(home, "alcove", "egress-relay", "--rules", rules, "--resolve", pinned))
        assert (code, err) == (1, f"alcove: error: `{pinned}` is not NAME=ADDRESS\n")


def test_publish_says_where_and_closes_what_it_cannot_lead_on(home: Path) -> None:
    """Without an enclave the port is there all the same; the reason is logged."""
    process = start(home, "alcove", "publish", "web", "-p", "0:443", "-p", "0.0.0.0:0:80")
    assert process.stderr is not None
    with process:
        first, second = (process.stderr.readline() for _ in range(2))
        assert first.startswith("127.0.0.1:")
        assert first.endswith(" leads to port 443 of the enclave `web`\n")
        assert second.startswith("0.0.0.0:")
        with socket.create_connection(("127.0.0.1", int(first.split()[0].split(":")[1])), 30) as stream:
            assert stream.recv(1) == b""
        process.terminate()
        code, _, err = finish(process)
    assert code == 0
    assert "no enclave has the CID, id or name `web`" in err


def test_the_relay_serves_enclaves_only(home: Path) -> None:
    """A program of the parent is no enclave; a wrong list is an error with its line."""
    rules = home / "rules"
    rules.write_text("allow a.org:443\nallow\n")
    code, _, err = finish(start(home, "alcove", "egress-relay", "--rules", rules))
    assert code == 1
    assert "the parent's list, line 2: `allow` is not a rule" in err
    rules.write_text("allow a.org:443\n")
    assert finish(start(home, "alcove", "egress-relay", "--rules", rules, "--resolve", "a.org"))[0] == 1
    process = start(home, "alcove", "egress-relay", "--rules", rules)
    assert process.stderr is not None
    with process:
        assert process.stderr.readline() == "enclaves ask for connections on port 3128\n"
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(30)
            stream.connect(str(home / "run" / "vsock" / "3128.sock"))
            stream.sendall(b"CONNECT a.org:443 HTTP/1.1\r\n\r\n")
            answer = stream.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"no enclave of this user has CID 3" in answer
        process.terminate()
        assert finish(process)[0] == 0
