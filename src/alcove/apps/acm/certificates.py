"""A key's certificate chain: that it is the key's, in order, in time, and for the names that it should be for.

Core: PEM and a time in, certificates out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from alcove.apps.acm.keypair import KeyPair
from alcove.errors import InputError

MAX_CHAIN: Final = 10


def read_chain(pem: str) -> list[x509.Certificate]:
    """The certificates in a PEM text, the key's own first.

    Raises:
        InputError: There are none, too many, or one cannot be read.
    """
    try:
        chain = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise InputError("the certificate is not PEM, or not a certificate") from None
    if len(chain) > MAX_CHAIN:
        raise InputError(f"a chain of {len(chain)} certificates", hint=f"at most {MAX_CHAIN}")
    return chain


def check_chain(
    chain: Sequence[x509.Certificate], key: KeyPair, at: datetime, names: Collection[str] | None = None
) -> None:
    """Return when the chain can be served with the key.

    Args:
        chain: The key's certificate first.
        key: The key.
        at: Aware; when it must be valid.
        names: The names that the certificate may be for; None for any.

    Raises:
        InputError: It cannot, and why.
    """
    if chain[0].public_key() != key.public:
        raise InputError("the certificate belongs to another key", hint="certificate and key must be a pair")
    for certificate in chain:
        name = certificate.subject.rfc4514_string() or "a certificate"
        if at < certificate.not_valid_before_utc:
            raise InputError(f"{name} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
        if at > certificate.not_valid_after_utc:
            raise InputError(f"{name} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    for position, (certificate, issuer) in enumerate(pairwise(chain), 1):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise InputError(
                f"the chain is out of order: certificate {position + 1} did not sign certificate {position}",
                hint="the key's own certificate comes first, then its issuer, and so on",
            ) from None
    if names is not None:
        _check_names(chain[0], names)


def _check_names(certificate: x509.Certificate, names: Collection[str]) -> None:
    carried = dns_names(certificate)
    strange = sorted(carried - {name.lower() for name in names})
    if strange or not carried:
        said = f"for {', '.join(strange)}" if strange else "for no name"
        raise InputError(f"the certificate is {said}, and the key is for {', '.join(sorted(names))}")


def dns_names(certificate: x509.Certificate | x509.CertificateSigningRequest) -> set[str]:
    """The names in the certificate, in lower case."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return set()
    return {name.lower() for name in extension.value.get_values_for_type(x509.DNSName)}
