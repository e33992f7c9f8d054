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
    extension is unknown. There are no revocation lists.
11. Signature: the leaf's key signed the Sig_structure over the bytes as received. High s is normal and accepted.
12. Time of the document: inside the leaf's validity, not older than asked, not ahead of the chosen time.
13. Policy: the nonce equals the challenge; the policy accepts what the document says (PolicyError).
14. Return the verified object, which nobody else can make.

Freshness takes step 12 with `max_age` and a nonce: a genuine document can be replayed until its leaf expires, and after
that too when its own time is the chosen one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from typing import ClassVar, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from alcove.attestation.certificate import Certificate
from alcove.attestation.chain import ChainCache, check_validity, parse_entry, verified_chain
from alcove.attestation.document import AttestationDocument, open_document
from alcove.attestation.policy import Policy
from alcove.codec import cose
from alcove.errors import AttestationError, PolicyError

FORM_STEPS: Final = 6  # a failure up to this step is about form: the document cannot be parsed
MAX_SKEW: Final = timedelta(seconds=60)  # kms.md §5.3: tolerance for clocks that differ

__all__ = ["FORM_STEPS", "MAX_SKEW", "ChainCache", "Root", "VerifiedAttestation", "verify"]

_SEAL: Final = object()


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
        certificates = x509.load_pem_x509_certificates(pem)
        if len(certificates) != 1:
            raise ValueError(f"{len(certificates)} certificates where one must be")
        return cls(hashlib.sha256(certificates[0].public_bytes(Encoding.DER)).digest())

    @classmethod
    def from_fingerprint(cls, text: str) -> Root:
        """The root with a fingerprint of 64 hexadecimal digits, colons allowed; ValueError for anything else."""
        return cls(bytes.fromhex(text.replace(":", "")))

    @property
    def hex(self) -> str:
        """The fingerprint in hexadecimal."""
        return self.fingerprint.hex()


# attestation.md §4.2: "SHA-256 of the DER certificate"
Root.AWS = Root.from_fingerprint("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")


