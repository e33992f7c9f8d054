"""The key policy that pins a key to an image (kms.md §8.9: the safe shape).

Core: PCR values and ARNs in; a policy out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from alcove.kms.policy.catalogue import RELEASING

_PREFIX: Final = "kms:RecipientAttestation:"
_MANAGING: Final = (
    "Describe*", "Get*", "List*", "PutKeyPolicy", "UpdateKeyDescription", "EnableKey", "DisableKey",
    "EnableKeyRotation", "DisableKeyRotation", "RotateKeyOnDemand", "TagResource", "UntagResource", "CreateAlias",
    "UpdateAlias", "DeleteAlias", "RevokeGrant", "ScheduleKeyDeletion", "CancelKeyDeletion", "Encrypt",
)  # fmt: skip


def conditions(pcrs: Mapping[int, bytes], *, image: bool = False) -> dict[str, str]:
    """The condition keys with their values; `image` says PCR0 by its other name."""
    named = {f"{_PREFIX}PCR{index}": value.hex() for index, value in sorted(pcrs.items())}
    return {f"{_PREFIX}ImageSha384": pcrs[0].hex()} if image else named


def statement(pcrs: Mapping[str, str], principals: Sequence[str]) -> dict[str, Any]:
    """The statement that lets an enclave have plaintext, when all of these are its PCRs."""
    return {
        "Sid": "OnlyTheEnclave",
        "Effect": "Allow",
        "Principal": {"AWS": _one(principals)},
        "Action": [f"kms:{action}" for action in RELEASING],
        "Resource": "*",
        "Condition": {"StringEqualsIgnoreCase": dict(pcrs)},
    }


def policy(pcrs: Mapping[str, str], principals: Sequence[str], managers: Sequence[str]) -> dict[str, Any]:
    """A whole key policy: who manages the key without its plaintext, who may use it from where, and nobody else.

    The Deny also stops grants, and ReEncrypt, which takes no document. It looks at the first condition alone: several
    in one Deny would have to differ all at once.
    """
    key, value = next(iter(pcrs.items()))
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "ManageWithoutPlaintext",
                "Effect": "Allow",
                "Principal": {"AWS": _one(managers)},
                "Action": [f"kms:{action}" for action in _MANAGING],
                "Resource": "*",
            },
            statement(pcrs, principals),
            {
                "Sid": "NobodyElse",
                "Effect": "Deny",
                "Principal": "*",
                "Action": [f"kms:{action}" for action in (*RELEASING, "ReEncryptFrom")],
                "Resource": "*",
                "Condition": {"StringNotEqualsIgnoreCase": {key: value}},
            },
        ],
    }


def _one(names: Sequence[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else list(names)
