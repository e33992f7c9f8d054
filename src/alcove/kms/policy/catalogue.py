"""The condition keys that a KMS policy can use, and what each is good for (kms.md §6.1, §6.2).

Core: tables, and questions about them.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

ATTESTATION: Final = "kms:recipientattestation:"
ENCLAVE_PCRS: Final = 32
TPM_PCRS: Final = 24
ATTESTED: Final = ("Decrypt", "GenerateDataKey", "GenerateDataKeyPair", "DeriveSharedSecret", "GenerateRandom")
"""The operations that take a Recipient (§3)."""
RELEASING: Final = ATTESTED[:4]
"""Those of them that give out what a key protects."""
_KEYS: Final = frozenset({
    "kms:BypassPolicyLockoutSafetyCheck", "kms:CallerAccount", "kms:CustomerMasterKeySpec",
    "kms:CustomerMasterKeyUsage", "kms:DataKeyPairSpec", "kms:EncapsulationAlgorithm", "kms:EncryptionAlgorithm",
    "kms:EncryptionContextKeys", "kms:ExpirationModel", "kms:GrantConstraintSourceArn", "kms:GrantConstraintType",
    "kms:GrantIsForAWSResource", "kms:GrantOperations", "kms:GranteePrincipal", "kms:GranteeServicePrincipal",
    "kms:KeyAgreementAlgorithm", "kms:KeyOrigin", "kms:KeySpec", "kms:KeyUsage", "kms:MacAlgorithm",
    "kms:MessageType", "kms:MultiRegion", "kms:MultiRegionKeyType", "kms:PolicyName", "kms:PrimaryRegion",
    "kms:ReEncryptOnSameKey", "kms:ReplicaRegion", "kms:RequestAlias", "kms:ResourceAliases",
    "kms:RetiringPrincipal", "kms:RetiringServicePrincipal", "kms:RotationPeriodInDays",
    "kms:ScheduleKeyDeletionPendingWindowInDays", "kms:SigningAlgorithm", "kms:TrailingDaysWithoutKeyUsage",
    "kms:ValidTo", "kms:WrappingAlgorithm", "kms:WrappingKeySpec",
    "kms:RecipientAttestation:ImageSha384", "kms:RecipientAttestation:PCR0",
    "aws:CurrentTime", "aws:EpochTime", "aws:MultiFactorAuthPresent", "aws:PrincipalAccount", "aws:PrincipalArn",
    "aws:PrincipalIsAWSService", "aws:PrincipalType", "aws:RequestedRegion", "aws:ResourceAccount",
    "aws:SecureTransport", "aws:SourceIp", "aws:TagKeys", "aws:TokenIssueTime", "aws:UserAgent", "aws:userid",
    "aws:username", "aws:ViaAWSService",
})  # fmt: skip
_PREFIXES: Final = ("kms:EncryptionContext:", "aws:RequestTag/", "aws:ResourceTag/", "aws:PrincipalTag/")
_NEVER: Final = frozenset({
    "kms:viaservice", "kms:xkskeyid", "aws:sourcearn", "aws:sourceaccount", "aws:sourcevpc", "aws:sourcevpce",
    "aws:sourcevpcarn", "aws:vpcsourceip", "aws:calledvia", "aws:calledviafirst", "aws:calledvialast",
    "aws:principalorgid", "aws:principalorgpaths", "aws:resourceorgid", "aws:resourceorgpaths", "aws:sourceorgid",
    "aws:sourceidentity", "aws:multifactorauthage", "aws:principalservicename", "aws:referer",
    "kms:recipientattestation:pcr8:servicename",
})  # fmt: skip
CALLER: Final = frozenset({
    "aws:principalarn", "aws:principalaccount", "aws:userid", "aws:username", "kms:calleraccount",
})  # fmt: skip
"""Condition keys that say who calls."""
_LOWER: Final = {name.lower(): name for name in _KEYS}
_PCR_KEYS: Final = tuple(f"{ATTESTATION}pcr{index}" for index in range(ENCLAVE_PCRS))
_MEASURED: Final = frozenset({"imagesha384", "pcr0", "pcr1", "pcr2", "pcr8"})
_PCR = re.compile(r"(pcr|nitrotpmpcr)(0|[1-9][0-9]?)", re.ASCII)


def attestation_context(pcrs: Mapping[int, bytes]) -> Mapping[str, str]:
    """The condition keys that a document with these PCRs brings: lower-case hex under lower-case names."""
    return _of_registers(tuple(pcrs), tuple(pcrs.values()))


@functools.lru_cache(maxsize=256)  # an enclave asks again and again
def _of_registers(indexes: tuple[int, ...], values: tuple[bytes, ...]) -> Mapping[str, str]:
    found = {_PCR_KEYS[index]: value.hex() for index, value in zip(indexes, values, strict=True)}
    image = {f"{ATTESTATION}imagesha384": found[_PCR_KEYS[0]]} if 0 in indexes else {}
    return MappingProxyType(found | image)


def is_attestation(key: str) -> bool:
    """Whether a condition key is about an attestation document."""
    return key.lower().startswith(ATTESTATION)


def is_measured(key: str) -> bool:
    """Whether a condition key is of the image or of who signed it: of what is zero in debug mode."""
    return key.lower().removeprefix(ATTESTATION) in _MEASURED


def is_known(key: str) -> bool:
    """Whether some request can have this condition key."""
    lower = key.lower()
    if is_attestation(key):
        match = _PCR.fullmatch(lower.removeprefix(ATTESTATION))
        limit = TPM_PCRS if match and match[1].startswith("nitro") else ENCLAVE_PCRS
        return lower in _LOWER or bool(match and int(match[2]) < limit)
    return lower in _LOWER or any(lower.startswith(p.lower()) and len(lower) > len(p) for p in _PREFIXES)


def is_never_present(key: str) -> bool:
    """Whether AWS knows this condition key, and no request to this service has it."""
    return key.lower() in _NEVER


def like(key: str) -> str | None:
    """The condition key that was meant, perhaps."""
    close = difflib.get_close_matches(key.lower(), [*_LOWER, *(p.lower() for p in _PREFIXES)], n=1, cutoff=0.75)
    return next((name for name in (*_LOWER.values(), *_PREFIXES) if close and name.lower() == close[0]), None)
