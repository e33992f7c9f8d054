"""Certificates from PEM, with one kind of error for all that can be wrong with them.

Core: bytes in, certificates out.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm


def certificates_from_pem(data: bytes) -> list[x509.Certificate]:
    """The certificates in a PEM file, at least one.

    Raises:
        ValueError: There is none, or one cannot be read; also where cryptography raises another class, for a version.
    """
    try:
        return x509.load_pem_x509_certificates(data)
    except (x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise ValueError(str(error)) from None
