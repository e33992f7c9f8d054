"""The arm64 kernel as an enclave image wants it: an uncompressed `Image` that says where it may be placed (eif.md §9).

Core: bytes of a kernel in, bytes of a kernel out.

The header is that of Documentation/arch/arm64/booting.rst, "Call the kernel image": 64 bytes, little-endian.

    0  code0 code1     8  text_offset     16  image_size     24  flags     32  three reserved     56  magic     60  PE
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from alcove.errors import ImageFormatError

MAX_IMAGE: Final = 256 << 20  # ours: Debian's has 30 MB
TEXT_OFFSET: Final = 2 << 20  # where the Nitro platform puts the kernel; kernels since 5.8 say 0 (eif.md §9)

_HEADER: Final = struct.Struct("<2I 3Q 3Q 4sI")
_MAGIC: Final = b"ARM\x64"
_GZIP: Final = b"\x1f\x8b"


def enclave_image(data: bytes) -> bytes:
    """The `Image` in a Debian `vmlinuz`, gzip-compressed or not, with the text offset that the platform needs.

    Raises:
        ImageFormatError: It is no arm64 kernel, or one that only UEFI firmware can start.
    """
    if data.startswith(_GZIP):
        data = _decompressed(data)
    if data[4:8] == b"zimg":
        raise ImageFormatError("an EFI zboot image, which only firmware can start", field="arm64 kernel")
    if len(data) < _HEADER.size or _HEADER.unpack_from(data)[8] != _MAGIC:
        raise ImageFormatError("not an arm64 Image", field="arm64 kernel")
    return data[:8] + struct.pack("<Q", TEXT_OFFSET) + data[16:]


def _decompressed(data: bytes) -> bytes:
    decoder = zlib.decompressobj(wbits=31)
    try:
        image = decoder.decompress(data, MAX_IMAGE)
    except zlib.error as error:
        raise ImageFormatError(f"broken gzip data: {error}", field="arm64 kernel") from error
    if not decoder.eof:
        raise ImageFormatError(f"cut short, or larger than {MAX_IMAGE} bytes", field="arm64 kernel")
    return image
