"""`describe-eif`: everything an image says about itself, as AWS's JSON (cli.md §2).

A wrong checksum or signature is told, not raised: who describes an image wants to know what is wrong with it.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from cryptography import x509
from cryptography.x509.oid import NameOID

from alcove.errors import AlcoveError, ImageFormatError, InputError
from alcove.image.format import SectionType
from alcove.image.metadata import parse_metadata
from alcove.image.reader import Eif, measure_eif, read_eif, read_section
from alcove.image.signature import PcrInfo, Sign1, SignatureEntry, parse_section
from alcove.image.signing import certificate_der, check_signature, load_certificate

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


def describe_eif(path: Path) -> dict[str, Any]:
    """The JSON object that describe-eif prints for the image at `path`.

    Raises:
        InputError: E19 when it cannot be opened.
        ImageFormatError: E35 when its structure or metadata cannot be read.
    """
    try:
        with path.open("rb") as file:
            return describe(file, read_eif(file))
    except OSError as error:
        raise InputError(f"cannot open `{path}`: {error.strerror}", code="E19") from error


def describe(file: BinaryIO, eif: Eif) -> dict[str, Any]:
    """The same for an open image whose structure was read."""
    measurer, crc = measure_eif(file, eif)
    section = eif.find(SectionType.SIGNATURE)
    entry = _entry(read_section(file, section)) if section else None
    der = _der(entry) if entry else None
    measurements = measurer.measurements(der)
    result: dict[str, Any] = {
        "EifVersion": eif.header.version,
        "Measurements": measurements.to_json(),
        "IsSigned": section is not None,
    }
    if entry is not None and der is not None:
        result["SigningCertificate"] = _describe_certificate(load_certificate(entry.certificate))
    result["CheckCRC"] = crc == eif.header.eif_crc32
    if section is not None:
        result["SignatureCheck"] = entry is not None and _signature_holds(entry, measurements.pcr0)
    metadata_section = eif.find(SectionType.METADATA)
    if metadata_section is not None:
        metadata = parse_metadata(read_section(file, metadata_section))
        result |= {"ImageName": metadata.name, "ImageVersion": metadata.version, "Metadata": metadata.describe()}
    return result


def _entry(section: bytes) -> SignatureEntry | None:
    try:
        return parse_section(section)
    except ImageFormatError:
        return None


def _der(entry: SignatureEntry) -> bytes | None:
    try:
        return certificate_der(entry.certificate)
    except InputError:
        return None


def _signature_holds(entry: SignatureEntry, pcr0: bytes) -> bool:
    """Whether the certificate's key signed this image's PCR0; the validity period is not looked at (eif.md §3.3)."""
    try:
        check_signature(entry, load_certificate(entry.certificate))
        return Sign1.parse(entry.sign1).payload == PcrInfo(0, pcr0).pack()
    except AlcoveError:
        return False


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
