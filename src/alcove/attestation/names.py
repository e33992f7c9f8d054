"""Names in certificates and documents: whose root it is, Regions, instances, enclaves (attestation.md §3, §4.1).

Core: text in; a checked name out, or UsageError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from alcove.errors import UsageError

_REGION: Final = re.compile(r"[a-z0-9-]{1,20}")  # a leaf's CN has 64 characters, 44 of them its own (§4.1)
_INSTANCE_ID: Final = re.compile(r"i-[0-9a-f]{17}")
_ENCLAVE_ID: Final = re.compile(r"(i-[0-9a-f]{17})-enc([0-9a-f]{16})")
_MAX_NAME: Final = 64  # characters: X.520's upper bound, and what keeps certificates below 1024 bytes


def check_region(region: str) -> str:
    """`region`, which fits into every name of a chain; UsageError otherwise."""
    if not _REGION.fullmatch(region):
        raise UsageError(f"`{region}` is no Region", hint="such as us-east-1: at most 20 letters, digits and hyphens")
    return region


def check_instance_id(instance_id: str) -> str:
    """`instance_id`, of the form ``i-<17 hex>``; UsageError otherwise."""
    if not _INSTANCE_ID.fullmatch(instance_id):
        raise UsageError(f"`{instance_id}` is no instance id", hint="such as i-0123456789abcdef0")
    return instance_id


def split_enclave_id(enclave_id: str) -> tuple[str, bytes]:
    """The instance id and the eight bytes of the slot in ``i-<17 hex>-enc<16 hex>``; UsageError otherwise."""
    match = _ENCLAVE_ID.fullmatch(enclave_id)
    if match is None:
        raise UsageError(f"`{enclave_id}` is no enclave id", hint="such as i-0123456789abcdef0-enc0123456789abcdef")
    return match[1], bytes.fromhex(match[2])


@dataclass(frozen=True, slots=True)
class Organization:
    """Whose root it is; AWS's own names when nothing else is said, for verifiers that look at names.

    Raises:
        UsageError: A name that does not fit into a certificate.
    """

    country: str = "US"
    organization: str = "Amazon"
    unit: str = "AWS"

    def __post_init__(self) -> None:
        """Raises UsageError as above."""
        if not re.fullmatch(r"[A-Z]{2}", self.country):
            raise UsageError(f"`{self.country}` is no country", hint="two capital letters, such as DE")
        for text in (self.organization, self.unit):
            if not text.isprintable() or not 1 <= len(text.encode()) <= _MAX_NAME:
                raise UsageError(f"a name of an organization has 1 to {_MAX_NAME} bytes and no control characters")

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Organization:
        """Whose `certificate` of ours it is."""

        def value(kind: x509.ObjectIdentifier) -> str:
            return str(certificate.subject.get_attributes_for_oid(kind)[0].value)

        return cls(
            value(NameOID.COUNTRY_NAME),
            value(NameOID.ORGANIZATION_NAME),
            value(NameOID.ORGANIZATIONAL_UNIT_NAME),
        )

    @property
    def attributes(self) -> list[tuple[x509.ObjectIdentifier, str]]:
        """C, O and OU, in this order."""
        return [
            (NameOID.COUNTRY_NAME, self.country),
            (NameOID.ORGANIZATION_NAME, self.organization),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, self.unit),
        ]
