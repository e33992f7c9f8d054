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
