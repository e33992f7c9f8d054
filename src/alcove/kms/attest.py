"""The Recipient of a request: its attestation document, verified (kms.md §3, §5).

Core: the parameter, the trusted roots and the time in; a `Recipient` out. There is no way around the verifier, and a
document that fails any check fails the call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import pybase64

from alcove.attestation.crl import RevocationLists
from alcove.attestation.policy import GenuineOnly
from alcove.attestation.verify import FORM_STEPS, ChainCache, Root, VerifiedAttestation, verify
from alcove.errors import AttestationError
from alcove.kms.claim import SignedRequest
from alcove.kms.errors import validation
from alcove.kms.policy.catalogue import attestation_context
from alcove.kms.recipient import load_recipient_key
from alcove.kms.sigv4 import signed_value

MAX_AGE: Final = timedelta(seconds=300)  # §5.3
_POLICY: Final = GenuineOnly()
HEADER: Final = "x-alcove-attestation-document"
MAX_HEADER: Final = 32_768  # base64 of the 16,384 bytes that a payload may have, and what surrounds it


class Recipient(NamedTuple):
    """A verified recipient."""

    attestation: VerifiedAttestation
    public_key: bytes
    sha256: str

    @property
    def context(self) -> Mapping[str, str]:
        """The condition keys of §6.2: lower-case hex under lower-case names."""
        return attestation_context(self.attestation.document.pcrs)


def header_recipient(request: SignedRequest) -> dict[str, Any] | None:
    """The Recipient parameter that a header carries, for operations whose AWS model has none.

    Raises:
        KmsError: InvalidSignatureException when it is not signed, ValidationException when it is not base64.
    """
    text = signed_value(request, HEADER)
    if text is None:
        return None
    try:
        document = pybase64.b64decode(text, validate=True) if len(text) <= MAX_HEADER else b""
    except ValueError:
        document = b""
    if not document:
        raise validation("cannot parse the attestation document", because="the header is not base64, or too long")
    return {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": document}


def check_recipient(
    parameter: Mapping[str, Any],
    *,
    roots: Sequence[Root],
    now: datetime,
    crls: RevocationLists | None = None,
    cache: ChainCache | None = None,
) -> Recipient:
    """The verified recipient of a request.

    Args:
        parameter: ``Recipient`` as the model parsed it.
        roots: Trusted roots.
        now: Time of the request, aware.
        crls: Revocation lists, when there are some.
        cache: Chains verified before.

    Raises:
        KmsError: ValidationException; the audit log's part says which check failed.
    """
    if set(parameter) != {"KeyEncryptionAlgorithm", "AttestationDocument"}:
        raise validation("Recipient needs both KeyEncryptionAlgorithm and AttestationDocument")
    if not roots:
        raise validation("this service trusts no attestation root")
    document: bytes = parameter["AttestationDocument"]
    try:
        verified = verify(document, roots=roots, policy=_POLICY, at=now, crls=crls or (), cache=cache)
    except AttestationError as error:
        because = f"attestation step {error.step}: {error.message}"
        if error.step <= FORM_STEPS:
            raise validation("cannot parse the attestation document", because=because) from error
        raise validation("the attestation document is not valid", because=because) from error
    _check_age(verified, now)
    public_key = verified.document.public_key
    if not public_key:
        raise validation("the attestation document has no public_key")
    try:
        load_recipient_key(public_key)
    except ValueError as error:
        raise validation(f"the attestation document cannot be used: {error}") from error
    return Recipient(verified, public_key, hashlib.sha256(document).hexdigest())


def _check_age(verified: VerifiedAttestation, now: datetime) -> None:
    """The verifier could do this; doing it here tells this refusal from its other ones, as clients need (§5.3)."""
    made = verified.document.timestamp
    if now - made > MAX_AGE:
        message = "the attestation document exceeded the five-minute age limit"
        raise validation(message, because=f"made at {made.isoformat()}")
