"""Decides whether an image is the one that somebody vouches for.

1. its structure is exactly as nitro-cli writes it (`reader`, nothing tolerated), its metadata can be read
2. the checksum is right
3. there is a signature, by a certificate with a key on P-256, P-384 or P-521
4. the certificate's key made the signature
5. the signature is over the PCR0 that was measured (nitro-cli does not look, eif.md §8 trap 6)
6. the certificate is the expected one, where one is given (so PCR8 is)
7. the time lies within the certificate's validity
8. the measured registers are the expected ones, where some are given

Step 6 or step 8 is what ties the image to anybody: anyone can make a certificate. There is no chain (eif.md §3.3).
Where unsigned images are allowed and this is one, steps 3, 4, 5 and 7 are left out.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from alcove.errors import ImageFormatError, InputError
from alcove.image.format import SectionType
from alcove.image.metadata import parse_metadata
from alcove.image.reader import Eif, measure_eif, read_eif, read_section
from alcove.image.signature import parse_section
from alcove.image.signing import (
    SignatureRefusedError,
    certificate_key,
    check_payload,
    check_signature,
    check_validity,
    load_certificate,
)
from alcove.types import Measurements

STEPS: Final = {
    1: "structure and metadata are sound",
    2: "the checksum is right",
    3: "the image is signed, by a certificate with a key on P-256, P-384 or P-521",
    4: "the certificate's key made the signature",
    5: "the signature is over the measured PCR0",
    6: "the certificate is the expected one",
    7: "the certificate is valid at this time",
    8: "the measured registers are the expected ones",
}


class ImageRefusedError(InputError):
    """The image is not valid.

    Args:
        reason: What is wrong.
        step: Number of the failed step of the recipe.
    """

    def __init__(self, reason: str, step: int, hint: str | None = None) -> None:
        super().__init__(f"not a valid image: step {step}: {reason}", hint=hint)
        self.reason = reason
        self.step = step


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """An image that passed; `steps` are the texts of those it went through, `certificate` None when unsigned."""

    measurements: Measurements
    certificate: x509.Certificate | None
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expected:
    """What the image must be.

    Attributes:
        certificate: DER of the signer's certificate; None for any.
        registers: 48 bytes by number of register, among 0, 1, 2 and 8.
        unsigned: Whether an image without a signature will do.
    """

    certificate: bytes | None = None
    registers: Mapping[int, bytes] | None = None
    unsigned: bool = False


def verify_image(file: BinaryIO, expected: Expected, at: datetime) -> VerifiedImage:
    """The image in `file`, accepted by the recipe above.

    Args:
        file: The image.
        expected: What it must be.
        at: The time of the check, with time zone.

    Raises:
        ImageRefusedError: When a step fails.
    """
    steps = _Steps()
    with steps.taking(1):
        eif = _structure(file)
    measurer, crc = measure_eif(file, eif)
    with steps.taking(2):
        _require(crc == eif.header.eif_crc32, f"the header says {eif.header.eif_crc32:08x}, the content has {crc:08x}")
    section = eif.find(SectionType.SIGNATURE)
    certificate = None
    if section is not None or not expected.unsigned:
        pcr0 = measurer.measurements().pcr0
        certificate = _signature(read_section(file, section), pcr0, steps)  # 3, 4, 5
    der = certificate.public_bytes(serialization.Encoding.DER) if certificate else b""
    if expected.certificate is not None:
        with steps.taking(6):
            _require(hmac.compare_digest(der, expected.certificate), "another certificate, or none, signed the image")
    if certificate is not None:
        with steps.taking(7):
            check_validity(certificate, at)
    measured = measurer.measurements(der or None)
    if expected.registers:
        with steps.taking(8):
            _check_registers(measured, expected.registers)
    return VerifiedImage(measured, certificate, tuple(steps.taken))


class _Steps:
    """The steps that were passed; an error inside of one becomes an error of that step."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    @contextmanager
    def taking(self, step: int) -> Iterator[None]:
        try:
            yield
        except SignatureRefusedError as error:
            raise ImageRefusedError(error.reason, step) from None
        except ImageFormatError as error:
            raise ImageRefusedError(error.message, step, error.hint) from None
        self.taken.append(f"{step} {STEPS[step]}")


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise SignatureRefusedError(reason)


def _structure(file: BinaryIO) -> Eif:
    eif = read_eif(file)
    eif.refuse_findings()
    metadata = eif.find(SectionType.METADATA)
    if metadata is not None:
        parse_metadata(read_section(file, metadata))
    return eif


def _signature(section: bytes, pcr0: bytes, steps: _Steps) -> x509.Certificate:
    with steps.taking(3):
        _require(bool(section), "the image is not signed")
        entry = parse_section(section)
        certificate = load_certificate(entry.certificate)
        certificate_key(certificate)
    with steps.taking(4):
        check_signature(entry, certificate)
    with steps.taking(5):
        check_payload(entry, pcr0)
    return certificate


def _check_registers(measured: Measurements, expected: Mapping[int, bytes]) -> None:
    for index, value in expected.items():
        found = getattr(measured, f"pcr{index}") or bytes(48)
        _require(hmac.compare_digest(found, value), f"PCR{index} is {found.hex()}, expected was {value.hex()}")
