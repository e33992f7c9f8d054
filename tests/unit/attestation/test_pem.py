from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from alcove.attestation import Root, SignedBy
from alcove.attestation.pem import certificates_from_pem


@pytest.fixture(scope="module")
def der() -> bytes:
    """A certificate of version 3."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, hashes.SHA384()).public_bytes(Encoding.DER)


def pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def test_every_certificate_of_a_file_is_read(der: bytes) -> None:
    """In the file's order."""
    assert [c.public_bytes(Encoding.DER) for c in certificates_from_pem(pem(der) * 2)] == [der, der]


@pytest.mark.parametrize("reader", [certificates_from_pem, Root.from_pem, SignedBy.from_pem])
def test_a_certificate_of_an_unknown_version_is_a_value_error(reader: object, der: bytes) -> None:
    """As every other fault is, so that no caller has to know the library's classes."""
    version = b"\xa0\x03\x02\x01\x02"
    assert der.count(version) == 1
    with pytest.raises(ValueError, match="version"):
        reader(pem(der.replace(version, b"\xa0\x03\x02\x01\x40")))  # type: ignore[operator]


def test_a_file_without_a_certificate_is_a_value_error(der: bytes) -> None:
    """Nothing at all, text, a certificate that is cut; said in words that name neither the library nor its pages."""
    for data, said in ((b"", "no cert"), (b"text", "no cert"), (der, "no cert"), (pem(der[:99]), "cannot be read")):
        with pytest.raises(ValueError, match=said) as caught:
            certificates_from_pem(data)
        assert "http" not in str(caught.value)
