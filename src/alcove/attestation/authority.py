"""The certificate authority in a state directory (attestation.md §4.3): the machine's own root of trust.

The root signs regional certificates and nothing else, so its key may be away (`root_key`) for as long as the regional
certificate lasts. Everything below is renewed, together with its key, while it still outlives all that it has to sign.
Where that cannot be, since the issuer above is at its end and the root's key away, the old certificate serves until it
can no longer sign a leaf. The files are `store`'s.
"""

from __future__ import annotations

import contextlib
import secrets
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from alcove.attestation import pki
from alcove.attestation.attester import ParentIdentity
from alcove.attestation.files import PRIVATE, PUBLIC, locked, make_directory, remove_file, write_file
from alcove.attestation.names import Organization
from alcove.attestation.pki import Issuer
from alcove.attestation.place import Level, Place
from alcove.attestation.root_key import NewKey
from alcove.attestation.store import Entry, Store, common_name, is_issued_by, pem, read_entry
from alcove.attestation.verify import Root
from alcove.errors import AlcoveError, MachineError, UsageError


class Authority:
    """The root in a directory and the chains below it; made by `create`, `load` or `open`.

    Args:
        store: Its files.
        passphrase: What opens the root's key, when that is protected; None for what the environment says.
    """

    def __init__(self, store: Store, passphrase: bytes | None = None) -> None:
        self.store: Final = store
        self._passphrase = passphrase
        self.certificate: Final = store.root()

    @classmethod
    def create(
        cls,
        directory: Path,
        now: datetime | None = None,
        *,
        key: NewKey | None = None,
        owner: Organization | None = None,
        years: int = pki.ROOT_YEARS,
    ) -> Authority:
        """A new root in `directory`, whose key lives where `key` says.

        Raises:
            UsageError: There is a root already, or the key cannot live there.
            MachineError: A file cannot be written, or the token cannot be used.
        """
        with locked(directory):
            if (store := Store(directory)).root_path.exists():
                raise UsageError(
                    f"there is a root in `{directory}` already", hint="`alcove ca rotate --root` makes another"
                )
            _make_root(store, key or NewKey(), owner, years, now or datetime.now(UTC))
            return cls(store, (key or NewKey()).passphrase)

    @classmethod
    def load(cls, directory: Path, passphrase: bytes | None = None) -> Authority:
        """The root in `directory`.

        Raises:
            UsageError: There is none.
            MachineError: Its files cannot be read.
        """
        return cls(Store(directory), passphrase)

    @classmethod
    def open(cls, directory: Path, *, wait: bool = True) -> Authority:
        """The root in `directory`, made when there is none; errors as in `load`, and as in `files.locked`."""
        with locked(directory, wait=wait):
            if not (store := Store(directory)).root_path.exists():
                _make_root(store, NewKey(), None, pki.ROOT_YEARS, datetime.now(UTC))
            _finish_switch(store)
            return cls(store)

    def prepare_root(
        self,
        key: NewKey | None = None,
        *,
        owner: Organization | None = None,
        years: int = pki.ROOT_YEARS,
        now: datetime | None = None,
    ) -> Root:
        """Make the root that is to come; nothing is signed with it until `switch_root`.

        Verifiers get its certificate before that, so that there is no moment at which they refuse documents.

        Raises:
            UsageError: There is one already.
        """
        coming = self.store.next
        with locked(self.store.directory):
            _finish_switch(self.store)
            if coming.root_path.exists():
                raise UsageError("there is a root to come already", hint="`alcove ca rotate --switch` changes to it")
            make_directory(coming.directory)
            owner = owner or Organization.of(self.certificate)
            _make_root(coming, key or NewKey(), owner, years, now or datetime.now(UTC))
        return Root.from_pem(pem(coming.root()))

    def switch_root(self, passphrase: bytes | None = None) -> Authority:
        """Change to the root that `prepare_root` made; the old certificate stays trusted here, as a former root.

        The old root's key is removed, when it is in this directory; a protected file elsewhere and a token are left.

        Raises:
            UsageError: There is no root to come.
            MachineError: Its key cannot be used, so that nothing could be issued after the change.
        """
        with locked(self.store.directory):
            _finish_switch(self.store)
            coming = self.store.next
            if not coming.root_path.exists():
                raise UsageError("there is no root to come", hint="`alcove ca rotate --root` makes one")
            with Authority(coming, passphrase).root_issuer(datetime.now(UTC)):
                pass
            _replace_root(self.store, coming.root())
            _finish_switch(self.store)
        return Authority(self.store, passphrase)

    def adopt_root(self, certificate: x509.Certificate) -> None:
        """Put another machine's root in the place of this one, which becomes a former root. The lock must be held."""
        _replace_root(self.store, certificate)
        remove_file(self.store.root_key_path)

    def forget_root(self, fingerprint: str) -> str:
        """Trust a former root, named by the start of its fingerprint, no longer.

        Returns:
            The whole fingerprint.

        Raises:
            UsageError: It names none, or several.
        """
        with locked(self.store.directory):
            paths = list(self.store.directory.glob("retired/*.pem"))
            found = [path for path in paths if len(fingerprint) >= 8 and path.stem.startswith(fingerprint.lower())]
            if len(found) != 1:
                raise UsageError(f"`{fingerprint}` names no former root", hint="`alcove ca show` lists them")
            remove_file(found[0])
        return found[0].stem

    @property
    def root_path(self) -> Path:
        """The root's certificate, PEM."""
        return self.store.root_path

    @property
    def root(self) -> Root:
        """The root as a trust anchor."""
        return Root.from_pem(pem(self.certificate))

    @property
    def trusted(self) -> tuple[Root, ...]:
        """The root, the one to come and the former ones: what a verifier on this machine accepts."""
        coming = [self.store.next.root()] if self.store.next.root_path.exists() else []
        roots = [Root.from_pem(pem(certificate)) for certificate in (*coming, *self.store.former_roots())]
        return tuple(dict.fromkeys((self.root, *roots)))

    @contextlib.contextmanager
    def root_issuer(self, now: datetime) -> Iterator[Issuer]:
        """The root with its key, for as long as the context lasts.

        Raises:
            MachineError: The key is not here or does not belong to the root, or the root is not valid at `now`.
        """
        start, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        if not start <= now <= end:
            raise MachineError(
                f"the root, valid from {start.isoformat()} to {end.isoformat()}, cannot sign now",
                hint="look at the machine's clock, or make a new root with `alcove ca rotate --root`",
            )
        with self.store.key_place().open(self._passphrase) as key:
            if pki.public_key(key) != self.certificate.public_key():
                raise MachineError("the root's key does not belong to root.pem")
            yield Issuer(self.certificate, key)

    def parent_identity(
        self,
        instance_id: str,
        region: str,
        now: datetime,
        *,
        renew: frozenset[Level] = frozenset(),
        wait: bool = True,
    ) -> ParentIdentity:
        """The chain down to a parent, renewed where it is near its end.

        Args:
            instance_id: ``i-<17 hex>``.
            region: The Region in the names.
            now: The time, aware.
            renew: What is renewed however long it lasts, or not at all.
            wait: Whether to wait while another command has the directory.

        Raises:
            UsageError: The id or the Region cannot be.
            MachineError: A file cannot be read or written, or nothing that is left can sign a leaf.
        """
        place = Place(region, instance_id)
        with locked(self.store.directory, wait=wait):
            chain = [Entry(self.certificate), *self.chain(place, Level.INSTANCE, now, renew)]
        return ParentIdentity(instance_id, region, tuple(entry.der for entry in chain), chain[-1].issuer)

    def chain(self, place: Place, last: Level, now: datetime, renew: frozenset[Level] = frozenset()) -> list[Entry]:
        """The issuers from the Region down to `last`, renewed where that is due. The lock must be held."""
        entries: list[Entry] = []
        for level in Level:
            entries.append(self._current(place, level, entries[-1] if entries else None, now, force=level in renew))
            if level is last:
                break
        return entries

    def issue(
        self, place: Place, level: Level, parent: Entry | None, key: ec.EllipticCurvePublicKey, now: datetime
    ) -> x509.Certificate:
        """A certificate below `parent`, or below the root for None; it is recorded. The lock must be held.

        Raises:
            MachineError: The issuer's key is not here, or it ends too soon.
        """
        above = parent.certificate if parent else self.certificate
        if above.not_valid_after_utc - pki.LEAF_LIFE <= now:
            raise MachineError(
                f"{common_name(above)} ends at {above.not_valid_after_utc.isoformat()}, too soon for anything below it",
                hint="`alcove ca rotate` where the root's key is, or `alcove ca request` for a new certificate",
            )
        with contextlib.ExitStack() as stack:
            issuer = parent.issuer if parent else stack.enter_context(self.root_issuer(now))
            serial = self.store.fresh_serial(20 if level is Level.INSTANCE else 16)
            certificate = _issue(issuer, place, level, key, serial=serial, now=now)
        self.store.record(certificate, now)
        return certificate

    def _current(self, place: Place, level: Level, parent: Entry | None, now: datetime, *, force: bool) -> Entry:
        """The issuer of a level; a new one when it is missing, near its end, of the future or of another parent."""
        above = parent.certificate if parent else self.certificate
        path = self.store.chain_path(place.region, place.instance_id if level is Level.INSTANCE else level)
        held = None if force else _usable(path, above, now)
        # near its parent's end a new one would not last any longer
        if held and (now <= held.end - level.reserve or min(now + level.span, above.not_valid_after_utc) <= held.end):
            return held
        key = ec.generate_private_key(ec.SECP384R1())
        try:
            certificate = self.issue(place, level, parent, key.public_key(), now)
        except AlcoveError:  # a token that is away is no machine's fault
            if held:
                return held
            raise
        self.store.write_entry(path, certificate, key)
        return Entry(certificate, key)


