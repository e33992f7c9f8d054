"""4. Proof: attestation documents, the authority that issues their certificates, the recipe that checks them.

What a verifier takes is here, and needs `cryptography` and no particular system:

    from alcove.attestation import PCR, AllOf, Root, verify

    verified = verify(document, roots=[Root.AWS], policy=AllOf([PCR(0, pcr0), PCR(2, pcr2)]), at=now, nonce=nonce)
    verified.document.user_data

A document that is not valid raises AttestationError, one that is and does not meet the policy its child PolicyError.
"""

from __future__ import annotations

from alcove.attestation.certificate import Certificate
from alcove.attestation.chain import ChainCache
from alcove.attestation.crl import RevocationLists
from alcove.attestation.document import AttestationDocument, parse_document
from alcove.attestation.policy import (
    PCR,
    AllOf,
    AnyOf,
    GenuineOnly,
    ImageSHA384,
    NoDebugMode,
    Parent,
    Policy,
    PublicKey,
    Role,
    SignedBy,
    UnsafeAcceptDebugMode,
    UserData,
)
from alcove.attestation.policy_file import parse_policy, policy_from_data
from alcove.attestation.verify import Root, VerifiedAttestation, verify
from alcove.errors import AttestationError, PolicyError

__all__ = [
    "PCR",
    "AllOf",
    "AnyOf",
    "AttestationDocument",
    "AttestationError",
    "Certificate",
    "ChainCache",
    "GenuineOnly",
    "ImageSHA384",
    "NoDebugMode",
    "Parent",
    "Policy",
    "PolicyError",
    "PublicKey",
    "RevocationLists",
    "Role",
    "Root",
    "SignedBy",
    "UnsafeAcceptDebugMode",
    "UserData",
    "VerifiedAttestation",
    "parse_document",
    "parse_policy",
    "policy_from_data",
    "verify",
]
