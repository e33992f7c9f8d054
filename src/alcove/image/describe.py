"""`describe-eif`: everything an image says about itself, as AWS's JSON (cli.md §2).

A wrong checksum or signature is told, not raised: who describes an image wants to know what is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from cryptography import x509
from cryptography.x509.oid import NameOID

from alcove.errors import ImageFormatError, InputError
from alcove.image.format import SectionType
from alcove.image.metadata import parse_metadata
from alcove.image.reader import Eif, measure_eif, read_eif, read_section
from alcove.image.signature import SignatureEntry, parse_section
from alcove.image.signing import (
    SignatureRefusedError,
    certificate_der,
    check_payload,
    check_signature,
    load_certificate,
)

# OpenSSL's long names where they are not those of RFC 4519 (crypto/objects/objects.txt).
_LONG_NAMES = {
    NameOID.COMMON_NAME: "commonName",
    NameOID.COUNTRY_NAME: "countryName",
    NameOID.STATE_OR_PROVINCE_NAME: "stateOrProvinceName",
    NameOID.LOCALITY_NAME: "localityName",
    NameOID.ORGANIZATION_NAME: "organizationName",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "organizationalUnitName",
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.DOMAIN_COMPONENT: "domainComponent",
    NameOID.SURNAME: "surname",
    NameOID.GIVEN_NAME: "givenName",
    NameOID.TITLE: "title",
    NameOID.STREET_ADDRESS: "streetAddress",
    NameOID.POSTAL_CODE: "postalCode",
}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True)
class Description:
    """An image described.

    Attributes:
        json: The object that describe-eif prints, with AWS's keys in AWS's order.
        warnings: What is wrong with the image, or was tolerated; a line each, for people.
    """

    json: dict[str, Any]
    warnings: tuple[str, ...]


def describe_eif(path: Path) -> dict[str, Any]:
    """The JSON object that describe-eif prints for the image at `path`; raises as `describe_image`."""
    return describe_image(path).json


def describe_image(path: Path, *, strict: bool = False) -> Description:
    """Describe the image at `path` as of now.

    Args:
        path: The image.
        strict: Refuse what nitro-cli would not write, instead of telling it.

    Raises:
        InputError: E19 when it cannot be read.
        ImageFormatError: E35 when its structure cannot be read, or it is not as it should be and `strict`.
    """
    try:
        with path.open("rb") as file:
            eif = read_eif(file, lenient=not strict)
            if strict:
                eif.refuse_findings()
                _metadata(file, eif)
            return describe(file, eif, datetime.now(UTC))
    except OSError as error:
        raise InputError(f"cannot open `{path}`: {error.strerror}", code="E19") from error


def describe(file: BinaryIO, eif: Eif, at: datetime) -> Description:
    """Describe an open image whose structure was read.

    Args:
        file: The image.
        eif: Its structure.
        at: The time that the signing certificate's validity is held against.
    """
    warnings = list(eif.warnings)
    measurer, crc = measure_eif(file, eif)
    section = eif.find(SectionType.SIGNATURE)
    signature = _Signature.read(read_section(file, section)) if section else None
    measurements = measurer.measurements(signature.der if signature else None)
    result: dict[str, Any] = {
        "EifVersion": eif.header.version,
        "Measurements": measurements.to_json(),
        "IsSigned": section is not None,
    }
    if signature is not None and signature.certificate is not None:
        result |= _certificate(signature.certificate, at, warnings)
    result["CheckCRC"] = crc == eif.header.eif_crc32
    if crc != eif.header.eif_crc32:
        warnings.append(f"CheckCRC: the header says {eif.header.eif_crc32:08x}, the content has {crc:08x}")
    if signature is not None:
        problem = signature.problem(measurements.pcr0)
        result["SignatureCheck"] = problem is None
        warnings += [f"SignatureCheck: {problem}"] if problem else []
    try:
        result |= _metadata(file, eif, warnings)
    except ImageFormatError as error:
        warnings.append(error.message)
    return Description(result, tuple(warnings))


@dataclass(frozen=True, slots=True)
class _Signature:
    """A signature section as far as it can be read; `fault` says what cannot."""

    entry: SignatureEntry | None = None
    certificate: x509.Certificate | None = None
    der: bytes | None = None
    fault: str | None = None

    @classmethod
    def read(cls, section: bytes) -> _Signature:
        try:
            entry = parse_section(section)
        except ImageFormatError as error:
            return cls(fault=error.message)
        try:
            certificate = load_certificate(entry.certificate)
            return cls(entry, certificate, certificate_der(entry.certificate))
        except SignatureRefusedError as error:
            return cls(entry, fault=error.reason)

    def problem(self, pcr0: bytes) -> str | None:
        """Why it is no signature over this PCR0; the validity period is not looked at (eif.md §3.3)."""
        if self.entry is None or self.certificate is None:
            return self.fault
        try:
            check_signature(self.entry, self.certificate)
            check_payload(self.entry, pcr0)
        except SignatureRefusedError as error:
            return error.reason
        except ImageFormatError as error:
            return error.message
        return None


def _certificate(certificate: x509.Certificate, at: datetime, warnings: list[str]) -> dict[str, Any]:
    try:
        described = _describe_certificate(certificate)
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except ValueError as error:  # its fields are parsed when they are asked for
        warnings.append(f"the signing certificate cannot be shown: {error}")
        return {}
    if at < first:
        warnings.append(f"the signing certificate is not valid before {openssl_time(first)}")
    if at > last:
        warnings.append(f"the signing certificate expired on {openssl_time(last)}")
    return {"SigningCertificate": described}


def _metadata(file: BinaryIO, eif: Eif, warnings: list[str] | None = None) -> dict[str, Any]:
    """The last three keys; none where there is no metadata. Without `warnings`, a missing key is an error."""
    section = eif.find(SectionType.METADATA)
    if section is None:
        return {}
    data = read_section(file, section)
    try:
        metadata = parse_metadata(data)
    except ImageFormatError as error:
        if warnings is None:
            raise
        metadata = parse_metadata(data, lenient=True)
        warnings.append(error.message)
    return {"ImageName": metadata.name, "ImageVersion": metadata.version, "Metadata": metadata.describe()}


def _describe_certificate(certificate: x509.Certificate) -> dict[str, Any]:
    issuer = {_LONG_NAMES.get(item.oid, item.oid.dotted_string): str(item.value) for item in certificate.issuer}
    return {
        "IssuerName": dict(sorted(issuer.items())),
        "Algorithm": certificate.signature_algorithm_oid._name,  # noqa: SLF001  # no public name for the name
        "NotBefore": openssl_time(certificate.not_valid_before_utc),
        "NotAfter": openssl_time(certificate.not_valid_after_utc),
        "Signature": certificate.signature.hex(":").upper(),
    }


def openssl_time(moment: datetime) -> str:
    """A time as OpenSSL prints it: `Jan  1 00:00:00 2026 GMT`, in English whatever the locale."""
    return f"{_MONTHS[moment.month - 1]} {moment.day:2} {moment:%H:%M:%S} {moment.year} GMT"