def _usable(path: Path, parent: x509.Certificate, now: datetime) -> Entry | None:
    """What is in `path`, when it was issued by `parent` and something below it can live as long as a leaf."""
    with contextlib.suppress(MachineError):  # what cannot be read is replaced, like what is not there
        entry = read_entry(path)
        timely = entry.certificate.not_valid_before_utc <= now <= entry.end - pki.LEAF_LIFE
        if timely and is_issued_by(entry.certificate, parent):
            return entry
    return None


def _issue(
    issuer: Issuer, place: Place, level: Level, key: ec.EllipticCurvePublicKey, *, serial: int, now: datetime
) -> x509.Certificate:
    if level is Level.INSTANCE:
        return pki.issue_instance(
            issuer, key, region=place.region, instance_id=place.instance_id, serial=serial, now=now
        )
    make = pki.issue_regional if level is Level.REGIONAL else pki.issue_zonal
    label, crl = secrets.token_hex(8), str(uuid.uuid4())
    return make(issuer, key, region=place.region, label=label, crl=crl, serial=serial, now=now)


def _make_root(store: Store, key: NewKey, owner: Organization | None, years: int, now: datetime) -> None:
    """A new root, or nothing at all: the certificate comes last, and with it everything is there."""
    with contextlib.ExitStack() as undo, key.make(store.root_key_path) as (signing, files):
        root = pki.issue_root(signing, serial=store.fresh_serial(16), now=now, years=years, owner=owner)
        for path, content in files.items():
            undo.callback(remove_file, path)
            write_file(path, content, PRIVATE)
        write_file(store.root_path, pem(root.certificate), PUBLIC)
        undo.pop_all()


def _replace_root(store: Store, certificate: x509.Certificate) -> None:
    old = store.root()
    store.write_public(store.retired_path(old), old)
    write_file(store.root_path, pem(certificate), PUBLIC)


def _finish_switch(store: Store) -> None:
    """Bring the new root's key after its certificate, also when a crash came between the two."""
    coming = store.next
    if not coming.root_path.exists() or coming.root_path.read_bytes() != store.root_path.read_bytes():
        return
    if coming.root_key_path.exists():
        write_file(store.root_key_path, coming.root_key_path.read_bytes(), PRIVATE)
        remove_file(coming.root_key_path)
    remove_file(coming.root_path)
