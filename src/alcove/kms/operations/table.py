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
from alcove.kms.operations import admin, crypto

Handler = Callable[[Tools, Call], dict[str, Any]]
Check = Callable[[Call], None]


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
_SIZED = (crypto.check_data_key_size,)

OPERATIONS: Final[dict[str, Operation]] = {
    "CancelKeyDeletion": Operation(admin.cancel_key_deletion, _KEY, Needs.DELETING, read_only=False),
    "CreateKey": Operation(admin.create_key, Source.NONE, read_only=False),
    "Decrypt": Operation(crypto.decrypt, Source.BLOB, _ENABLED, checks=(crypto.check_algorithm,)),
    "DescribeKey": Operation(admin.describe_key, _KEY),
    "DisableKey": Operation(admin.disable_key, _KEY, _WRITING, read_only=False),
    "EnableKey": Operation(admin.enable_key, _KEY, _WRITING, read_only=False),
    "Encrypt": Operation(crypto.encrypt, _KEY, _ENABLED, checks=(crypto.check_algorithm,)),
    "GenerateDataKey": Operation(crypto.generate_data_key, _KEY, _ENABLED, checks=_SIZED),
    "GenerateDataKeyWithoutPlaintext": Operation(
        crypto.generate_data_key_without_plaintext, _KEY, _ENABLED, checks=_SIZED
    ),
    "GenerateRandom": Operation(crypto.generate_random, Source.NONE),
    "GetKeyPolicy": Operation(admin.get_key_policy, _KEY),
    "ListKeyPolicies": Operation(admin.list_key_policies, _KEY),
    "ListKeys": Operation(admin.list_keys, Source.NONE),
    "ListResourceTags": Operation(admin.list_resource_tags, _KEY),
    "PutKeyPolicy": Operation(admin.put_key_policy, _KEY, read_only=False),
    "ScheduleKeyDeletion": Operation(
        admin.schedule_key_deletion, _KEY, _WRITING, read_only=False, checks=(admin.check_window,)
    ),
    "UpdateKeyDescription": Operation(admin.update_key_description, _KEY, _WRITING, read_only=False),
}
