"""The recipe that turns a document into a verified one (attestation.md §5.2).

Core: a document, roots, a policy and a time in; a `VerifiedAttestation` out, or AttestationError. No clock, no disk.

 1. Bound the input.                                                          (`document.open_document`)
 2. Decode one CBOR item: an array of four, bare or in tag 18.                (same)
 3. Check the four parts: ES384 in `protected`, sizes of payload, signature.  (same)
 4. Decode the payload: one map with text keys, each at most once.            (same)
 5. Check types and limits of all nine fields.                                (same)
 6. Parse every certificate strictly.                                         (`chain.parse_entry`)
 7. Trust anchor: `cabundle[0]` is byte for byte a pinned root.
 8. Links: each certificate names and is signed by the one before it, from the root to the leaf.
 9. Validity: every certificate, the root included, is valid at the chosen time, both ends included.
10. Constraints: authorities may sign certificates within their path length, the leaf may only sign data; no critical
    extension is unknown. Revocation lists count when the caller brings some.  (`crl.RevocationLists`)
11. Signature: the leaf's key signed the Sig_structure over the bytes as received. High s is normal and accepted.
12. Time of the document: inside the leaf's validity, not older than asked, not ahead of the clock.
13. Policy: the nonce equals the challenge; the policy accepts what the document says (PolicyError).
14. Return the verified object, which nobody else can make.

The chosen time (`at`) is the one at which the chain must be valid: the caller's clock for live use, the document's own
time for archived ones. Freshness is another question and may have another clock (`now`): a genuine document can be
replayed until its leaf expires, and after that too when its own time is the chosen one, so a caller who needs a fresh
one asks with `max_age` and, better, a nonce.

A failure has one reason: the steps run in the order 1 to 5, 7, 6, 8, 10, 9, 10 (lists), 11, 12, 13, and the first that
fails is the one that is raised.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import ClassVar, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from alcove.attestation.certificate import Certificate
from alcove.attestation.chain import ChainCache, check_validity, parse_entry, verified_chain
from alcove.attestation.crl import RevocationLists
from alcove.attestation.document import AttestationDocument, open_document
from alcove.attestation.pem import certificates_from_pem
from alcove.attestation.policy import Policy
from alcove.codec import cose
from alcove.errors import AttestationError, PolicyError

FORM_STEPS: Final = 6  # a failure up to this step is about form: the document cannot be parsed
MAX_SKEW: Final = timedelta(seconds=60)  # kms.md §5.3: tolerance for clocks that differ

__all__ = ["FORM_STEPS", "MAX_SKEW", "ChainCache", "Root", "VerifiedAttestation", "verify"]

_ES384: Final = ECDSA(SHA384())
_SEAL: Final = object()
_FINGERPRINT: Final = re.compile(r"[0-9A-Fa-f]{64}")


@dataclass(frozen=True, slots=True)
class Root:
    """A trust anchor: the SHA-256 of a root certificate's DER (32 bytes)."""

    fingerprint: bytes

    AWS: ClassVar[Root]

    def __post_init__(self) -> None:
        """Raises ValueError for another size."""
        if len(self.fingerprint) != hashlib.sha256().digest_size:
            raise ValueError("a fingerprint has 32 bytes")

    @classmethod
    def from_pem(cls, pem: bytes) -> Root:
        """The root in a PEM file that holds one certificate; ValueError for anything else."""
        certificates = certificates_from_pem(pem)
        if len(certificates) != 1:
            raise ValueError(f"{len(certificates)} certificates where one must be")
        return cls(hashlib.sha256(certificates[0].public_bytes(Encoding.DER)).digest())

    @classmethod
    def from_fingerprint(cls, text: str) -> Root:
        """The root with a fingerprint of 64 hexadecimal digits, colons allowed; ValueError for anything else."""
        digits = text.replace(":", "")
        if not _FINGERPRINT.fullmatch(digits):
            raise ValueError("a fingerprint has 64 hexadecimal digits")
        return cls(bytes.fromhex(digits))

    @property
    def hex(self) -> str:
        """The fingerprint in hexadecimal."""
        return self.fingerprint.hex()


