"""Finds a container image, or builds it: skopeo copies, buildah builds, and no daemon is needed.

    oci:DIRECTORY[:TAG]    read where it is
    dir:ROOTFS             a root file system, read where it is (`directory`)
    any other transport    docker-archive:, oci-archive:, docker-daemon:, containers-storage:, docker://: skopeo copies
    a reference            1. the Docker daemon, where there is one  2. buildah's and podman's storage  3. its registry

A registry on this machine may do without TLS, as Docker allows.

Builds are reproducible: buildah gives every file of a layer the time SOURCE_DATE_EPOCH (0 when it is not set), so the
same context gives the same layers, and the same measurements, on any day.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from alcove.errors import ImageFormatError, InputError, MachineError, UsageError
from alcove.image.sources import directory, limits, oci, references
from alcove.image.sources.container import ARCHITECTURES, PLATFORMS, ContainerImage, OnBytes, silent
from alcove.image.sources.credentials import buildah_credentials, skopeo_credentials
from alcove.image.sources.programs import ProgramError, run
from alcove.image.sources.references import with_tag
from alcove.image.sources.registries import VARIABLE, registries_conf

__all__ = ["ContainerSource", "Progress", "process_environment", "with_tag"]

Progress = Callable[[str], None]

STAGE: Final = "copying the image"
HINTS: Final = {
    "E49": "the lines above are buildah's; the Dockerfile must build with `buildah bud --isolation chroot`",
    "E50": "check the name; a local image is oci:DIRECTORY, docker-archive:FILE or dir:ROOTFS",
}
_SOCKETS: Final = ("/var/run/docker.sock", "$XDG_RUNTIME_DIR/docker.sock")  # the second is rootless Docker's


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an image may be, for people, and what copies it from there."""

    name: str
    copy: Callable[[], None]
    local: bool = True


