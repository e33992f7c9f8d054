"""One call on its way through the service: what handlers get, and what they may use.

Core: records only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alcove.kms.attest import Recipient
from alcove.kms.keys import Key, Realm
from alcove.kms.policy.document import PolicyDocument
from alcove.kms.policy.principals import Caller
from alcove.kms.store import KeyStore


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a request came from."""

    address: str
    user_agent: str
    secure: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller with its identity policies."""

    caller: Caller
    access_key_id: str
    policies: tuple[PolicyDocument, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body and request id of an answer, and what the body is."""

    status: int
    body: bytes
    request_id: str
    content_type: str = "application/x-amz-json-1.1"


@dataclass(frozen=True, slots=True)
class Tools:
    """What handlers work with: the store, the realm, and random bytes."""

    store: KeyStore
    realm: Realm
    random: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Call:
    """An authorized call; `key` is there for every operation that has one.

    `made` is a key pair that was made for this call elsewhere, because it takes long (`material.KeyPending`).
    """

    operation: str
    params: Mapping[str, Any]
    identity: Identity
    peer: Peer
    now: datetime
    key: Key | None = None
    recipient: Recipient | None = None
    made: bytes | None = None

    @property
    def the_key(self) -> Key:
        """The key; a RuntimeError in an operation without one."""
        if self.key is None:
            raise RuntimeError(f"{self.operation} has no key")
        return self.key
