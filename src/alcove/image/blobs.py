"""What boots an enclave beside its application: kernel, command line, init and kernel modules (eif.md §9)."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from alcove.errors import ImageFormatError, InputError, MachineError

if TYPE_CHECKING:
    from alcove.image.sources.tools_tree import ToolsTree

KERNELS: Final = {"x86_64": "bzImage", "aarch64": "Image"}
MAX_MODULE: Final = 64 << 20  # ours: bytes of a module after decompression


@dataclass(frozen=True, slots=True)
class Blobs:
    """The boot files of one architecture.

    Attributes:
        kernel: bzImage (x86_64) or Image (aarch64).
        kernel_config: Its configuration, whose third line names the version; None when there is none.
        cmdline: Kernel command line; white space around it is dropped.
        init: The program that the kernel starts.
        modules: Name in the ramdisk (`nsm.ko`, `modules/00-virtio_mmio.ko`) and file (`.ko` or `.ko.xz`) of each, in
            load order.
        reads_oci: Whether the init is ours, which reads the `oci` and `log` files (`process`).
    """

    kernel: Path
    kernel_config: Path | None
    cmdline: str
    init: Path
    modules: tuple[tuple[str, Path], ...] = ()
    reads_oci: bool = False

    def __post_init__(self) -> None:
        if "\0" in self.cmdline:
            raise ImageFormatError("the kernel command line has a NUL", field="cmdline", code="E48")

    @classmethod
    def from_directory(cls, directory: Path, architecture: str = "x86_64") -> Self:
        """The blobs in a directory as AWS ships them: kernel, kernel.config, cmdline, init and nsm.ko.

        Raises:
            MachineError: E52 when one is missing.
        """
        kernel = directory / KERNELS[architecture]
        needed = [kernel, directory / "cmdline", directory / "init"]
        missing = [path.name for path in needed if not path.is_file()]
        if missing:
            raise MachineError(
                f"the boot files are missing in `{directory}`: {', '.join(missing)}",
                hint="set NITRO_CLI_BLOBS to a directory that has them, or unset it and run `alcove setup`",
                code="E52",
            )
        config, module = directory / f"{kernel.name}.config", directory / "nsm.ko"
        return cls(
            kernel=kernel,
            kernel_config=config if config.is_file() else None,
            cmdline=_text(directory / "cmdline"),
            init=directory / "init",
            modules=(("nsm.ko", module),) if module.is_file() else (),
        )

    @classmethod
    def from_tools_tree(cls, tree: ToolsTree, init: Path, cmdline: str) -> Self:
        """A default kernel with its modules, our own init and our own command line."""
        names = [path.name.split(".", 1)[0] for path in tree.modules]
        return cls(
            kernel=tree.kernel,
            kernel_config=tree.kernel_config,
            cmdline=cmdline,
            init=init,
            modules=tuple(
                (f"modules/{index:02}-{name}.ko", path)
                for index, (name, path) in enumerate(zip(names, tree.modules, strict=True))
            ),
            reads_oci=True,
        )

    def read_init(self) -> bytes:
        """The init program.

        Raises:
            InputError: E19 when it cannot be read.
        """
        return _read(self.init)

    def read_modules(self) -> list[tuple[bytes, bytes]]:
        """Name and decompressed content of every module, in load order.

        Raises:
            InputError: E19 when one cannot be read.
            ImageFormatError: When one is not what its name says.
        """
        return [(name.encode(), _decompressed(path)) for name, path in self.modules]


def _decompressed(path: Path) -> bytes:
    data = _read(path)
    if path.suffix != ".xz":
        return data
    decompressor = lzma.LZMADecompressor()
    try:
        module = decompressor.decompress(data, MAX_MODULE)
    except lzma.LZMAError as error:
        raise ImageFormatError(f"{path.name} is not compressed with xz: {error}", field="module", code="E48") from None
    if not decompressor.eof:
        raise ImageFormatError(f"{path.name} is cut off, or more than {MAX_MODULE} bytes", field="module", code="E48")
    return module


def _text(path: Path) -> str:
    try:
        return _read(path).decode().strip()
    except UnicodeDecodeError:
        raise ImageFormatError("the kernel command line is not text", field="cmdline", code="E48") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read `{path}`: {error.strerror}", code="E19") from error
