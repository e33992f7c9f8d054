"""Certificates from PEM, with one kind of error for all that can be wrong with them.

Core: bytes in, certificates out.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

_LABEL: Final = b"CERTIFICATE-----"


def certificates_from_pem(data: bytes) -> list[x509.Certificate]:
    """The certificates in a PEM file, at least one.

    Raises:
        ValueError: There is none, or one cannot be read; in words for people, which the library's own are not.
    """
    if _LABEL not in data:
        raise ValueError("it holds no certificate in PEM")
    try:
        return x509.load_pem_x509_certificates(data)
    except x509.InvalidVersion:
        raise ValueError("a certificate in it is of an unknown version") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("a certificate in it cannot be read") from None
