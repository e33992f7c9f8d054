"""The certificate authority in a state directory (attestation.md §4.3): the machine's own root of trust.

    <directory>/                              0700
        .lock                                 held while anything is written
        root.pem                              0644, the certificate to give to verifiers
        root-key.pem                          0600
        <region>/regional.pem, zonal.pem      0600, each its certificate and its key
        <region>/<instance id>.pem            the same
        retired/<fingerprint>.pem             0644, certificates of former roots

An authority is renewed together with its key while it still outlives everything that it has to sign. Each file is
replaced as a whole, so that a certificate and its key never come apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from alcove.attestation import pki
from alcove.attestation.attester import PARENT_RENEWAL, ParentIdentity
from alcove.attestation.pki import Issuer
from alcove.attestation.verify import Root
from alcove.errors import MachineError, UsageError

__all__ = ["Authority", "ParentIdentity", "default_instance_id"]

# What each authority must have left to sign another child: the child's life, and the child's own reserve.
ZONAL_RENEWAL: Final = pki.INSTANCE_LIFE + PARENT_RENEWAL
REGIONAL_RENEWAL: Final = pki.ZONAL_LIFE + ZONAL_RENEWAL
BOARD_ASSET_TAG: Final = Path("/sys/devices/virtual/dmi/id/board_asset_tag")  # EC2 puts the instance id here

_INSTANCE_ID: Final = re.compile(r"i-[0-9a-f]{17}")
_PRIVATE: Final = 0o600
_PUBLIC: Final = 0o644


class Authority:
    """The root in a directory and the chains below it; made by `create`, `load` or `open`."""

    def __init__(self, directory: Path, root: Issuer) -> None:
        self._directory = directory
        self._root = root

    @classmethod
    def create(cls, directory: Path, now: datetime | None = None) -> Authority:
        """A new root in `directory`.

        Raises:
            UsageError: There is a root already.
        """
        with _locked(directory):
            if (directory / "root.pem").exists():
                raise UsageError(f"there is a root in `{directory}` already")
            return cls._make(directory, now or datetime.now(UTC))

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """The root in `directory`.

        Raises:
            UsageError: There is none.
            MachineError: Its files cannot be read or do not belong together.
        """
        if not (directory / "root.pem").exists():
            raise UsageError(f"there is no root in `{directory}`", hint="make one with `alcove ca init`")
        return cls(directory, _read_issuer(directory / "root.pem", directory / "root-key.pem"))

    @classmethod
    def open(cls, directory: Path) -> Authority:
        """The root in `directory`, made when there is none; errors as in `load`."""
        with _locked(directory):
            if (directory / "root.pem").exists():
                return cls.load(directory)
            return cls._make(directory, datetime.now(UTC))

    @classmethod
    def rotate(cls, directory: Path, now: datetime | None = None) -> Authority:
        """A new root in the place of the old one, whose certificate is kept under ``retired/``.

        Verifiers refuse new documents until they trust the new root. Errors as in `load`.
        """
        with _locked(directory):
            old = cls.load(directory)
            retired = directory / "retired"
            _make_directory(retired)
            _write(retired / f"{old.root.hex}.pem", old.root_path.read_bytes(), _PUBLIC)
            old.root_path.unlink()  # from here on a crash leaves a directory without a root, and `open` makes one
            return cls._make(directory, now or datetime.now(UTC))

    @classmethod
    def _make(cls, directory: Path, now: datetime) -> Authority:
        root = pki.issue_root(_new_key(), serial=_serial(16), now=now)
        _write(
            directory / "root-key.pem", _pem_key(root), _PRIVATE
        )  # the certificate comes last: with it, all is there
        _write(directory / "root.pem", _pem_certificate(root), _PUBLIC)
        return cls(directory, root)

    @property
    def root_path(self) -> Path:
        """The root's certificate, PEM."""
        return self._directory / "root.pem"

    @property
    def root(self) -> Root:
        """The root as a trust anchor."""
        return Root.from_pem(_pem_certificate(self._root))

    def parent_identity(self, instance_id: str, region: str, now: datetime) -> ParentIdentity:
        """The chain down to a parent, renewed where it is near its end.

        Args:
            instance_id: ``i-<17 hex>``.
            region: The Region in the names.
            now: The time, aware.

        Raises:
            UsageError: The id or the Region cannot be.
            MachineError: A file cannot be read or written.
        """
        pki.check_instance_id(instance_id)
        pki.check_region(region)
        self._check_root(now)
        with _locked(self._directory):
            folder = self._directory / region
            _make_directory(folder)
            regional = _renewed(
                folder / "regional.pem", self._root, REGIONAL_RENEWAL, now, lambda: self._regional(region, now)
            )
            zonal = _renewed(folder / "zonal.pem", regional, ZONAL_RENEWAL, now, lambda: _zonal(regional, region, now))
            instance = _renewed(
                folder / f"{instance_id}.pem",
                zonal,
                PARENT_RENEWAL,
                now,
                lambda: pki.issue_instance(
                    zonal, _new_key(), region=region, instance_id=instance_id, serial=_serial(20), now=now
                ),
            )
        chain = (self._root, regional, zonal, instance)
        return ParentIdentity(instance_id, region, tuple(issuer.der for issuer in chain), instance)

    def _check_root(self, now: datetime) -> None:
        certificate = self._root.certificate
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - pki.REGIONAL_LIFE:
            start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            raise MachineError(
                f"the root, valid from {start.isoformat()} to {end.isoformat()}, cannot sign now",
                hint="look at the machine's clock, or make a new root with `alcove ca rotate`",
            )

    def _regional(self, region: str, now: datetime) -> Issuer:
        return pki.issue_regional(
            self._root, _new_key(), region=region, label=secrets.token_hex(8), crl=str(uuid.uuid4()),
            serial=_serial(16), now=now,
        )  # fmt: skip


