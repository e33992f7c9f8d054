"""What the issuers of this directory have revoked: their lists, signed and kept as files.

A root, a regional and a zonal authority sign lists of what they issued. An instance's key may sign certificates alone
(attestation.md §4.1), and its leaves live for three hours: to revoke an enclave is to revoke its parent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from alcove.attestation import pki
from alcove.attestation.authority import Authority
from alcove.attestation.files import PUBLIC, locked, make_directory, read_file, remove_file, write_file
from alcove.attestation.pem import certificates_from_pem
from alcove.attestation.pki import Issuer
from alcove.attestation.store import Store, common_name, fingerprint, is_issued_by, read_chain, read_entry
from alcove.errors import AlcoveError, MachineError, UsageError

LIST_LIFE: Final = timedelta(days=30)


def find_certificate(store: Store, text: str) -> x509.Certificate:
    """What a person names: a file, the serial number of what was issued here (hexadecimal), or a parent of the fleet.

    Raises:
        UsageError: It is none of these.
        MachineError: The file cannot be read.
    """
    if Path(text).is_file():
        content = read_file(Path(text))
        try:
            # a chain names its last certificate
            return certificates_from_pem(content)[-1] if b"-----" in content else _der(content)
        except ValueError as error:
            raise UsageError(f"`{text}` cannot be revoked: {error}") from None
    with contextlib.suppress(ValueError):
        if found := store.issued(int(text.replace(":", ""), 16)):
            return found
    with contextlib.suppress(UsageError):
        if (path := store.parent_path(text)).exists():
            return read_chain(path)[-1]
    raise UsageError(
        f"`{text}` is no file, no serial number of a certificate that was issued here, and no parent",
        hint="`alcove ca show` lists them",
    )


def revoke(
    authority: Authority,
    certificate: x509.Certificate,
    now: datetime,
    *,
    reason: x509.ReasonFlags = x509.ReasonFlags.unspecified,
    life: timedelta = LIST_LIFE,
) -> Path:
    """Put a certificate on its issuer's list, and renew what this machine itself used of it.

    Returns:
        The list.

    Raises:
        UsageError: It was not issued here.
        MachineError: The issuer's key cannot be used.
    """
    store = authority.store
    builder = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(now)
    if reason is not x509.ReasonFlags.unspecified:  # RFC 5280 §5.3.1: absent rather than unspecified
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    with locked(store.directory), _issuer_of(authority, certificate, now) as issuer:
        path = _sign(store, issuer, [builder.build()], now, life)
        for chain in store.chain_files():
            with contextlib.suppress(MachineError):  # what cannot be read serves nobody
                if fingerprint(read_entry(chain).certificate) == fingerprint(certificate):
                    remove_file(chain)
    return path


def refresh(authority: Authority, now: datetime, life: timedelta = LIST_LIFE) -> AlcoveError | None:
    """Sign every list anew whose issuer's key is here, and drop those of issuers that have ended.

    Returns:
        Why the root's list was not signed, or None.

    Raises:
        MachineError: A file cannot be read or written.
    """
    store, problem = authority.store, None
    with locked(store.directory):
        try:
            with authority.root_issuer(now) as root:
                _sign(store, root, [], now, life)
        except AlcoveError as error:
            problem = error
        for path in store.chain_files():
            entry = read_entry(path)
            if entry.key is not None and _signs_lists(entry.certificate) and now < entry.end:
                _sign(store, entry.issuer, [], now, life)
        for path in store.crl_paths():
            if read_list(path).next_update_utc < now:  # type: ignore[operator]  # we always say when
                remove_file(path)
    return problem


def read_list(path: Path) -> x509.CertificateRevocationList:
    """A list of ours; MachineError when it is damaged."""
    try:
        return x509.load_pem_x509_crl(read_file(path))
    except ValueError:
        raise MachineError(f"`{path}` is damaged: it holds no revocation list in PEM") from None


def number_of(crl: x509.CertificateRevocationList) -> int:
    """A list's number; each one is greater than the one before it."""
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _sign(store: Store, issuer: Issuer, added: list[x509.RevokedCertificate], now: datetime, life: timedelta) -> Path:
    path = store.crl_path(issuer.certificate)
    entries, number = {entry.serial_number: entry for entry in added}, 1
    if path.exists():
        old = read_list(path)
        if not old.is_signature_valid(pki.public_key(issuer.key)):
            raise MachineError(f"`{path}` was not signed by {common_name(issuer.certificate)}")
        entries = {entry.serial_number: entry for entry in added} | {entry.serial_number: entry for entry in old}
        number = number_of(old) + 1
    crl = pki.issue_crl(issuer, list(entries.values()), number=number, now=now, life=life)
    make_directory(path.parent)
    write_file(path, crl.public_bytes(Encoding.PEM), PUBLIC)
    return path


@contextlib.contextmanager
def _issuer_of(authority: Authority, certificate: x509.Certificate, now: datetime) -> Iterator[Issuer]:
    if fingerprint(certificate) == fingerprint(authority.certificate):
        raise UsageError("a root cannot revoke itself", hint="change to another: `alcove ca rotate --root`")
    if is_issued_by(certificate, authority.certificate):
        with authority.root_issuer(now) as root:
            yield root
        return
    for path in authority.store.chain_files():
        entry = read_entry(path)
        if is_issued_by(certificate, entry.certificate):
            if not _signs_lists(entry.certificate):
                raise UsageError(
                    "an enclave's certificate cannot be revoked, and ends within three hours",
                    hint=f"revoke its parent's, serial {entry.certificate.serial_number:x}",
                )
            yield entry.issuer
            return
    raise UsageError(
        f"the issuer of {common_name(certificate)} is not on this machine",
        hint="revoke it where it was issued, or revoke the issuer that is above it",
    )


def _signs_lists(certificate: x509.Certificate) -> bool:
    return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign


def _der(content: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(content)
    except (ValueError, x509.InvalidVersion):
        raise ValueError("it holds no certificate, in PEM or DER") from None