# attestation.md §4.2: "SHA-256 of the DER certificate"
Root.AWS = Root.from_fingerprint("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")


@dataclass(frozen=True, slots=True)
class VerifiedAttestation:
    """A document that passed every step. Only `verify` can make one, so to hold one is to have verified.

    `certificates` is the chain from the root to the leaf, `time` the one at which it was valid, `size` the number of
    bytes that were verified, `challenged` whether a nonce was asked for.
    """

    document: AttestationDocument
    root: Root
    certificates: tuple[Certificate, ...] = field(repr=False)
    time: datetime
    size: int = field(repr=False)
    challenged: bool
    _: KW_ONLY
    seal: InitVar[object]  # not a field: `dataclasses.replace` cannot carry it into a changed copy

    def __post_init__(self, seal: object) -> None:
        """Raises TypeError for everyone but the verifier."""
        if seal is not _SEAL:
            raise TypeError("only verify() makes a VerifiedAttestation")

    @property
    def steps(self) -> tuple[str, ...]:
        """What was found, a sentence for each step, in the recipe's order."""
        sentences = (
            f"the input has {self.size} bytes",
            "one CBOR item, an array of four",
            "the algorithm is ES384",
            "the payload is one map",
            "all fields have their types and sizes",
            f"{len(self.certificates)} certificates are well-formed",
            f"the root is sha256:{self.root.hex}" + (" (AWS)" if self.root == Root.AWS else ""),
            f"every certificate is signed by the one above it, down to {self.certificates[-1].common_name}",
            f"every certificate is valid at {self.time.isoformat(timespec='seconds')}",
            "authorities and leaf keep to their constraints",
            "the leaf's key signed the document",
            f"made at {self.document.timestamp.isoformat(timespec='milliseconds')}",
            "the policy accepts it" + (", and the nonce is the expected one" if self.challenged else ""),
            "verified",
        )
        return tuple(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))


def verify(
    document: bytes,
    *,
    roots: Sequence[Root],
    policy: Policy,
    at: datetime | None,
    nonce: bytes | None = None,
    max_age: timedelta | None = None,
    now: datetime | None = None,
    max_skew: timedelta = MAX_SKEW,
    strict: bool = False,
    crls: RevocationLists | Iterable[bytes] = (),
    cache: ChainCache | None = None,
) -> VerifiedAttestation:
    """Verify a document, step by step as the module says.

    Args:
        document: The COSE_Sign1, as received.
        roots: The trusted roots, at least one; there is no default.
        policy: What the document must say.
        at: The time at which the chain must be valid, aware; None is the document's own time, for archived documents.
        nonce: The challenge that the document must carry, not empty, or None when there was none.
        max_age: How old the document may be at `now`, or None for no limit.
        now: The clock by which the document's age is judged; None is `at`.
        max_skew: How far ahead of that clock the document may be.
        strict: Allow user_data and nonce no more than 512 bytes, the smaller of the limits that AWS documents.
        crls: Revocation lists, DER or PEM; `RevocationLists` keeps them parsed for many calls.
        cache: Verified chains, and what stands in documents, to reuse and add to.

    Raises:
        AttestationError: The document is not valid; `step` says which step failed.
        PolicyError: The document is genuine and not acceptable.
        InputError: A revocation list is none, which says nothing about the document.
        ValueError: No roots, an empty nonce, a time without a zone, an age without a clock: a mistake of the caller.
    """
    lists = _lists(crls)
    clock = at if now is None else now
    _check_call(roots, nonce, (at, now), unlimited=max_age is None or clock is not None)
    # 1. to 5. What the document says.
    sign1, claims = open_document(document, strict=strict, known=None if cache is None else cache.standing)
    made = claims.timestamp
    time = made if at is None else at
    # 6., 7., 8. and 10. Who says so.
    root = _trusted_root(claims.cabundle[0], roots)
    chain = verified_chain(claims.cabundle, claims.certificate, cache)
    # 9. Every certificate is valid at the chosen time.
    for certificate in chain:
        check_validity(certificate, time)
    # 10. None of them is revoked.
    if lists is not None:
        lists.check(chain, time)
    # 11. The leaf's key made the signature.
    _check_signature(sign1, chain[-1])
    # 12. The document's own time.
    _check_made(made, chain[-1])
    if clock is not None:
        _check_age(made, clock, max_age, max_skew)
    # 13. Policy.
    if nonce is not None:
        _check_nonce(claims, nonce)
    policy.check(claims)
    if cache is not None:
        cache.note(sign1.payload, claims)
    # 14. Only now may anyone read it.
    return VerifiedAttestation(claims, root, chain, time, len(document), nonce is not None, seal=_SEAL)


