"""Measurements: PCR0, PCR1, PCR2, PCR8 and the checksum of an image (eif.md §1.3 and §2).

Core: bytes in, digests out; one pass, constant memory.

    PCR = SHA384(48 zero bytes ‖ SHA384(content))

    0  kernel ‖ cmdline ‖ every ramdisk     2  every ramdisk but the first
    1  kernel ‖ cmdline ‖ first ramdisk     8  DER of the signing certificate

Content is the data of sections in file order, without headers. Metadata and signature are not measured.
"""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

from alcove.image.format import SectionType
from alcove.types import Digest384, Measurements

try:
    from isal.isal_zlib import crc32 as _crc32  # three times as fast
except ImportError:  # who verifies documents has no need of it
    from zlib import crc32 as _crc32

_POLYNOMIAL: Final = 0xEDB88320  # CRC-32/ISO-HDLC, bits reversed
_ONE: Final = 1 << 31  # the polynomial 1 in the same order of bits


class Feed(Protocol):
    """What data goes into: a hash."""

    def update(self, data: bytes | memoryview, /) -> None:
        """More data."""


Feeds = tuple[Feed, ...]  # of a section: two, or none


def pcr(content: bytes) -> Digest384:
    """The register after one extend by the digest of `content`."""
    return extend(hashlib.sha384(content).digest())


def extend(digest: bytes) -> Digest384:
    """A fresh register (48 zero bytes) extended by `digest`."""
    return Digest384(hashlib.sha384(bytes(48) + digest).digest())


class Measurer:
    """Takes the sections of an image in file order and gives their measurements.

    Call `section` at the start of each section and `update` with its data, in chunks of any size.
    """

    def __init__(self) -> None:
        self._image, self._boot, self._application = (hashlib.sha384() for _ in range(3))
        self._ramdisks = 0
        self._feeds: Feeds = ()

    def section(self, kind: SectionType) -> Feeds:
        """A section of type `kind` begins; the hashes that its data goes into, for who feeds them without `update`."""
        if kind in (SectionType.KERNEL, SectionType.CMDLINE):
            self._feeds = (self._image, self._boot)
        elif kind is SectionType.RAMDISK:
            self._feeds = (self._image, self._application if self._ramdisks else self._boot)
            self._ramdisks += 1
        else:
            self._feeds = ()
        return self._feeds

    def update(self, data: bytes | memoryview) -> None:
        """More data of the section that began last."""
        for feed in self._feeds:
            feed.update(data)

    def measurements(self, certificate_der: bytes | None = None) -> Measurements:
        """The registers so far; PCR8 when the image is signed with this certificate."""
        return Measurements(
            pcr0=extend(self._image.digest()),
            pcr1=extend(self._boot.digest()),
            pcr2=extend(self._application.digest()),
            pcr8=pcr(certificate_der) if certificate_der is not None else None,
        )


def crc32_joined(first: int, second: int, second_length: int) -> int:
    """CRC-32 of two pieces of data from the CRC-32 of each, and the second's length in bytes.

    The header is checksummed before the sections but known only after them, so the writer sums both apart. Appending
    n bytes multiplies the first checksum by x^(8n) modulo the polynomial (Adler, zlib `crc32_combine`).
    """
    return _multiplied(first, _power_of_x(8 * second_length)) ^ second


def _multiplied(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def _power_of_x(exponent: int) -> int:
    result, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            result = _multiplied(result, square)
        square = _multiplied(square, square)
        exponent >>= 1
    return result


def crc32(data: bytes | memoryview, start: int = 0) -> int:
    """CRC-32 of `data`, going on from `start` (eif.md §1.3)."""
    return _crc32(data, start)