@dataclass(frozen=True, slots=True)
class VerifiedAttestation:
    """A document that passed every step. Only `verify` can make one, so to hold one is to have verified.

    `steps` are sentences for people, one a step, and `certificates` is the chain from the root to the leaf.
    """

    document: AttestationDocument
    root: Root
    steps: tuple[str, ...]
    certificates: tuple[Certificate, ...] = field(repr=False)
    _: KW_ONLY
    seal: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises TypeError for everyone but the verifier."""
        if self.seal is not _SEAL:
            raise TypeError("only verify() makes a VerifiedAttestation")


def verify(
    document: bytes,
    *,
    roots: Sequence[Root],
    policy: Policy,
    at: datetime | None,
    nonce: bytes | None = None,
    max_age: timedelta | None = None,
    max_skew: timedelta = MAX_SKEW,
    cache: ChainCache | None = None,
) -> VerifiedAttestation:
    """Verify a document, step by step as the module says.

    Args:
        document: The COSE_Sign1, as received.
        roots: The trusted roots, at least one; there is no default.
        policy: What the document must say.
        at: The time, aware; None is the document's own time, for archived documents.
        nonce: The challenge that the document must carry, or None when there was none.
        max_age: How much older than `at` the document may be, or None for no limit.
        max_skew: How far ahead of `at` the document may be.
        cache: Verified chains to reuse and add to.

    Raises:
        AttestationError: The document is not valid; `step` says which step failed.
        PolicyError: The document is genuine and not acceptable.
        ValueError: No roots, or a time without a zone: a mistake of the caller.
    """
    if not roots or (at is not None and at.tzinfo is None):
        raise ValueError("verification needs a root and a time with a zone")
    # 1. to 5. What the document says.
    sign1, claims = open_document(document)
    time = claims.timestamp if at is None else at
    # 6., 7., 8. and 10. Who says so.
    root = _trusted_root(claims.cabundle[0], roots)
    chain = verified_chain(claims.cabundle, claims.certificate, cache)
    # 9. Every certificate is valid at the chosen time.
    for certificate in chain:
        check_validity(certificate, time)
    # 11. The leaf's key made the signature.
    _check_signature(sign1, chain[-1])
    # 12. The document's own time.
    _check_age(claims, chain[-1], time, max_age, max_skew)
    # 13. Policy.
    _check_nonce(claims, nonce)
    policy.check(claims)
    # 14. Only now may anyone read it.
    steps = _account(document, claims, root, chain, time, nonce=nonce)
    return VerifiedAttestation(claims, root, steps, chain, seal=_SEAL)


def _trusted_root(first: bytes, roots: Sequence[Root]) -> Root:
    # 7. A certificate in the document is compared with the pins and is never itself a source of trust.
    fingerprint = hashlib.sha256(first).digest()
    for root in roots:
        if root.fingerprint == fingerprint:
            return root
    parse_entry(first, "cabundle[0]")  # a root that is no certificate fails as step 6
    raise AttestationError(
        f"the chain begins at the root sha256:{fingerprint.hex()}, which is not trusted",
        step=7,
        hint="if that is the root you mean, name it as a trusted root",
    )


def _check_signature(sign1: cose.Sign1, leaf: Certificate) -> None:
    # 11. Raw r ‖ s becomes the DER that the library takes; r or s out of range fails there.
    half = len(sign1.signature) // 2
    r, s = int.from_bytes(sign1.signature[:half]), int.from_bytes(sign1.signature[half:])
    signed = cose.sign1_structure(sign1.protected, sign1.payload)
    try:
        leaf.public_key.verify(encode_dss_signature(r, s), signed, ECDSA(SHA384()))
    except (InvalidSignature, ValueError) as error:
        raise AttestationError("the signature is not the leaf certificate's", step=11) from error


def _check_age(
    claims: AttestationDocument, leaf: Certificate, time: datetime, max_age: timedelta | None, max_skew: timedelta
) -> None:
    # 12. The leaf was valid when the document was made, and the document is as fresh as asked.
    made = claims.timestamp
    if not leaf.not_before <= made <= leaf.not_after:
        raise AttestationError(f"made at {made.isoformat()}, outside the validity of its leaf certificate", step=12)
    if max_age is not None and time - made > max_age:
        raise AttestationError(f"made at {made.isoformat()}, longer ago than {max_age}", step=12)
    if made - time > max_skew:
        raise AttestationError(f"made at {made.isoformat()}, in the future", step=12)


def _check_nonce(claims: AttestationDocument, nonce: bytes | None) -> None:
    # 13. A challenge that was asked for must have come back.
    if nonce is None:
        return
    if claims.nonce is None or not hmac.compare_digest(claims.nonce, nonce):
        raise PolicyError("the nonce is not the expected one", step=13)


def _account(
    document: bytes,
    claims: AttestationDocument,
    root: Root,
    chain: Sequence[Certificate],
    time: datetime,
    *,
    nonce: bytes | None,
) -> tuple[str, ...]:
    """One sentence a step, in the recipe's order."""
    leaf = chain[-1]
    sentences = (
        f"the input has {len(document)} bytes",
        "one CBOR item, an array of four",
        "the algorithm is ES384",
        "the payload is one map",
        "all fields have their types and sizes",
        f"{len(chain)} certificates are well-formed",
        f"the root is sha256:{root.hex}" + (" (AWS)" if root == Root.AWS else ""),
        f"every certificate is signed by the one above it, down to {leaf.common_name}",
        f"every certificate is valid at {time.isoformat(timespec='seconds')}",
        "authorities and leaf keep to their constraints",
        "the leaf's key signed the document",
        f"made at {claims.timestamp.isoformat(timespec='milliseconds')}",
        "the policy accepts it" + ("" if nonce is None else ", and the nonce is the expected one"),
        "verified",
    )
    return tuple(f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1))
