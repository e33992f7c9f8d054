"""From a container image to an enclave image: `build-enclave`.

1. the inputs that cost nothing are checked: metadata, output directory, boot files
2. the container image is built or fetched into an OCI layout, and flattened (`sources`)
3. its configuration gives the command, the environment and the metadata (eif.md §4, §7.5)
4. both ramdisks stream into the output, which is measured and signed on the way (`builder`)

Everything temporary is in one directory, which is removed however the build ends.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alcove.codec import cpio
from alcove.errors import ImageFormatError, InputError, UsageError
from alcove.image.blobs import Blobs
from alcove.image.builder import NewHeader, NewSection, file_chunks, write_eif
from alcove.image.format import ARCHITECTURES, SectionType
from alcove.image.metadata import (
    MAX_CUSTOM,
    UNKNOWN,
    BuildMetadata,
    ImageMetadata,
    default_image_name,
    kernel_identity,
    parse_custom,
)
from alcove.image.ramdisk import add_init_layer, application_entries, boot_entries, command_of, texts
from alcove.image.signing import Signer
from alcove.image.sources import oci
from alcove.image.sources.fetch import ContainerSource, Progress, process_environment, with_tag
from alcove.types import Measurements


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What `build-enclave` is asked for.

    Attributes:
        docker_uri: Reference of the container image.
        output_file: Where the enclave image goes; replaced only by a whole image.
        blobs: Kernel, command line, init and modules.
        docker_dir: Directory with a Dockerfile to build first, under the name `docker_uri`.
        name, version: Of the image; from the reference and the container image's id when None.
        metadata: File with a JSON object for CustomMetadata.
        arch: `x86_64` or `aarch64`.
        build_time: RFC 3339 text; SOURCE_DATE_EPOCH or now when None.
        build_tool, build_tool_version: What BuildMetadata says.
        signer: Signs PCR0; None leaves the image unsigned.
        work_dir: Where temporary files go, in the size of the unpacked image; the system's place when None.
    """

    docker_uri: str
    output_file: Path
    blobs: Blobs
    docker_dir: Path | None = None
    name: str | None = None
    version: str | None = None
    metadata: Path | None = None
    arch: str = "x86_64"
    build_time: str | None = None
    build_tool: str = "alcove"
    build_tool_version: str = "0.1.0"
    signer: Signer | None = None
    work_dir: Path | None = None
    environment: dict[str, str] = field(default_factory=process_environment)

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise UsageError(f"{self.arch} is not an architecture", hint="x86_64 or aarch64", code="E48")


def build_enclave(request: BuildRequest, progress: Progress) -> Measurements:
    """Build an enclave image by the recipe above.

    Args:
        request: What to build.
        progress: Gets each line that tells what happens.

    Raises:
        AlcoveError: E48 (image), E49 (container build), E50 (fetch), E19 (files), E52 (boot files).
    """
    custom = _custom_metadata(request.metadata)
    _check_files(request)
    progress("Start building the Enclave Image...")
    with tempfile.TemporaryDirectory(prefix="alcove-build-", dir=request.work_dir, ignore_cleanup_errors=True) as work:
        layout = Path(work) / "image"
        source = ContainerSource(request.arch, request.environment, progress)
        if request.docker_dir is not None:
            source.build(with_tag(request.docker_uri), request.docker_dir, layout)
        else:
            source.fetch(request.docker_uri, layout)
        try:
            measurements = _assemble(request, oci.load_layout(layout), custom, Path(work), progress)
        except ImageFormatError as error:
            raise _as_build_error(error) from error
    progress("Enclave Image successfully created.")
    return measurements


