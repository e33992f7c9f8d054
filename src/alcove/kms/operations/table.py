"""Which operations there are, and what each needs before it runs (kms.md §2.2, §11).

Core: a table. A row says where the key comes from, in which states the key must be, which checks come after
authorization, and whether the audit log calls it read-only. What has no row is refused.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from alcove.kms.call import Call, Tools
from alcove.kms.keys import Needs
from alcove.kms.operations import admin, crypto, fitness, pairs

Handler = Callable[[Tools, Call], dict[str, Any]]
Check = Callable[[Tools, Call], None]


class Source(enum.Enum):
    """Where an operation's key comes from."""

    NONE = "no key"
    PARAMETER = "KeyId"
    BLOB = "KeyId, or the ciphertext"


@dataclass(frozen=True, slots=True)
class Operation:
    """One row."""

    run: Handler
    source: Source
    needs: Needs = Needs.ANY
    read_only: bool = True
    checks: tuple[Check, ...] = ()


_ENABLED, _WRITING = Needs.ENABLED, Needs.NOT_DELETING
_KEY = Source.PARAMETER
_SIZED = (fitness.wrapping, crypto.check_data_key_size)
_PAIR = (fitness.wrapping, fitness.pair_spec)

OPERATIONS: Final[dict[str, Operation]] = {
    "CancelKeyDeletion": Operation(admin.cancel_key_deletion, _KEY, Needs.DELETING, read_only=False),
    "CreateKey": Operation(admin.create_key, Source.NONE, read_only=False),
    "Decapsulate": Operation(pairs.decapsulate, _KEY, _ENABLED, checks=(fitness.encapsulation,)),
    "Decrypt": Operation(crypto.decrypt, Source.BLOB, _ENABLED, checks=(fitness.decrypting,)),
    "DeriveSharedSecret": Operation(
        pairs.derive_shared_secret, _KEY, _ENABLED, checks=(fitness.agreement, pairs.check_peer_key)
    ),
    "DescribeKey": Operation(admin.describe_key, _KEY),
    "DisableKey": Operation(admin.disable_key, _KEY, _WRITING, read_only=False),
    "EnableKey": Operation(admin.enable_key, _KEY, _WRITING, read_only=False),
    "Encapsulate": Operation(pairs.encapsulate, _KEY, _ENABLED, checks=(fitness.encapsulation,)),
    "Encrypt": Operation(crypto.encrypt, _KEY, _ENABLED, checks=(fitness.encrypting,)),
    "GenerateDataKey": Operation(crypto.generate_data_key, _KEY, _ENABLED, checks=_SIZED),
    "GenerateDataKeyPair": Operation(pairs.generate_data_key_pair, _KEY, _ENABLED, checks=_PAIR),
    "GenerateDataKeyPairWithoutPlaintext": Operation(
        pairs.generate_data_key_pair_without_plaintext, _KEY, _ENABLED, checks=_PAIR
    ),
    "GenerateDataKeyWithoutPlaintext": Operation(
        crypto.generate_data_key_without_plaintext, _KEY, _ENABLED, checks=_SIZED
    ),
    "GenerateMac": Operation(pairs.generate_mac, _KEY, _ENABLED, checks=(fitness.mac,)),
    "GenerateRandom": Operation(crypto.generate_random, Source.NONE),
    "GetKeyPolicy": Operation(admin.get_key_policy, _KEY),
    "GetPublicKey": Operation(pairs.get_public_key, _KEY, _ENABLED, checks=(fitness.public,)),
    "ListKeyPolicies": Operation(admin.list_key_policies, _KEY),
    "ListKeys": Operation(admin.list_keys, Source.NONE),
    "ListResourceTags": Operation(admin.list_resource_tags, _KEY),
    "PutKeyPolicy": Operation(admin.put_key_policy, _KEY, read_only=False),
    "ScheduleKeyDeletion": Operation(
        admin.schedule_key_deletion, _KEY, _WRITING, read_only=False, checks=(admin.check_window,)
    ),
    "Sign": Operation(pairs.sign, _KEY, _ENABLED, checks=(fitness.signing,)),
    "UpdateKeyDescription": Operation(admin.update_key_description, _KEY, _WRITING, read_only=False),
    "Verify": Operation(pairs.verify, _KEY, _ENABLED, checks=(fitness.signing,)),
    "VerifyMac": Operation(pairs.verify_mac, _KEY, _ENABLED, checks=(fitness.mac,)),
}
