"""From a container image to an enclave image: `build-enclave`.

1. the inputs that cost nothing are checked: metadata, time, output directory, boot files
2. the container image is built or fetched into an OCI layout, and flattened (`sources`)
3. its configuration gives the process and the metadata (eif.md §4, §7.5); what Docker would do otherwise is said
4. both ramdisks stream into the output, which is measured and signed on the way (`builder`)

Everything temporary is in one directory, which is removed however the build ends.

Measurements never depend on the clock. A Dockerfile's build gives every file of its layers one time (`fetch`), the
ramdisks take their times from the layers, and BuildTime is not measured. With SOURCE_DATE_EPOCH, or `build_time`,
BuildTime is fixed too, and so is the whole file, unless it is signed: an ECDSA signature is made with a random number.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alcove.codec import cpio
from alcove.errors import ImageFormatError, InputError, UsageError
from alcove.image.blobs import Blobs
from alcove.image.builder import NewHeader, NewSection, file_chunks, target_of, write_eif
from alcove.image.format import ARCHITECTURES, SectionType
from alcove.image.lanes import Chunk
from alcove.image.metadata import (
    MAX_CUSTOM,
    UNKNOWN,
    BuildMetadata,
    ImageMetadata,
    build_time_text,
    default_image_name,
    kernel_identity,
    parse_custom,
)
from alcove.image.process import LOG_LABEL, LOG_PORT, Process, asks_for_log, differences, nitro_process, oci_process
from alcove.image.ramdisk import add_init_layer, application_entries, boot_entries
from alcove.image.sources.container import ARCHITECTURES as PLATFORMS
from alcove.image.sources.container import ContainerImage, Flattened, OnBytes, silent
from alcove.image.sources.fetch import ContainerSource, Progress, process_environment, with_tag
from alcove.image.sources.limits import Limits
from alcove.types import Measurements

if TYPE_CHECKING:
    from alcove.image.signing import Signer  # X.509 takes as long to load as the rest, and few images are signed


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
        arch: `x86_64` or `aarch64`: of the kernel, and of the container image that sources are asked for.
        oci_entrypoint: Run the image as Docker would (`process`), which changes PCR0 and PCR2.
        show_log: Let the parent see what the application prints, as the label `alcove.log` does; changes PCR0 and PCR2.
        build_time: RFC 3339 text; SOURCE_DATE_EPOCH or now when None.
        build_tool, build_tool_version: What BuildMetadata says.
        signer: Signs PCR0; None leaves the image unsigned.
        max_layer: Bytes that a layer may have after decompression; the sources' own limit when None.
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
    oci_entrypoint: bool = False
    show_log: bool = False
    max_layer: int | None = None
    work_dir: Path | None = None
    environment: dict[str, str] = field(default_factory=process_environment)

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise UsageError(f"{self.arch} is not an architecture", hint="x86_64 or aarch64", code="E03")
        if (self.oci_entrypoint or self.show_log) and not self.blobs.reads_oci:
            flag = "--oci-entrypoint" if self.oci_entrypoint else "--show-log"
            raise UsageError(
                f"`{flag}` and `--blobs` exclude each other: only Alcove's own init honours it",
                hint="leave out --blobs and NITRO_CLI_BLOBS, or write a CMD that does the same",
                code="E02",
            )


def build_enclave(request: BuildRequest, progress: Progress, on_bytes: OnBytes | None = None) -> Measurements:
    """Build an enclave image by the recipe above.

    Args:
        request: What to build.
        progress: Gets each line that tells what happens, and every warning.
        on_bytes: Gets the stage, the bytes done and the bytes there are, when known, as the image is written.

    Raises:
        AlcoveError: E02, E03 (request), E48 (image), E49 (container build), E50 (fetch), E19 (files), E52 (boot files).
    """
    custom = _custom_metadata(request.metadata)
    build_time = build_time_text(request.build_time, request.environment.get("SOURCE_DATE_EPOCH"), datetime.now(UTC))
    _check_files(request)
    progress("Start building the Enclave Image...")
    with tempfile.TemporaryDirectory(prefix="alcove-build-", dir=request.work_dir, ignore_cleanup_errors=True) as work:
        source = ContainerSource(request.arch, request.environment, progress, on_bytes or silent)
        try:
            if request.docker_dir is not None:
                image = source.build(with_tag(request.docker_uri), request.docker_dir, Path(work))
            else:
                image = source.fetch(request.docker_uri, Path(work))
            _check_architecture(request, image)
            metadata = _metadata(request, image, build_time, custom)
            measurements = _assemble(request, image, metadata, Path(work), (progress, on_bytes))
        except ImageFormatError as error:
            raise _as_build_error(error) from error
    progress("Enclave Image successfully created.")
    return measurements


def _assemble(
    request: BuildRequest,
    image: ContainerImage,
    metadata: ImageMetadata,
    work: Path,
    tell: tuple[Progress, OnBytes | None],
) -> Measurements:
    """Steps 3 and 4, for a container image in a layout."""
    progress, on_bytes = tell
    limits = Limits.from_environment(request.environment, request.max_layer)
    flattened = image.flatten(work, limits, on_bytes or silent)
    process = _process(request, image, flattened, progress)
    add_init_layer(flattened.root)
    blobs, files, root = request.blobs, process.files(), flattened.root
    boot = list(boot_entries(blobs.read_init(), blobs.read_modules()))
    application = cpio.archive(application_entries(root, files, flattened.lend))
    if on_bytes is not None:  # foretelling the size takes a walk through the tree
        size = cpio.archive_size(application_entries(root, files, flattened.lend))
        application = _counted(application, "writing the image", size, on_bytes)
    sections = (
        NewSection(SectionType.KERNEL, file_chunks(blobs.kernel)),
        NewSection(SectionType.CMDLINE, (blobs.cmdline.strip().encode(),)),
        NewSection(SectionType.METADATA, (metadata.pack(),)),
        NewSection(SectionType.RAMDISK, cpio.archive(boot)),
        NewSection(SectionType.RAMDISK, application),
    )
    signer = request.signer
    header = NewHeader(flags=ARCHITECTURES.index(request.arch))
    measurer = write_eif(request.output_file, header, sections, signer.sign if signer else None)
    return measurer.measurements(signer.certificate_der if signer else None)


def _process(request: BuildRequest, image: ContainerImage, flattened: Flattened, progress: Progress) -> Process:
    process, labelled = _program(request, image, flattened, progress), asks_for_log(image.settings)
    if labelled and not request.blobs.reads_oci:
        progress(f"warning: LABEL {LOG_LABEL} is ignored: only Alcove's own init honours it")
    elif labelled or request.show_log:
        said = f"LABEL {LOG_LABEL}" if labelled else "--show-log"
        progress(f"note: {said} lets the parent see the application's output; it adds the file `log` to PCR0 and PCR2")
        return replace(process, log_port=LOG_PORT)
    return process


def _program(request: BuildRequest, image: ContainerImage, flattened: Flattened, progress: Progress) -> Process:
    if request.oci_entrypoint:
        progress("note: --oci-entrypoint adds the file `oci` to the image: PCR0 and PCR2 are not those of nitro-cli")
        return oci_process(image.settings, flattened.root, flattened.read)
    process = nitro_process(image.settings)
    for sentence in differences(image.settings, flattened.root):
        progress(f"warning: {sentence}")
    return process


def _counted(chunks: Iterable[Chunk], stage: str, total: int, on_bytes: OnBytes) -> Iterator[Chunk]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        on_bytes(stage, done, total)


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
    output = target_of(request.output_file)
    directory = output.parent
    taken = output.exists() and not output.is_file()  # a directory or a device
    if taken or not directory.is_dir() or not os.access(directory, os.W_OK):
        hint = "give --output-file a path in a directory that can be written"
        raise UsageError(f"cannot write `{request.output_file}`", hint=hint, code="E19")
    blobs = request.blobs
    for path in (blobs.kernel, blobs.init, *(path for _, path in blobs.modules)):
        if not os.access(path, os.R_OK):
            raise InputError(f"cannot read `{path}`", hint="run `alcove setup`", code="E52")


def _check_architecture(request: BuildRequest, image: ContainerImage) -> None:
    found = str(image.config.get("architecture"))
    if PLATFORMS.get(found) != request.arch:
        raise ImageFormatError(
            f"the container image is for {found}, the enclave for {request.arch}",
            field="architecture",
            hint=f"pass --arch {PLATFORMS[found]}" if found in PLATFORMS else "amd64 or arm64 is needed",
            code="E48",
        )


def _metadata(
    request: BuildRequest, image: ContainerImage, build_time: str, custom: dict[str, Any] | None
) -> ImageMetadata:
    config = request.blobs.kernel_config
    text = b"".join(file_chunks(config)).decode("utf-8", "replace") if config else ""
    system, kernel_version = kernel_identity(text) if config else (UNKNOWN, UNKNOWN)
    build = BuildMetadata(
        build_time=build_time,
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


def docker_info(uri: str, image: ContainerImage) -> dict[str, Any]:
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


def _as_build_error(error: ImageFormatError) -> ImageFormatError:
    """An error in the container image, told as what it is to the caller: the build failed (E48)."""
    return ImageFormatError(f"the image could not be built: {error.message}", hint=error.hint, code="E48")