def _assemble(
    request: BuildRequest, image: oci.OciImage, custom: dict[str, Any] | None, work: Path, progress: Progress
) -> Measurements:
    """Steps 3 and 4, for a container image in a layout."""
    _check_architecture(request, image)
    settings = image.settings
    command = command_of(settings)
    if settings.get("Cmd") and settings.get("Entrypoint"):
        progress("note: the image has both Entrypoint and Cmd; an enclave runs the Cmd alone")
    environment = texts(settings.get("Env") or [], "Env")
    flattened = oci.flatten(image, work)
    add_init_layer(flattened.root)
    blobs = request.blobs
    boot = boot_entries(blobs.read_init(), blobs.read_modules())
    application = application_entries(flattened.root, command, environment, flattened.read)
    sections = (
        NewSection(SectionType.KERNEL, file_chunks(blobs.kernel)),
        NewSection(SectionType.CMDLINE, (blobs.cmdline.strip().encode(),)),
        NewSection(SectionType.METADATA, (_metadata(request, image, custom).pack(),)),
        NewSection(SectionType.RAMDISK, cpio.archive(boot)),
        NewSection(SectionType.RAMDISK, cpio.archive(application)),
    )
    signer = request.signer
    header = NewHeader(flags=ARCHITECTURES.index(request.arch))
    measurer = write_eif(request.output_file, header, sections, signer.sign if signer else None)
    return measurer.measurements(signer.certificate_der if signer else None)


def _custom_metadata(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        if not path.is_file():
            raise UsageError(f"`{path}` is not a regular file", hint="give a JSON file", code="E19")
        with path.open("rb") as file:
            return parse_custom(file.read(MAX_CUSTOM + 1))
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror}", code="E19") from error


def _check_files(request: BuildRequest) -> None:
    """Fail before the long part, not after it."""
    directory = request.output_file.parent
    if not directory.is_dir() or not os.access(directory, os.W_OK) or request.output_file.is_dir():
        hint = "give --output-file a path in a directory that can be written"
        raise UsageError(f"cannot write `{request.output_file}`", hint=hint, code="E19")
    blobs = request.blobs
    for path in (blobs.kernel, blobs.init, *(path for _, path in blobs.modules)):
        if not os.access(path, os.R_OK):
            raise InputError(f"cannot read `{path}`", hint="run `alcove setup`", code="E52")


def _check_architecture(request: BuildRequest, image: oci.OciImage) -> None:
    found = str(image.config.get("architecture"))
    if oci.ARCHITECTURES.get(found) != request.arch:
        raise ImageFormatError(
            f"the container image is for {found}, the enclave for {request.arch}",
            field="architecture",
            hint="build or name an image for the enclave's architecture",
            code="E48",
        )


def _metadata(request: BuildRequest, image: oci.OciImage, custom: dict[str, Any] | None) -> ImageMetadata:
    config = request.blobs.kernel_config
    text = b"".join(file_chunks(config)).decode("utf-8", "replace") if config else ""
    system, kernel_version = kernel_identity(text) if config else (UNKNOWN, UNKNOWN)
    build = BuildMetadata(
        build_time=request.build_time or _now(request.environment),
        build_tool=request.build_tool,
        build_tool_version=request.build_tool_version,
        operating_system=system,
        kernel_version=kernel_version,
    )
    return ImageMetadata(
        name=request.name if request.name is not None else default_image_name(request.docker_uri),
        version=request.version if request.version is not None else image.digest.partition(":")[2],
        build=build.to_json(),
        docker_info=docker_info(request.docker_uri, image),
        custom=custom,
    )


def docker_info(uri: str, image: oci.OciImage) -> dict[str, Any]:
    """The DockerInfo object: what `docker inspect` says of an image, as far as the image itself tells it."""
    config = image.config
    return {
        "Id": image.digest,
        "RepoTags": [with_tag(uri)],
        "Created": config.get("created"),
        "Author": config.get("author", ""),
        "Architecture": config.get("architecture"),
        "Os": config.get("os"),
        "Config": image.settings,
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
    }


def _now(environment: dict[str, str]) -> str:
    epoch = environment.get("SOURCE_DATE_EPOCH", "")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return moment.isoformat()


def _as_build_error(error: ImageFormatError) -> ImageFormatError:
    """An error in the container image, told as what it is to the caller: the build failed (E48)."""
    return ImageFormatError(f"the image could not be built: {error.message}", hint=error.hint, code="E48")
