"""The signer of one enclave's attestation documents.

There is no clock here: the time is a parameter. The leaf's private key is made here, stays in memory and is never
written anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from alcove.attestation import pki
from alcove.attestation.document import AttestationDocument
from alcove.attestation.names import split_enclave_id
from alcove.codec import cose
from alcove.errors import AlcoveError, MachineError, UsageError

LEAF_REUSE: Final = timedelta(minutes=100)  # attestation.md §4.1: reused for at least 6017 s, renewed well before 3 h
PARENT_RENEWAL: Final = timedelta(hours=6)  # what an instance certificate must have left: a leaf's life twice

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HALF: Final = cose.SIGNATURE_SIZE // 2
_ES384: Final = ec.ECDSA(SHA384())


@dataclass(frozen=True, slots=True)
class ParentIdentity:
    """The parent's place in the chain: its issuer, and the chain from the root down to it as DER."""

    instance_id: str
    region: str
    cabundle: tuple[bytes, ...]
    issuer: pki.Issuer

    def is_fresh(self, now: datetime) -> bool:
        """Whether leaves that are issued at `now` will not outlive the instance certificate."""
        certificate = self.issuer.certificate
        return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - PARENT_RENEWAL

    def can_sign(self, now: datetime) -> bool:
        """Whether the instance certificate lives as long as a leaf that is issued at `now`."""
        certificate = self.issuer.certificate
        return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - pki.LEAF_LIFE


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A leaf with the chain that it was issued under."""

    key: ec.EllipticCurvePrivateKey
    certificate: bytes
    cabundle: tuple[bytes, ...]
    not_before: datetime
    reuse_until: datetime


class Attester:
    """Signs the documents of one enclave.

    Args:
        parent: The parent's identity.
        enclave_id: ``i-<17 hex>-enc<16 hex>``, of that parent.

    Raises:
        UsageError: The enclave's id is of another form or another parent.
    """

    def __init__(self, parent: ParentIdentity, enclave_id: str) -> None:
        if split_enclave_id(enclave_id)[0] != parent.instance_id:
            raise UsageError(f"`{enclave_id}` is no enclave of {parent.instance_id}")
        self.enclave_id: Final = enclave_id
        self._parent = parent
        self._leaf: _Leaf | None = None

    @property
    def instance_id(self) -> str:
        """The parent's instance id."""
        return self._parent.instance_id

    def renew(self, load: Callable[[], ParentIdentity], *, now: datetime, changed: bool = False) -> None:
        """Replace the parent's identity with what `load` returns, when its certificate is near its end or `changed`.

        Raises:
            UsageError: `load` returned another parent's.
            AlcoveError: `load` failed, and the certificate that we have can no longer sign a leaf.
        """
        if self._parent.is_fresh(now) and not changed:
            return
        try:
            parent = load()
        except AlcoveError:
            if self._parent.can_sign(now):
                return
            raise
        if parent.instance_id != self.instance_id:
            raise UsageError(f"the parent is {self.instance_id} and not {parent.instance_id}")
        if parent.cabundle != self._parent.cabundle:
            self._leaf = None  # an old chain may have been revoked
        self._parent = parent

    def document(
        self,
        pcrs: Mapping[int, bytes],
        *,
        user_data: bytes | None,
        nonce: bytes | None,
        public_key: bytes | None,
        now: datetime,
    ) -> bytes:
        """A signed document (attestation.md §1).

        Args:
            pcrs: The locked registers.
            user_data: The enclave's own data, or None.
            nonce: The challenge, or None.
            public_key: The enclave's key, or None.
            now: Time of the document, aware.

        Raises:
            MachineError: The parent's certificate is not valid at `now`; `renew` was not called.
        """
        leaf = self._current_leaf(now)
        claims = AttestationDocument(
            module_id=self.enclave_id,
            timestamp_ms=(now - _EPOCH) // timedelta(milliseconds=1),
            pcrs=pcrs,
            certificate=leaf.certificate,
            cabundle=leaf.cabundle,
            public_key=public_key,
            user_data=user_data,
            nonce=nonce,
        )
        return sign(claims, leaf.key)

    def _current_leaf(self, now: datetime) -> _Leaf:
        leaf = self._leaf
        if leaf is None or not leaf.not_before <= now < leaf.reuse_until:
            leaf = self._leaf = self._issue(now)
        return leaf

    def _issue(self, now: datetime) -> _Leaf:
        parent = self._parent
        if not parent.can_sign(now):
            end = parent.issuer.certificate.not_valid_after_utc
            raise MachineError(
                f"the parent's certificate ends at {end.isoformat()}, too soon for a document",
                hint="look at the machine's clock; the certificate is renewed by itself",
            )
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = pki.issue_leaf(
            parent.issuer, key.public_key(), region=parent.region, enclave_id=self.enclave_id, now=now
        )
        return _Leaf(
            key=key,
            certificate=certificate.public_bytes(Encoding.DER),
            cabundle=parent.cabundle,
            not_before=certificate.not_valid_before_utc,
            reuse_until=now + LEAF_REUSE,
        )


def sign(claims: AttestationDocument, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The COSE_Sign1 over `claims`, with the leaf's `key`."""
    payload = claims.encode_payload()
    signed = cose.sign1_structure(cose.ES384_PROTECTED, payload)
    r, s = decode_dss_signature(key.sign(signed, _ES384))
    return cose.encode_sign1(cose.Sign1(cose.ES384_PROTECTED, payload, r.to_bytes(_HALF) + s.to_bytes(_HALF)))
