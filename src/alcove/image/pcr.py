"""The `pcr` command: the register that a file, or a signing certificate, extends (cli.md §2)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from alcove.errors import InputError
from alcove.image.builder import file_chunks
from alcove.image.measure import extend, pcr
from alcove.image.signing import SignatureRefusedError, certificate_der
from alcove.types import Digest384


def pcr_of_file(path: Path) -> Digest384:
    """`pcr --input`: of a file's bytes.

    Raises:
        InputError: E19 when it cannot be read.
    """
    digest = hashlib.sha384()
    for chunk in file_chunks(path):
        digest.update(chunk)
    return extend(digest.digest())


def pcr_of_certificate(path: Path) -> Digest384:
    """`pcr --signing-certificate`: PCR8 of images signed with the first certificate of a PEM file.

    Raises:
        InputError: E19 when it cannot be read, E57 when it is not PEM.
    """
    pem = b"".join(file_chunks(path))
    try:
        return pcr(certificate_der(pem))
    except SignatureRefusedError:
        raise InputError(
            f"`{path}` could not be measured: it holds no certificate in PEM",
            hint="give the certificate as -----BEGIN CERTIFICATE-----",
            code="E57",
        ) from None
