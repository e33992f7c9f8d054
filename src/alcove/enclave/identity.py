"""Who the parent is, what an enclave is called, and the registers it boots with."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path

from alcove.attestation.attester import ParentIdentity
from alcove.attestation.authority import Authority
from alcove.attestation.inventory import notices
from alcove.attestation.place import Level, Place, default_instance_id
from alcove.attestation.store import Store, fingerprint
from alcove.enclave.paths import Paths
from alcove.errors import AlcoveError
from alcove.machine.doctor import Check
from alcove.types import ZERO_PCR, Measurements

PCR_COUNT = 32  # nsm.md §6


def region() -> str:
    """The Region in the certificates' names: ``AWS_REGION``, ``AWS_DEFAULT_REGION`` or us-east-1."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def place(paths: Paths) -> Place:
    """For whom this machine's certificates are."""
    return Place(region(), default_instance_id(paths.state))


class ParentSource:
    """Loads the parent's identity, and tells when its files have changed: a rotation, a revocation, an answer.

    Args:
        paths: Where they are.
        look_seconds: How long a look at the files is good for; a document takes hardly longer than the look.
    """

    def __init__(self, paths: Paths, look_seconds: float = 0.0) -> None:
        self._paths = paths
        self._here = here = place(paths)
        store = Store(paths.authority)
        names = (Level.REGIONAL, Level.ZONAL, here.instance_id)
        self._files = (store.root_path, *(store.chain_path(here.region, name) for name in names))
        self._look_seconds = look_seconds
        self._looked = 0.0
        self._seen: tuple[object, ...] = ()

    def load(self) -> ParentIdentity:
        """The parent's certificates, made or renewed when that is due; the first call makes the root.

        Later calls do not wait for a command that is at work, or stopped, on the files: the enclave would stand still.
        """
        before, wait = self._stamps(), not self._seen  # what changes while we read is seen next time
        authority = Authority.open(self._paths.authority, wait=wait)
        here, now = self._here, datetime.now(UTC)
        parent = authority.parent_identity(here.instance_id, here.region, now, wait=wait)
        self._seen = before
        return parent

    @property
    def changed(self) -> bool:
        """Whether a file is another one than when `load` returned; False between two looks."""
        now = time.monotonic()
        if now - self._looked < self._look_seconds:
            return False
        self._looked = now
        return self._stamps() != self._seen

    def _stamps(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in self._files)


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns  # each file is replaced as a whole


def authority_check(paths: Paths) -> Check:
    """Whether documents can be made, and for how long nobody has to do anything."""
    store, now = Store(paths.authority), datetime.now(UTC)
    if not store.root_path.exists():
        return Check("authority", True, "no root yet; the first use makes one")
    try:
        found = sorted(notices(store, now), key=lambda notice: not notice.urgent)
        detail = f"root {fingerprint(store.root())[:16]}…, key: {store.key_place().kind}"
    except AlcoveError as error:
        return Check("authority", False, error.message, error.hint)
    if not found:
        return Check("authority", True, detail)
    if found[0].urgent:
        return Check("authority", False, found[0].text, found[0].hint)
    return Check("authority", True, f"{detail}; soon: {found[0].text}; {found[0].hint}")


def new_enclave_id(instance_id: str) -> str:
    """An id of the form ``i-<17 hex>-enc<16 hex>``."""
    return f"{instance_id}-enc{secrets.token_hex(8)}"


def extend_text(text: str) -> bytes:
    """PCR3 and PCR4: a raw extend of a text, without an inner hash (eif.md §2)."""
    return hashlib.sha384(ZERO_PCR + text.encode()).digest()


def initial_pcrs(
    measurements: Measurements, instance_id: str, *, debug_mode: bool, parent_role: str | None = None
) -> dict[int, bytes]:
    """All 32 registers at boot (nsm.md §6); in debug mode 0, 1, 2 and 8 are zero, 3 and 4 are not (§6.1).

    Args:
        measurements: The image's.
        instance_id: The parent's, for PCR4.
        debug_mode: Whether the enclave has a console.
        parent_role: ARN of the parent's role, for PCR3; zero without one.
    """
    pcrs = dict.fromkeys(range(PCR_COUNT), bytes(ZERO_PCR))
    if parent_role is not None:
        pcrs[3] = extend_text(parent_role)
    pcrs[4] = extend_text(instance_id)
    if not debug_mode:
        pcrs |= {0: measurements.pcr0, 1: measurements.pcr1, 2: measurements.pcr2, 8: measurements.pcr8 or ZERO_PCR}
    return pcrs
