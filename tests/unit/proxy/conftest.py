from __future__ import annotations

import resource
from pathlib import Path

import pytest

from alcove.proxy.service import take_descriptors


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own, where vsock is Unix sockets."""
    run = tmp_path / "run"
    run.mkdir(mode=0o755)
    monkeypatch.setenv("ALCOVE_RUN", str(run))
    monkeypatch.delenv("ALCOVE_VSOCK", raising=False)
    return run


@pytest.fixture
def descriptors() -> None:
    """As many open files as a thousand connections take, each through several programs in this one process."""
    take_descriptors()
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 8192:
        pytest.skip("this machine does not let a process have 8192 open files")
