"""A certificate authority in a directory of the parent's, for names that no public one signs.

It signs a request only if the request proves its key, asks for exactly the names that were configured, and, where the
agent can check it, was attested by the image: the caller does that (acm.md §9).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from alcove.apps.acm.certificates import dns_names
from alcove.apps.acm.files import write_atomically
from alcove.errors import InputError, MachineError

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 90
BACKDATED: Final = timedelta(minutes=5)  # clocks differ


@dataclass(frozen=True, slots=True)
class LocalCa:
    """An authority with its key.

    Attributes:
        certificate: Its own; what clients must trust.
        key: P-256.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, directory: Path, now: datetime) -> LocalCa:
        """The authority in a directory, which is made on the first use: ca.pem and, for the owner alone, ca.key.

        Raises:
            MachineError: The files cannot be read or written.
        """
        certificate_file, key_file = directory / "ca.pem", directory / "ca.key"
        try:
            if not key_file.exists():
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                made = cls._create(now)
                write_atomically(certificate_file, made.certificate.public_bytes(Encoding.PEM), 0o644)
                pem = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
                write_atomically(key_file, pem, 0o600)  # last: with it the authority is there
                return made
            key = load_pem_private_key(key_file.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise MachineError(f"the local CA in {directory} cannot be used: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise MachineError(f"the local CA in {directory} cannot be used: key and certificate are no pair")
        return cls(certificate, key)

    @classmethod
    def _create(cls, now: datetime) -> LocalCa:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Alcove local CA {os.urandom(4).hex()}")])
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = _builder(name, name, key.public_key(), now, timedelta(days=CA_DAYS))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(builder.sign(key, hashes.SHA256()), key)

    def issue(self, request_pem: str, names: Collection[str], now: datetime, lifetime: timedelta) -> str:
        """The certificate for a request, PEM.

        Raises:
            InputError: The request does not prove its key, or asks for other names.
        """
        try:
            request = x509.load_pem_x509_csr(request_pem.encode())
            asked = dns_names(request)
        except ValueError:
            raise InputError("this is no request for a certificate") from None
        if not request.is_signature_valid:
            raise InputError("the request is not signed by its own key")
        if asked != {name.lower() for name in names}:
            raise InputError(f"the request is for {', '.join(sorted(asked))}, not for {', '.join(sorted(names))}")
        public = request.public_key()
        builder = _builder(request.subject, self.certificate.subject, public, now, lifetime)
        for extension, critical in (
            (x509.SubjectAlternativeName([x509.DNSName(name) for name in sorted(asked)]), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _builder(
    subject: x509.Name, issuer: x509.Name, public: object, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(public).serial_number(x509.random_serial_number())  # type: ignore[arg-type]
    return builder.not_valid_before(now - BACKDATED).not_valid_after(now + lifetime)
