"""What an authority keeps in its directory, under the lock of `files`; no decisions here.

    <directory>/                              0700
        .lock                                 held while anything is written
        root.pem                              0644, the certificate to give to verifiers
        root-key.pem                          0600, the key or the place where it is (`root_key`)
        <region>/regional.pem, zonal.pem      0600, each its certificate and, if it is here, its key
        <region>/<instance id>.pem            the same
        <region>/request-key.pem              0600, between `ca request` and `ca install`
        issued/<serial>.pem                   0644, what was signed here and has not run out
        parents/<name>.pem                    0644, the chain that a parent of the fleet was given last
        crl/<key id>.crl                      0644, PEM, what each issuer here has revoked
        next/                                 a root that is to come: root.pem, root-key.pem
        retired/<fingerprint>.pem             0644, roots that were; still trusted on this machine

Each file is replaced as a whole, so that a certificate and its key never come apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from alcove.attestation.files import PRIVATE, PUBLIC, make_directory, read_file, remove_file, write_file
from alcove.attestation.pem import certificates_from_pem
from alcove.attestation.pki import Issuer
from alcove.attestation.root_key import KeyPlace, plain_pem
from alcove.errors import MachineError, UsageError

RESERVED: Final = frozenset({"crl", "issued", "next", "parents", "retired"})  # no Regions, but folders of our own
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A certificate, and its key when that is here; the root's never is."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None = None

    @property
    def issuer(self) -> Issuer:
        """Certificate and key; MachineError without a key."""
        if self.key is None:
            raise MachineError(
                f"the key of {common_name(self.certificate)} is not on this machine",
                hint="`alcove ca request` here, `alcove ca issue-parent` where the root is, `alcove ca install` here",
            )
        return Issuer(self.certificate, self.key)

    @property
    def der(self) -> bytes:
        """The certificate's DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def end(self) -> datetime:
        """Until when the certificate is valid."""
        return self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True)
class Store:
    """The files below `directory`."""

    directory: Path

    @property
    def root_path(self) -> Path:
        """The root's certificate."""
        return self.directory / "root.pem"

    @property
    def root_key_path(self) -> Path:
        """The root's key, or its place."""
        return self.directory / "root-key.pem"

    @property
    def next(self) -> Store:
        """The root that is to come."""
        return Store(self.directory / "next")

    def key_place(self) -> KeyPlace:
        """Where the root's key is."""
        return KeyPlace.of(self.root_key_path)

    def root(self) -> x509.Certificate:
        """The root's certificate; UsageError when there is none."""
        if not self.root_path.exists():
            raise UsageError(f"there is no root in `{self.directory}`", hint="make one with `alcove ca init`")
        return read_entry(self.root_path).certificate

    def chain_path(self, region: str, name: str) -> Path:
        """Where the issuer `name`, ``regional``, ``zonal`` or an instance's id, of a Region is."""
        return self.directory / region / f"{name}.pem"

    def request_key_path(self, region: str) -> Path:
        """The key of a request that has not been answered."""
        return self.directory / region / "request-key.pem"

    def regions(self) -> list[str]:
        """The Regions that have certificates here."""
        return sorted(path.parent.name for path in self.directory.glob("*/regional.pem"))

    def chain_files(self) -> list[Path]:
        """Every issuer below the root."""
        folders = [self.directory / region for region in self.regions()]
        paths = [path for folder in folders for path in sorted(folder.glob("*.pem"))]
        return [path for path in paths if path.name != "request-key.pem"]

    def parent_path(self, name: str) -> Path:
        """The chain of a parent of the fleet; UsageError when that cannot be its name."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"`{name}` is no name", hint="up to 64 letters, digits, dots, hyphens and underscores")
        return self.directory / "parents" / f"{name}.pem"

    def retired_path(self, certificate: x509.Certificate) -> Path:
        """Where a former root is kept."""
        return self.directory / "retired" / f"{fingerprint(certificate)}.pem"

    def crl_path(self, certificate: x509.Certificate) -> Path:
        """The revocation list of an issuer."""
        return self.directory / "crl" / f"{key_id(certificate)}.crl"

    def crl_paths(self) -> list[Path]:
        """Every revocation list."""
        return sorted(self.directory.glob("crl/*.crl"))

    def former_roots(self) -> Iterator[x509.Certificate]:
        """Roots that were, and are still trusted here."""
        for path in sorted(self.directory.glob("retired/*.pem")):
            yield read_entry(path).certificate

    def write_entry(self, path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | None) -> None:
        """Put a certificate, and its key if that is here, in the place of what was there."""
        make_directory(path.parent)
        write_file(path, pem(certificate) + (b"" if key is None else plain_pem(key)), PRIVATE)

    def write_public(self, path: Path, *certificates: x509.Certificate) -> None:
        """Write certificates that everybody may read."""
        make_directory(path.parent)
        write_file(path, b"".join(map(pem, certificates)), PUBLIC)

    def fresh_serial(self, size: int) -> int:
        """A serial number that was not used here: positive, of `size` bytes with 8·size − 2 random bits (RFC 5280)."""
        while True:
            number = int.from_bytes(secrets.token_bytes(size)) | 1 << (8 * size - 2)
            if size == 20:  # RFC 5280 allows 20 octets, the one for the sign included
                number &= ~(1 << (8 * size - 1))
            if not self._issued_path(number).exists():
                return number

    def record(self, certificate: x509.Certificate, now: datetime) -> None:
        """Remember what was signed, and forget what has run out."""
        self.write_public(self._issued_path(certificate.serial_number), certificate)
        for path in self.directory.glob("issued/*.pem"):
            with contextlib.suppress(MachineError):
                if read_entry(path).end < now:
                    remove_file(path)

    def issued(self, serial: int) -> x509.Certificate | None:
        """The certificate with a serial number, when it was signed here and has not run out."""
        path = self._issued_path(serial)
        return read_entry(path).certificate if path.exists() else None

    def _issued_path(self, serial: int) -> Path:
        return self.directory / "issued" / f"{serial:x}.pem"


def read_entry(path: Path) -> Entry:
    """The certificate in a file, and the key if there is one; MachineError for anything else."""
    content = read_file(path)
    try:
        certificate = certificates_from_pem(content)[0]
    except ValueError as error:
        raise MachineError(f"`{path}` is damaged: {error}") from None
    try:
        key = load_pem_private_key(content, password=None) if b"PRIVATE KEY-----" in content else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise MachineError(f"`{path}` is damaged: the key in it cannot be read") from None
    if key is not None and not isinstance(key, ec.EllipticCurvePrivateKey):
        raise MachineError(f"the key in `{path}` is of another kind")
    if key is not None and certificate.public_key() != key.public_key():
        raise MachineError(f"the key in `{path}` does not belong to its certificate")
    return Entry(certificate, key)


def read_chain(path: Path) -> list[x509.Certificate]:
    """The certificates in a file; MachineError when they cannot be read."""
    try:
        return certificates_from_pem(read_file(path))
    except ValueError as error:
        raise MachineError(f"`{path}` is damaged: {error}") from None


def is_issued_by(certificate: x509.Certificate, parent: x509.Certificate) -> bool:
    """Whether `parent` issued it, by name and signature."""
    try:
        certificate.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as text."""
    return certificate.public_bytes(Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER, in hexadecimal."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def key_id(certificate: x509.Certificate) -> str:
    """The subject key identifier, in hexadecimal."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def common_name(certificate: x509.Certificate) -> str:
    """The subject's common name."""
    attributes = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(attributes[0].value) if attributes else certificate.subject.rfc4514_string()
