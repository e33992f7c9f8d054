"""`alcove acm`: what a person gets who has made a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ALCOVE = Path(sys.executable).parent / "alcove"
TOKENS = "tokens: [{label: web, source: {S3: {uri: 's3://bucket/key'}}}]\n"


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ALCOVE_RUN": str(directory / "run"), "ALCOVE_STATE": str(directory / "state")}
    return subprocess.run(
        [ALCOVE, "acm", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        ("a: [", "acm.yaml is not YAML"),
        ("enclave: {cpu_count: 2}", "acm.yaml: enclave.memory_mib is missing"),
        ("enclave: {cpu_count: 2, memory_mib: 256}\ntokens: [{label: a, source: {Vault: {}}}]", "is one of Acm, S3"),
        ("label: é", "cannot be read: it is not UTF-8"),
        (
            "enclave: {cpu_count: 2, memory_mib: 256, image_path: /nothing}\n" + TOKENS,
            "enclave.image_path: there is no image /nothing",
        ),
    ],
)
def test_an_agent_without_a_good_configuration_does_not_start(tmp_path: Path, text: str | None, sentence: str) -> None:
    """One line with the place of the mistake, status 1, no traceback."""
    file = tmp_path / "acm.yaml"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    done = run(tmp_path, "agent", "--config", str(file))
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_status_without_an_agent(tmp_path: Path) -> None:
    """Said, with a hint; status 1."""
    done = run(tmp_path, "status")
    assert done.returncode == 1
    assert "no agent has written" in done.stderr
    assert "alcove acm agent" in done.stderr


def test_status_of_an_agent_that_has_ended(tmp_path: Path) -> None:
    """What it wrote down last, nothing of it served, status 1."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    token = {"label": "web", "source": "File", "served": True, "expires": None, "uri": "", "trouble": "KMS refused"}
    status = {"pid": ended.pid, "since": 0, "starts": 1, "rpc_port": 10000, "enclave": None, "tokens": [token]}
    (tmp_path / "status.json").write_text(json.dumps(status))
    done = run(tmp_path, "status", "--run-directory", str(tmp_path))
    assert done.returncode == 1
    assert f"agent {ended.pid} has ended, no enclave" in done.stdout
    assert "NOT served" in done.stdout
    assert "KMS refused" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"5",
        b"{}",
        b'{"pid": "x", "rpc_port": 1, "tokens": []}',
        b'{"pid": -1, "rpc_port": 1, "tokens": []}',
        b'{"pid": 99999999999999999999, "rpc_port": 1, "tokens": []}',
        b'{"pid": 1, "rpc_port": 1, "tokens": [5]}',
        b'{"pid": 1, "rpc_port": 1, "tokens": [], "enclave": {"id": "i"}}',
    ],
)
def test_a_status_that_no_agent_wrote(tmp_path: Path, text: bytes) -> None:
    """One sentence, status 1, no traceback."""
    (tmp_path / "status.json").write_bytes(text)
    done = run(tmp_path, "status", "--run-directory", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"alcove: error: {tmp_path}/status.json is not what an agent writes\n"


def test_a_status_that_may_not_be_read(tmp_path: Path) -> None:
    """That is another thing than one that is not there."""
    (tmp_path / "status.json").mkdir()
    done = run(tmp_path, "status", "--run-directory", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"alcove: error: {tmp_path}/status.json cannot be read: Is a directory\n"


def test_a_status_is_lines_whatever_an_enclave_said(tmp_path: Path) -> None:
    """Trouble is told in others' words: nothing of it reaches the terminal but letters."""
    token = {"label": "web", "source": "File", "served": False, "expires": None, "uri": "", "trouble": "a\x1b[2J\nb"}
    status = {"pid": os.getpid(), "since": 0, "starts": 1, "rpc_port": 10000, "enclave": None, "tokens": [token]}
    (tmp_path / "status.json").write_text(json.dumps(status))
    done = run(tmp_path, "status", "--run-directory", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "    a?[2J?b"


def test_an_agent_in_another_s_runtime_directory_does_not_start(tmp_path: Path) -> None:
    """One that others may write to is nobody's; what the agent would hand out is not left to them."""
    (tmp_path / "image").touch()
    (tmp_path / "acm.yaml").write_text(
        f"enclave: {{cpu_count: 2, memory_mib: 256, image_path: {tmp_path}/image}}\n" + TOKENS
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    done = run(tmp_path, "agent", "--config", str(tmp_path / "acm.yaml"))
    assert done.returncode == 7
    assert "is not this user's alone" in done.stderr
