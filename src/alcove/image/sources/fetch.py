"""Brings a container image into an OCI layout: skopeo copies it, buildah builds it. No daemon.

    uri with a transport    oci:, oci-archive:, docker-archive:, docker-daemon:, containers-storage:, docker://
    any other uri           1. the Docker daemon, where there is one  2. buildah's local store  3. the registry

Builds are reproducible: buildah gives every file of a layer the time SOURCE_DATE_EPOCH (0 when it is not set), so the
same context gives the same layers, and the same measurements, on any day.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from alcove.errors import AlcoveError, MachineError, UsageError
from alcove.image.sources.oci import holds_one_image

Progress = Callable[[str], None]

PLATFORMS: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_TRANSPORT: Final = re.compile(r"docker://|(docker-daemon|docker-archive|oci|oci-archive|dir|containers-storage):")
_LOG_MESSAGE: Final = re.compile(r'level=\w+ msg="((?:[^"\\]|\\.)*)"')
_DOCKER_SOCKET: Final = Path("/var/run/docker.sock")


@dataclass(frozen=True, slots=True)
class ContainerSource:
    """Where images come from.

    Attributes:
        architecture: `x86_64` or `aarch64`: which image of a multi-platform one is meant.
        environment: The environment to run programs in, and to read DOCKER_HOST, DOCKER_CONFIG, STORAGE_DRIVER and
            SOURCE_DATE_EPOCH from.
        progress: Gets each line that tells what happens.
    """

    architecture: str
    environment: Mapping[str, str]
    progress: Progress

    def build(self, uri: str, directory: Path, layout: Path) -> None:
        """Build the Dockerfile in `directory`, name the image `uri`, and put it into the OCI layout `layout`.

        Raises:
            AlcoveError: E49 when the build fails.
        """
        if not directory.is_dir():
            raise UsageError(
                f"`{directory}` is not a directory", hint="give the directory with the Dockerfile", code="E49"
            )
        epoch = self.environment.get("SOURCE_DATE_EPOCH") or "0"
        if not epoch.isascii() or not epoch.isdigit():
            raise UsageError(f"SOURCE_DATE_EPOCH is {epoch!r}", hint="give it in seconds since 1970", code="E49")
        identity = layout.with_suffix(".iid")
        argv = [*self._buildah("bud"), "--isolation", "chroot", "--timestamp", epoch, "--pull=false"]
        # The history has digests that depend on who builds; the label has buildah's version. Both would reach the id.
        argv += ["--omit-history", "--identity-label=false"]
        argv += ["--os", "linux", "--arch", PLATFORMS[self.architecture], "--iidfile", str(identity), "--tag", uri]
        self._run([*argv, "--", str(directory)], "E49")
        self._run([*self._buildah("push"), "--quiet", "--", identity.read_text().strip(), f"oci:{layout}:image"], "E49")

    def fetch(self, uri: str, layout: Path) -> Path:
        """Copy the image `uri` into the OCI layout `layout`.

        Returns:
            Where the image is: `layout`, or the directory of an `oci:` uri that can be read where it is.

        Raises:
            AlcoveError: E50 when it is nowhere, with the reason of the place that was tried last.
        """
        if (place := _readable_in_place(uri)) is not None:
            return place
        if _TRANSPORT.match(uri):
            self._copy(uri, layout)
            return layout
        name = with_tag(uri)
        local = self._from_daemon(name, layout) or self._from_store(name, layout)
        if local:
            self.progress("Using the locally available Docker image...")
        else:
            self._copy(f"docker://{name}", layout)
        return layout

    def _from_daemon(self, name: str, layout: Path) -> bool:
        if "DOCKER_HOST" not in self.environment and not _DOCKER_SOCKET.is_socket():
            return False
        return self._try(partial(self._copy, f"docker-daemon:{name}", layout), layout)

    def _from_store(self, name: str, layout: Path) -> bool:
        if shutil.which("buildah", path=self.environment.get("PATH")) is None:
            return False
        # Where this program builds, and where a person's own `buildah bud` does.
        for program in (self._buildah("push"), ["buildah", "push"]):
            argv = [*program, "--quiet", "--", name, f"oci:{layout}:image"]
            if self._try(partial(self._run, argv, "E50", quiet=True), layout):
                return True
        return False

    def _try(self, attempt: Callable[[], None], layout: Path) -> bool:
        try:
            attempt()
        except AlcoveError:  # the image is not there; the next place is asked
            shutil.rmtree(layout, ignore_errors=True)
            return False
        return True

    def _copy(self, source: str, layout: Path) -> None:
        argv = ["skopeo", "--override-os", "linux", "--override-arch", PLATFORMS[self.architecture], "copy"]
        argv += ["--quiet", "--dest-oci-accept-uncompressed-layers"]
        host = self.environment.get("DOCKER_HOST")
        if host and source.startswith("docker-daemon:"):
            argv += ["--src-daemon-host", host]
        if credentials := self.environment.get("DOCKER_CONFIG"):
            # Docker takes it for the directory, nitro-cli for the file (cli.md §3.5).
            path = Path(credentials)
            argv += ["--authfile", str(path / "config.json" if path.is_dir() else path)]
        self._run([*argv, "--", source, f"oci:{layout}:image"], "E50", quiet=source.startswith("docker-daemon:"))

    def _buildah(self, command: str) -> list[str]:
        # vfs works everywhere, without overlayfs and without being root on the machine.
        return ["buildah", "--storage-driver", self.environment.get("STORAGE_DRIVER") or "vfs", command]

    def _run(self, argv: list[str], code: str, *, quiet: bool = False) -> None:
        """Run a program to its end; its lines go to `progress` unless `quiet`."""
        environment = {"BUILDAH_ISOLATION": "chroot", **self.environment}
        what = "built" if code == "E49" else "fetched"
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                text=True,
            )
        except FileNotFoundError:
            hint = f"install it (Debian: apt install {argv[0]}); `alcove doctor` shows what is missing"
            raise MachineError(f"the program {argv[0]} is missing", hint=hint, code=code) from None
        last = ""
        try:
            for line in process.stdout or ():
                last = line.strip() or last
                if not quiet:
                    self.progress(line.rstrip())
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
            if process.stdout:
                process.stdout.close()
        if process.returncode:
            reason = failure_reason(last) or f"{argv[0]} ended with status {process.returncode}"
            hint = HINTS[code]
            raise MachineError(f"the container image could not be {what}: {reason}", hint=hint, code=code)


def _readable_in_place(uri: str) -> Path | None:
    """The layout that `oci:DIRECTORY` names, if it holds one image for one platform; a tag is skopeo's to find."""
    transport, _, directory = uri.partition(":")
    if transport != "oci" or not directory or ":" in directory:
        return None
    return Path(directory) if holds_one_image(Path(directory)) else None


HINTS: Final = {
    "E49": "the lines above are buildah's; the Dockerfile must build with `buildah bud --isolation chroot`",
    "E50": "check the name; a local image is oci:DIRECTORY, docker-archive:FILE or docker-daemon:NAME:TAG",
}


def with_tag(uri: str) -> str:
    """The reference with `:latest` when it has neither tag nor digest (eif.md §7.6); a port is not a tag."""
    return uri if re.search(r"[:@]", uri.rsplit("/", 1)[-1]) else f"{uri}:latest"


def failure_reason(line: str) -> str:
    """The sentence in the last line of buildah or skopeo, without its time stamp and level."""
    match = _LOG_MESSAGE.search(line)
    text = re.sub(r"\\(.)", r"\1", match[1]) if match else line
    return text.removeprefix("Error: ")


def process_environment() -> dict[str, str]:
    """The environment of this process."""
    return dict(os.environ)
