"""The tutorials, done as they say: their commands are run in one shell, and what they promise to print is printed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Final

import pytest
from tests.ports import free_port
from tests.vm.conftest import BIN, ROOT, Cli

TUTORIALS: Final = sorted((ROOT / "docs" / "tutorial").glob("*.md"))
SECONDS: Final = 600
_FENCE: Final = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_KMS: Final = "4599"  # somebody's KMS may run here


def done(script: str, directory: Path, environment: dict[str, str]) -> str:
    """What a script printed, which must succeed; nothing that it started goes on."""
    words = ["bash", "-e", "-u", "-o", "pipefail", "-c", script]
    with subprocess.Popen(
        words, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            said, _ = process.communicate(timeout=SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said[-4000:]
    return said


def promised(text: str) -> re.Pattern[str]:
    """A line of a tutorial's output; an ellipsis stands for anything."""
    return re.compile("^" + ".*".join(map(re.escape, text.split("…"))) + "$", re.MULTILINE)


@pytest.mark.parametrize("page", TUTORIALS, ids=[page.stem for page in TUTORIALS])
def test_a_tutorial_works_as_it_is_written(
    page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each command in order, in an empty directory, and each line that the page shows in what they print."""
    port = str(free_port())
    blocks = [(kind, text.replace(_KMS, port)) for kind, text in _FENCE.findall(page.read_text())]
    assert blocks
    script = "\n".join(text for kind, text in blocks if kind == "sh")
    cli = Cli(tmp_path_factory.mktemp("own"))  # what others have running is theirs
    environment = cli.environment | {"PATH": f"{BIN}:{os.environ['PATH']}", "AWS_EC2_METADATA_DISABLED": "true"}
    try:
        said = done(script, tmp_path, environment)
    finally:
        cli("nitro-cli", "terminate-enclave", "--all")
    lines = [line for kind, text in blocks if kind == "text" for line in text.splitlines() if line.strip()]
    assert [line for line in lines if not promised(line).search(said)] == [], said[-4000:]