@dataclass(frozen=True, slots=True)
class ContainerSource:
    """Where images come from.

    Attributes:
        architecture: `x86_64` or `aarch64`: which image of a multi-platform one is meant.
        environment: The environment to run programs in, and to read DOCKER_HOST, DOCKER_CONFIG, REGISTRY_AUTH_FILE,
            STORAGE_DRIVER and SOURCE_DATE_EPOCH from.
        progress: Gets each line that tells what happens.
        on_bytes: Gets how much of an image has been copied.
    """

    architecture: str
    environment: Mapping[str, str]
    progress: Progress
    on_bytes: OnBytes = field(default=silent)

    def build(self, uri: str, context: Path, work: Path) -> ContainerImage:
        """Build the Dockerfile in a directory, and name the image `uri` in buildah's storage.

        Args:
            uri: The name.
            context: The directory.
            work: For temporary files, which must stay as long as the image is used.

        Raises:
            AlcoveError: E49 when the build fails.
        """
        if not context.is_dir():
            raise UsageError(
                f"`{context}` is not a directory", hint="give the directory with the Dockerfile", code="E49"
            )
        epoch = self.environment.get("SOURCE_DATE_EPOCH") or "0"
        if not epoch.isascii() or not epoch.isdigit():
            raise UsageError(f"SOURCE_DATE_EPOCH is {epoch!r}", hint="give it in seconds since 1970", code="E49")
        identity, layout = work / "image.iid", work / "image"
        credentials, helpers = buildah_credentials(self.environment, work)
        environment = _with_program(self.environment, helpers)
        if (conf := registries_conf(self.environment, work)) is not None:
            environment[VARIABLE] = str(conf)
        argv = [*self._buildah("bud"), "--isolation", "chroot", "--timestamp", epoch, "--pull=false"]
        # The history has digests that depend on who builds; the label has buildah's version. Both would reach the id.
        argv += ["--omit-history", "--identity-label=false"]
        argv += ["--os", "linux", "--arch", PLATFORMS[self.architecture], "--iidfile", str(identity), "--tag", uri]
        argv += ["--authfile", str(credentials)] if credentials else []
        self._build_step([*argv, "--", str(context)], environment, work)
        argv = [*self._buildah("push"), "--quiet", "--disable-compression", "--"]
        self._build_step([*argv, identity.read_text().strip(), f"oci:{layout}:image"], environment, work)
        return oci.load_layout(layout)

    def fetch(self, uri: str, work: Path) -> ContainerImage:
        """Find the image `uri`.

        Args:
            uri: A reference, or a place in one of the spellings above.
            work: For temporary files, which must stay as long as the image is used.

        Raises:
            AlcoveError: E50 when it is nowhere, with each place that was asked and its reason; E48 or E35 when it is
                there and malformed.
        """
        transport = references.transport(uri)
        rest = uri.partition(":")[2]
        if transport == "oci":
            return self._layout(rest)
        if transport == "dir" and not directory.is_skopeo_directory(Path(rest)):
            return directory.open_directory(Path(rest), self.architecture, self.progress)
        if transport is not None:
            return self._named(uri, work)
        return self._found(references.without_shadowed_tag(with_tag(uri)), work)

    def _layout(self, text: str) -> ContainerImage:
        for path, tag in references.splits(text):
            if (Path(path) / "index.json").is_file():
                return oci.load_layout(Path(path), tag, self.architecture)
        hint = "give oci:DIRECTORY or oci:DIRECTORY:TAG; the directory has an index.json"
        raise InputError(f"`{text}` is not an OCI image layout", hint=hint, code="E50")

    def _named(self, uri: str, work: Path) -> ContainerImage:
        """An image whose place is given: one attempt, whose failure is the answer."""
        host = references.registry(uri.removeprefix("docker://")) if uri.startswith("docker://") else None
        try:
            self._copy(uri, work, host=host)
        except ProgramError as error:
            raise _not_fetched(str(error)) from None
        return oci.load_layout(work / "image")

    def _found(self, name: str, work: Path) -> ContainerImage:
        """An image of a name: the first place that has it for this architecture."""
        refusals: dict[str, str] = {}
        for place in self._places(name, work):
            shutil.rmtree(work / "image", ignore_errors=True)
            try:
                place.copy()
                image = oci.load_layout(work / "image")
            except (ProgramError, ImageFormatError) as error:
                refusals[place.name] = str(error)
                continue
            found = ARCHITECTURES.get(str(image.config.get("architecture")))
            if place.local and found != self.architecture:
                refusals[place.name] = f"its image is for {found or 'an unknown machine'}"
                continue
            if place.local:
                self.progress("Using the locally available Docker image...")
            self.progress(f"{name} comes from {place.name}")
            return image
        raise _nowhere(name, refusals)

    def _places(self, name: str, work: Path) -> Iterator[_Place]:
        daemon = self._daemon()
        if daemon is None:
            yield _Place("the Docker daemon", partial(_refuse, f"there is no socket {_SOCKETS[0]}"))
        else:
            copy = partial(self._copy, f"docker-daemon:{name}", work, daemon=daemon)
            yield _Place(f"the Docker daemon at {daemon}", copy)
        for driver in self._drivers():
            place = f"buildah's storage ({driver})" if driver else "buildah's and podman's storage"
            yield _Place(place, partial(self._copy_stored, name, work, driver))
        host = references.registry(name)
        yield _Place(f"the registry {host}", partial(self._copy, f"docker://{name}", work, host=host), local=False)

    def _daemon(self) -> str | None:
        """Where a Docker daemon listens, or is said to."""
        if host := self.environment.get("DOCKER_HOST"):
            return host
        sockets = (path.replace("$XDG_RUNTIME_DIR", self.environment.get("XDG_RUNTIME_DIR", "")) for path in _SOCKETS)
        return next((f"unix://{path}" for path in sockets if Path(path).is_socket()), None)

    def _drivers(self) -> tuple[str, ...]:
        """Storage drivers to look with: where this program builds; and the machine's own, for a person's builds."""
        chosen = self.environment.get("STORAGE_DRIVER")
        return (chosen,) if chosen else ("vfs", "")

    def _copy_stored(self, name: str, work: Path, driver: str) -> None:
        """Copy from buildah's and podman's storage; buildah knows what it calls its images, skopeo has to be told."""
        if shutil.which("buildah", path=self.environment.get("PATH")) is not None:
            argv = ["buildah", *(["--storage-driver", driver] if driver else []), "push", "--quiet"]
            layout = work / "image"
            self._run([*argv, "--disable-compression", "--", name, f"oci:{layout}:image"], work)
            return
        first: ProgramError | None = None
        for stored in references.stored_names(name):
            try:
                self._copy(f"containers-storage:{stored}", work)
            except ProgramError as error:
                first = first or error
            else:
                return
        raise first or ProgramError("it is not there")

    def _copy(
        self,
        source: str,
        work: Path,
        *,
        host: str | None = None,
        daemon: str | None = None,
    ) -> None:
        """Let skopeo copy an image into the layout `image` of the directory `work`.

        Args:
            source: In skopeo's spelling.
            work: The directory.
            host: The registry, when it is one.
            daemon: Where Docker's daemon is, when it is that.
        """
        argv = ["skopeo", "--override-os", "linux", "--override-arch", PLATFORMS[self.architecture], "copy"]
        argv += ["--quiet", "--dest-oci-accept-uncompressed-layers"]
        if source.startswith("docker-daemon:") and (daemon := daemon or self._daemon()):
            argv += ["--src-daemon-host", daemon]
            if certificates := self.environment.get("DOCKER_CERT_PATH"):
                argv += ["--src-cert-dir", certificates]
        helpers = None
        if host is not None:
            credentials, helpers = skopeo_credentials(self.environment, host, work)
            argv += ["--src-authfile", str(credentials)] if credentials else []
            argv += ["--src-tls-verify=false"] if references.is_loopback(host) else []
        self._run([*argv, "--", source, f"oci:{work / 'image'}:image"], work, helpers)

    def _run(self, argv: list[str], work: Path, programs: str | None = None) -> None:
        """Run what makes the layout, and watch it grow; `programs` is one more directory of its PATH."""
        # What it unpacks meanwhile goes where the rest goes, and away with it.
        environment = {**_with_program(self.environment, programs), "TMPDIR": str(work)}
        layout = work / "image"
        run(argv, environment, lambda _: None, lambda: self.on_bytes(STAGE, _size(layout), None), code="E50")

    def _build_step(self, argv: list[str], environment: Mapping[str, str], work: Path) -> None:
        environment = {"BUILDAH_ISOLATION": "chroot", **environment, "TMPDIR": str(work)}
        try:
            run(argv, environment, self.progress, code="E49")
        except ProgramError as error:
            message = f"the container image could not be built: {error}"
            raise MachineError(message, hint=HINTS["E49"], code="E49") from None

    def _buildah(self, command: str) -> list[str]:
        # vfs works everywhere, without overlayfs and without being root on the machine.
        return ["buildah", "--storage-driver", self.environment.get("STORAGE_DRIVER") or "vfs", command]


