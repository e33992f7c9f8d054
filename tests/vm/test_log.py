"""What an enclave outside debug mode prints, and who may see it: its image decides, and is measured."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

# More than is kept, before a caller can come; then a line at a time, and an end.
SCRIPT = r"""#!/bin/sh
i=0
while [ $i -lt 4000 ]; do echo "early line $i of many, so that the first are forgotten"; i=$((i+1)); done
echo "an error" >&2
i=0
while [ $i -lt 30 ]; do echo "late line $i"; sleep 1; i=$((i+1)); done
echo "last words"
exit 3
"""
LABEL = 'LABEL alcove.log="true"\n'
KEPT = 128 * 1024
SECONDS = 120


@pytest.fixture(scope="module")
def images(cli: Any) -> dict[str, tuple[Path, dict[str, str]]]:
    """One program in three images: with the label, built with the flag, and with neither."""
    busybox = next(path for path in (Path("/usr/bin/busybox"), Path("/bin/busybox")) if path.exists())
    found = {}
    for name, label, flags in (("labelled", LABEL, ()), ("flagged", "", ("--show-log",)), ("silent", "", ())):
        context = cli.directory / f"log-{name}"
        context.mkdir()
        shutil.copy(busybox, context / "busybox")
        (context / "app").write_text(SCRIPT)
        dockerfile = (
            "FROM scratch\nCOPY --chmod=0755 busybox /bin/busybox\n"
            'RUN ["/bin/busybox", "--install", "-s", "/bin"]\nCOPY --chmod=0755 app /app\n'
        )
        (context / "Dockerfile").write_text(dockerfile + label + 'CMD ["/app"]\n')
        target = cli.directory / f"log-{name}.eif"
        given = ("--docker-dir", context, "--docker-uri", f"log-{name}:test", "--output-file", target, *flags)
        built = cli("alcove", "build-enclave", *given)
        assert built.returncode == 0, built.stderr
        assert ("lets the parent see the application's output" in built.stderr) is (name != "silent")
        found[name] = target, json.loads(built.stdout)["Measurements"]
    return found


def test_whether_the_log_is_shown_is_measured(images: dict[str, tuple[Path, dict[str, str]]]) -> None:
    """The label and the flag give one image; that image is not the one that shows nothing."""
    labelled, flagged, silent = (images[name][1] for name in ("labelled", "flagged", "silent"))
    assert labelled == flagged
    assert labelled["PCR1"] == silent["PCR1"]
    assert labelled["PCR0"] != silent["PCR0"]
    assert labelled["PCR2"] != silent["PCR2"]


def test_the_log_of_an_enclave_that_shows_it(cli: Any, images: dict[str, tuple[Path, dict[str, str]]]) -> None:
    """What was kept, both streams, what comes, and the last words, afterwards too; the console stays closed."""
    started = cli.run_enclave(images["labelled"][0], "--enclave-name", "shown")
    deadline = time.monotonic() + SECONDS
    while (tail := cli("alcove", "logs", "shown")).returncode and time.monotonic() < deadline:
        time.sleep(0.5)  # it has printed nothing yet
    while "late line" not in tail.stdout and time.monotonic() < deadline:
        tail = cli("alcove", "logs", "shown")
    assert tail.returncode == 0, tail.stderr
    assert "\nan error\n" in tail.stdout
    assert 0 < len(tail.stdout) <= KEPT
    assert "early line 0 " not in tail.stdout
    console = cli("nitro-cli", "console", "--enclave-id", started["EnclaveID"])
    assert console.returncode == 44
    followed = cli("alcove", "logs", "--follow", "shown")
    assert followed.returncode == 0, followed.stderr
    assert followed.stdout.endswith("late line 29\nlast words\n")
    deadline = time.monotonic() + SECONDS
    while cli.json("alcove", "describe-enclaves") and time.monotonic() < deadline:
        time.sleep(0.2)
    afterwards = cli("alcove", "logs", "shown")
    assert afterwards.stdout.endswith("late line 29\nlast words\n")
    assert "the application ended with status 3" in afterwards.stderr


def test_an_enclave_that_does_not_ask_for_it_shows_nothing(
    cli: Any, images: dict[str, tuple[Path, dict[str, str]]]
) -> None:
    """The same program without label and flag: no line of it leaves the enclave."""
    started = cli.run_enclave(images["silent"][0], "--enclave-name", "silent")
    done = cli("alcove", "logs", "silent")
    assert (done.returncode, done.stdout) == (44, "")
    assert "--show-log" in done.stderr
    refused = cli("alcove", "connect", started["EnclaveCID"], 9042)
    assert refused.returncode != 0
    assert refused.stdout == ""
    cli.terminate(started)