def _lists(crls: RevocationLists | Iterable[bytes]) -> RevocationLists | None:
    if crls == ():
        return None
    return crls if isinstance(crls, RevocationLists) else RevocationLists.from_files(*crls)


def _check_call(
    roots: Sequence[Root], nonce: bytes | None, times: tuple[datetime | None, ...], *, unlimited: bool
) -> None:
    # What would quietly weaken the verification is refused aloud.
    if not roots or any(time is not None and time.tzinfo is None for time in times):
        raise ValueError("verification needs a root and a time with a zone")
    if nonce is not None and not nonce:
        raise ValueError("verification needs a nonce that is not empty, or none")
    if not unlimited:
        raise ValueError("verification needs a clock for max_age: give at or now")


def _trusted_root(first: bytes, roots: Sequence[Root]) -> Root:
    # 7. A certificate in the document is compared with the pins and is never itself a source of trust.
    fingerprint = _fingerprint(first)
    for root in roots:
        if root.fingerprint == fingerprint:
            return root
    parse_entry(first, "cabundle[0]")  # a root that is no certificate fails as step 6
    raise AttestationError(
        f"the chain begins at the root sha256:{fingerprint.hex()}, which is not trusted",
        step=7,
        hint="if that is the root you mean, name it as a trusted root",
    )


@lru_cache(maxsize=16)  # documents from everywhere begin with one of few roots
def _fingerprint(certificate: bytes) -> bytes:
    return hashlib.sha256(certificate).digest()


def _check_signature(sign1: cose.Sign1, leaf: Certificate) -> None:
    # 11. Raw r ‖ s becomes the DER that the library takes; r or s out of range fails there.
    half = len(sign1.signature) // 2
    r, s = int.from_bytes(sign1.signature[:half]), int.from_bytes(sign1.signature[half:])
    signed = cose.sign1_structure(sign1.protected, sign1.payload)
    try:
        leaf.public_key.verify(encode_dss_signature(r, s), signed, _ES384)
    except (InvalidSignature, ValueError) as error:
        raise AttestationError("the signature is not the leaf certificate's", step=11) from error


def _check_made(made: datetime, leaf: Certificate) -> None:
    # 12. The leaf was valid when the document was made.
    if not leaf.not_before <= made <= leaf.not_after:
        raise AttestationError(f"made at {made.isoformat()}, outside the validity of its leaf certificate", step=12)


def _check_age(made: datetime, clock: datetime, max_age: timedelta | None, max_skew: timedelta) -> None:
    # 12. The document is as fresh as asked.
    if max_age is not None and clock - made > max_age:
        raise AttestationError(f"made at {made.isoformat()}, longer ago than {max_age}", step=12)
    if made - clock > max_skew:
        raise AttestationError(f"made at {made.isoformat()}, in the future", step=12)


def _check_nonce(claims: AttestationDocument, nonce: bytes) -> None:
    # 13. A challenge that was asked for must have come back.
    if claims.nonce is None or not hmac.compare_digest(claims.nonce, nonce):
        raise PolicyError("the nonce is not the expected one", step=13)