def _zonal(regional: Issuer, region: str, now: datetime) -> Issuer:
    return pki.issue_zonal(
        regional, _new_key(), region=region, label=secrets.token_hex(8), crl=str(uuid.uuid4()),
        serial=_serial(16), now=now,
    )  # fmt: skip


def default_instance_id(state: Path, board_asset_tag: Path = BOARD_ASSET_TAG) -> str:
    """This machine's instance id: EC2's own, else a random one that is made once and kept in `state`."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if _INSTANCE_ID.fullmatch(tag := board_asset_tag.read_text().strip()):
            return tag
    path = state / "instance-id"
    with _locked(state):
        with contextlib.suppress(FileNotFoundError):
            return pki.check_instance_id(path.read_text().strip())
        instance_id = f"i-{secrets.token_hex(9)[:17]}"
        _write(path, f"{instance_id}\n".encode(), _PUBLIC)
    return instance_id


def _renewed(path: Path, parent: Issuer, reserve: timedelta, now: datetime, issue: Callable[[], Issuer]) -> Issuer:
    """The authority in `path`; a new one when that is missing, near its end, of the future or of another parent."""
    with contextlib.suppress(MachineError):  # what cannot be used is replaced, like what is not there
        issuer = _read_issuer(path, path)
        certificate = issuer.certificate
        timely = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - reserve
        if timely and _is_issued_by(certificate, parent.certificate):
            return issuer
    issuer = issue()
    _write(path, _pem_certificate(issuer) + _pem_key(issuer), _PRIVATE)
    return issuer


def _is_issued_by(certificate: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _serial(size: int) -> int:
    """A random serial number of `size` bytes, the first one not zero and, for 20 bytes, no sign bit (RFC 5280)."""
    number = int.from_bytes(secrets.token_bytes(size)) | 1 << (8 * size - 2)
    return number & ~(1 << (8 * size - 1)) if size == 20 else number


def _pem_certificate(issuer: Issuer) -> bytes:
    return issuer.certificate.public_bytes(Encoding.PEM)


def _pem_key(issuer: Issuer) -> bytes:
    return issuer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read_issuer(certificate_path: Path, key_path: Path) -> Issuer:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = load_pem_private_key(key_path.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
            raise MachineError(f"the key in `{key_path}` does not belong to its certificate")
    except OSError as error:
        raise MachineError(f"cannot read `{error.filename}`: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise MachineError(f"`{certificate_path}` or `{key_path}` is damaged: {error}") from error
    return Issuer(certificate, key)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """The directory, made if need be, for ourselves alone."""
    _make_directory(directory)
    try:
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
    except OSError as error:
        raise MachineError(f"cannot lock `{directory}`: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_directory(directory: Path) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make `{directory}`: {error.strerror}") from error


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file as a whole; a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")  # one writer at a time: the lock is held
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise MachineError(f"cannot write `{path}`: {error.strerror}") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
