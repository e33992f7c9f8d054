"""What build-enclave does: from flags to a request, with our own kernel and init unless others are given."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from alcove import __version__
from alcove.cli.codes import NITRO_CLI_VERSION
from alcove.cli.progress import watcher
from alcove.enclave.paths import Paths
from alcove.errors import MachineError, UsageError
from alcove.guest import DEFAULT_CMDLINES, init_binary
from alcove.image.blobs import Blobs
from alcove.image.build import BuildRequest, build_enclave
from alcove.image.sources.limits import parse_size
from alcove.types import Measurements

if TYPE_CHECKING:
    from alcove.image.signing import Signer

# What BuildMetadata says: under AWS's name, AWS's values (eif.md §4).
BUILD_TOOLS: Final = {"nitro-cli": ("nitro-cli", NITRO_CLI_VERSION)}
_ALIASES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


def build(arguments: argparse.Namespace) -> Measurements:
    """Build the image that the flags ask for."""
    arch = arguments.arch or host_architecture()
    tool, tool_version = BUILD_TOOLS.get(arguments.parser.prog.partition(" ")[0], ("alcove", __version__))
    with interruptible_once(), watcher() as watch:
        request = BuildRequest(
            docker_uri=arguments.docker_uri,
            docker_dir=_path(arguments.docker_dir),
            output_file=Path(arguments.output_file),
            blobs=_blobs(arguments.blobs, arch, watch.say),
            name=arguments.name,
            version=arguments.version,
            metadata=_path(arguments.metadata),
            arch=arch,
            build_time=arguments.build_time,
            build_tool=tool,
            build_tool_version=tool_version,
            signer=_signer(arguments),
            oci_entrypoint=arguments.oci_entrypoint,
            show_log=arguments.show_log,
            max_layer=None if arguments.max_layer is None else parse_size("max-layer", arguments.max_layer),
            work_dir=_artifacts(),
        )
        measurements = build_enclave(request, watch.say, watch.on_bytes)
        if arguments.explain:
            from alcove.image.explain import explain_eif  # noqa: PLC0415 - what not every build needs loads when used

            for line in explain_eif(request.output_file):
                watch.say(line)
    return measurements


def host_architecture() -> str:
    """This machine's, which an image is for unless it says otherwise.

    Raises:
        UsageError: E03 when enclaves know no such machine.
    """
    machine = platform.machine()
    arch = _ALIASES.get(machine, machine)
    if arch not in DEFAULT_CMDLINES:
        hint = "pass --arch x86_64 or --arch aarch64"
        raise UsageError(f"`{machine}` is not a valid value for `arch`", hint=hint, code="E03")
    return arch


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _signer(arguments: argparse.Namespace) -> Signer | None:
    certificate, key = arguments.signing_certificate, arguments.private_key
    if certificate is None:
        return None
    from alcove.image.sign import load_signer  # noqa: PLC0415

    return load_signer(Path(certificate), key)


def _artifacts() -> Path | None:
    """Where temporary files go: AWS's variable, or the system's place (cli.md §3.5)."""
    name = os.environ.get("NITRO_CLI_ARTIFACTS")
    if not name:
        return None
    path = Path(name).absolute()  # buildah has another working directory
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set NITRO_CLI_ARTIFACTS to a directory that can be written, or unset it"
        raise MachineError(f"build files have no place in `{path}`: {error.strerror}", hint=hint, code="E51") from error
    return path


def _blobs(directory: str | None, arch: str, say: Callable[[str], None]) -> Blobs:
    return Blobs.from_directory(Path(directory), arch) if directory else default_blobs(arch, say)


def default_blobs(arch: str, say: Callable[[str], None]) -> Blobs:
    """Debian's kernel and its modules, our init, our command line."""
    from alcove.image.sources.tools_tree import ensure_kernel_tree, ensure_tools_tree  # noqa: PLC0415

    state = Paths.from_environment().state
    tree = ensure_tools_tree(state, say) if arch == "x86_64" else ensure_kernel_tree(state, arch, say)
    return Blobs.from_tools_tree(tree, init_binary(arch), DEFAULT_CMDLINES[arch])


@contextlib.contextmanager
def interruptible_once() -> Iterator[None]:
    """Let the first Ctrl-C end the work and later ones not disturb the cleaning up; so too when the terminal goes."""

    def first(number: int, _frame: FrameType | None) -> None:
        for each in ends:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    ends = [signal.SIGINT] if under_nohup else [signal.SIGINT, signal.SIGHUP]
    before = {each: signal.signal(each, first) for each in ends}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