def _with_program(environment: Mapping[str, str], directory: str | None) -> dict[str, str]:
    """The environment with one more directory at the end of its PATH."""
    path = environment.get("PATH", os.defpath)
    return {**environment, "PATH": f"{path}{os.pathsep}{directory}"} if directory else dict(environment)


def _refuse(reason: str) -> None:
    raise ProgramError(reason)


def _not_fetched(reason: str) -> MachineError:
    hint = limits.NO_ROOM if "no space left on device" in reason else HINTS["E50"]
    return MachineError(f"the container image could not be fetched: {reason}", hint=hint, code="E50")


def _nowhere(name: str, refusals: Mapping[str, str]) -> MachineError:
    """The error that names every place; what two places say alike is said once."""
    places: dict[str, list[str]] = {}
    for place, reason in refusals.items():
        places.setdefault(reason, []).append(place)
    told = "; ".join(f"{' and '.join(names)}: {reason}" for reason, names in places.items())
    return _not_fetched(f"{name} is nowhere: {told}")


def _size(layout: Path) -> int:
    """Bytes of a layout that grows: its blobs, and those that are not whole yet."""
    total = 0
    for path in (layout, layout / "blobs" / "sha256"):
        try:
            with os.scandir(path) as entries:
                total += sum(entry.stat().st_size for entry in entries if entry.is_file())
        except OSError:  # it is not there yet, or a file has just got its name
            continue
    return total


def process_environment() -> dict[str, str]:
    """The environment of this process."""
    return dict(os.environ)
