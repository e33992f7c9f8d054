"""`examples/acm-nginx` when something is not as it needs it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

UP = Path(__file__).parents[2] / "examples" / "acm-nginx" / "up.py"


def up(directory: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, UP, "--once", "--dir", directory, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=120)


def test_a_part_that_ends_is_told_at_once(tmp_path: Path) -> None:
    """Its last words, and not that it was waited for in vain; nothing goes on."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sitecustomize.py").write_text(
        'import os, sys\nif "serve" in sys.orig_argv:\n    os.write(2, b"no room for a KMS\\n")\n    os._exit(1)\n'
    )
    done = up(tmp_path / "stack", PYTHONPATH=str(tmp_path / "modules"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "up.py: error: kms has ended: no room for a KMS\n"


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    """And not once the enclave serves."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = up(tmp_path / "stack", "--port", port)
    assert done.returncode == 2
    assert f"something listens on port {port} already" in done.stderr
    assert not (tmp_path / "stack").exists()
