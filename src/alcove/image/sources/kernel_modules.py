"""Which kernel modules an enclave needs, and in which order to load them.

Core: bytes of modules in, an order of names out.

Debian unpacks a kernel without ``modules.dep`` (depmod is a maintainer script, and none runs here), so the
dependencies are read from where depmod would read them: the ``depends=`` string in a module's ``.modinfo`` section
(``include/linux/module.h``, scripts/mod/modpost.c).
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterable
from typing import Final

from alcove.errors import ImageFormatError

# devices.md §1.1: the transport, then what drives virtio ids 19 and 33 on it.
ENCLAVE_MODULES: Final = ("virtio_mmio", "vmw_vsock_virtio_transport", "nsm")
MAX_MODULE: Final = 16 << 20  # far above any module named here; bounds what a broken .xz may expand to


def decompress(data: bytes) -> bytes:
    """A module's ELF bytes, from ``.ko`` or ``.ko.xz`` content.

    Raises:
        ImageFormatError: The compression is broken, or the result is no ELF file or too large.
    """
    if data.startswith(b"\xfd7zXZ\x00"):
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        try:
            data = decoder.decompress(data, MAX_MODULE)
        except lzma.LZMAError as error:
            raise ImageFormatError(f"broken xz data: {error}", field="kernel module") from error
        if not decoder.eof:
            raise ImageFormatError("cut short, or larger than 16 MiB", field="kernel module")
    if not data.startswith(b"\x7fELF"):
        raise ImageFormatError("not an ELF file", field="kernel module")
    return data


def dependencies(module: bytes) -> tuple[str, ...]:
    """Names that the ``depends=`` string of an uncompressed module lists; empty when it needs none."""
    _, found, rest = module.partition(b"\0depends=")
    names = rest.partition(b"\0")[0].decode("ascii", "replace") if found else ""
    return tuple(name.replace("-", "_") for name in names.split(",") if name)


def load_order(wanted: Iterable[str], depends: Callable[[str], Iterable[str]]) -> tuple[str, ...]:
    """Every wanted module after all that it needs, each once; the given order is kept where it may be.

    Args:
        wanted: Module names, with underscores.
        depends: Names that a module needs directly.

    Raises:
        ImageFormatError: Modules need each other in a circle.
    """
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ImageFormatError(f"{' needs '.join((*path, name))}", field="kernel module")
        if name not in order:
            for needed in depends(name):
                visit(needed, (*path, name))
            order.append(name)

    for name in wanted:
        visit(name, ())
    return tuple(order)
