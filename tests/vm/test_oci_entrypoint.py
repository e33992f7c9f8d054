"""An image with ENTRYPOINT, WORKDIR and USER in a real enclave, run as Docker would and as nitro-cli would."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DOCKERFILE = r"""
FROM scratch
COPY --chmod=0755 busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN printf 'root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n' >/etc/passwd
RUN printf 'root:x:0:\napp:x:1001:\nvideo:x:44:app\n' >/etc/group
COPY --chmod=0755 tool /opt/tools/tool
ENV PATH=/opt/tools:/bin
WORKDIR /srv/made
USER app
ENTRYPOINT ["tool", "first word"]
CMD ["/opt/tools/tool"]
"""
TOOL = r"""#!/bin/sh
echo "tool: id $(id -u) $(id -g) $(id -G)" >/dev/stdout
echo "tool: in $(pwd) home ${HOME:-none} path $PATH"
echo "tool: $# arguments"
for argument in "$@"; do echo "tool: [$argument]"; done
[ -r /dev/nsm ] && [ -w /dev/nsm ] && echo "tool: may attest"
echo "tool: end"
exec sleep 600
"""

SECONDS = 180
Started = tuple[str, str]


@pytest.fixture(scope="module")
def context(cli: Any) -> Path:
    """The directory with the Dockerfile."""
    directory: Path = cli.directory / "oci-context"
    directory.mkdir()
    busybox = next(path for path in (Path("/usr/bin/busybox"), Path("/bin/busybox")) if path.exists())
    shutil.copy(busybox, directory / "busybox")
    (directory / "Dockerfile").write_text(DOCKERFILE)
    (directory / "tool").write_text(TOOL)
    return directory


@pytest.fixture(scope="module")
def console_of(cli: Any, context: Path) -> Iterator[Callable[..., Started]]:
    """Builds and starts the image with some flags; what the build said, and the tool's lines of the console."""
    running = []

    def start(*flags: str) -> Started:
        target = cli.directory / f"oci{len(flags)}.eif"
        given = ["--docker-dir", context, "--docker-uri", "oci-entrypoint:test", "--output-file", target, *flags]
        built = cli("alcove", "build-enclave", *given)
        assert built.returncode == 0, built.stderr
        running.append(cli.run_enclave(target, "--debug-mode"))
        shown, deadline = "", time.monotonic() + SECONDS
        while "tool: end" not in shown and time.monotonic() < deadline:
            done = cli("nitro-cli", "console", "--enclave-id", running[-1]["EnclaveID"], "--disconnect-timeout", 1)
            shown = done.stdout.replace("\r", "")
        return built.stderr, "\n".join(line for line in shown.splitlines() if line.startswith("tool: "))

    yield start
    for started in running:
        cli.terminate(started)


def test_oci_entrypoint_runs_the_image_as_docker_does(console_of: Callable[..., Started]) -> None:
    """User, groups, directory, HOME, the image's PATH, all arguments; still with the NSM in reach; and said aloud."""
    said, shown = console_of("--oci-entrypoint")
    assert shown.splitlines() == [
        "tool: id 1000 1001 1001 44",
        "tool: in /srv/made home /home/app path /opt/tools:/bin",
        "tool: 2 arguments",
        "tool: [first word]",
        "tool: [/opt/tools/tool]",
        "tool: may attest",
        "tool: end",
    ]
    assert "PCR0 and PCR2 are not those of nitro-cli" in said


def test_without_it_the_image_runs_as_nitro_cli_has_it(console_of: Callable[..., Started]) -> None:
    """CMD alone, as root, in /, with the image's own environment; each difference was a warning."""
    said, shown = console_of()
    assert shown.splitlines() == [
        "tool: id 0 0 0",
        "tool: in / home none path /opt/tools:/bin",
        "tool: 0 arguments",
        "tool: may attest",
        "tool: end",
    ]
    warned = [line.split()[1] for line in said.splitlines() if line.startswith("warning: ")]
    assert warned == ["the", "WORKDIR", "USER"]
