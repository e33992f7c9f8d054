from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own, where vsock is Unix sockets."""
    run = tmp_path / "run"
    run.mkdir(mode=0o755)
    monkeypatch.setenv("ALCOVE_RUN", str(run))
    monkeypatch.delenv("ALCOVE_VSOCK", raising=False)
    return run
