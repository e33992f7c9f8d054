"""One call on its way through the service: what handlers get, and what they may use.

Core: records only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from alcove.kms.attest import Recipient
from alcove.kms.keys import Key, Realm
from alcove.kms.policy.decisions import Decisions
from alcove.kms.policy.document import PolicyDocument
from alcove.kms.policy.principals import Caller
from alcove.kms.store import AccessKey, Alias, Grant, KeyStore
from alcove.kms.usage import Usages


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a request came from."""

    address: str
    user_agent: str
    secure: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller with its identity policies.

    Attributes:
        reads: The condition keys that make a difference to any of the policies.
    """

    caller: Caller
    access_key_id: str
    policies: tuple[PolicyDocument, ...]
    reads: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", tuple(key for policy in self.policies for key in policy.reads))


class Answer(NamedTuple):
    """Status, body and request id of an answer, what the body is, and the class of the error that it tells, if any."""

    status: int
    body: bytes
    request_id: str
    content_type: str = "application/x-amz-json-1.1"
    kind: str = ""


def _unheard(record: Mapping[str, Any]) -> None:
    del record


@dataclass(frozen=True, slots=True)
class Tools:
    """What handlers work with: the store, the realm, random bytes, and the names of all Regions that are served.

    `events` takes the records of what happens without a call: rotations, expired material, keys that go.
    """

    store: KeyStore
    realm: Realm
    random: Callable[[int], bytes]
    regions: tuple[str, ...] = ()
    usages: Usages = field(default_factory=Usages)
    decisions: Decisions = field(default_factory=Decisions)
    callers: dict[str, tuple[AccessKey, Any]] = field(default_factory=dict)
    events: Callable[[Mapping[str, Any]], None] = _unheard


@dataclass(slots=True)
class Call:
    """An authorized call; `key` is there for every operation that has one.

    The service fills in the recipient, and nobody else changes one; frozen, it would take six times as long to make.

    Attributes:
        made: A key pair that was made for this call elsewhere, because it takes long (`material.KeyPending`).
        alias: The alias by which the key was named, or that the operation is about.
        other: The second key of an operation that has two: ReEncrypt's destination, an alias' new target, the new
            primary.
        other_alias: The alias by which that was named.
        grant: The grant that RetireGrant is about.
    """

    operation: str
    params: Mapping[str, Any]
    identity: Identity
    peer: Peer
    now: datetime
    key: Key | None = None
    recipient: Recipient | None = None
    made: bytes | None = None
    alias: Alias | None = None
    other: Key | None = None
    other_alias: Alias | None = None
    grant: Grant | None = None

    def about(self, key: Key, alias: Alias | None) -> Call:
        """The same about a key; what `dataclasses.replace` gives, at a tenth of its price."""
        return Call(
            self.operation, self.params, self.identity, self.peer, self.now, key, self.recipient, self.made, alias,
            self.other, self.other_alias, self.grant,
        )  # fmt: skip

    @property
    def the_key(self) -> Key:
        """The key; a RuntimeError in an operation without one."""
        if self.key is None:
            raise RuntimeError(f"{self.operation} has no key")
        return self.key

    @property
    def the_other(self) -> Key:
        """The second key; a RuntimeError in an operation without one."""
        if self.other is None:
            raise RuntimeError(f"{self.operation} has no second key")
        return self.other

    @property
    def keys(self) -> list[Key]:
        """The keys that it is about."""
        return [key for key in (self.key, self.other) if key is not None]

    @property
    def seconds(self) -> float:
        """The time of the call, seconds since the epoch, to the millisecond as answers have it."""
        return round(self.now.timestamp(), 3)


def new_ids(random: Callable[[int], bytes]) -> tuple[str, str]:
    """Two random UUIDs as text: of a request, and of its record."""
    digits = random(32).hex()
    return _uuid(digits[:32]), _uuid(digits[32:])


def _uuid(digits: str) -> str:
    """Version 4 of RFC 9562, of 32 hexadecimal digits."""
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


_VARIANT: Final = {f"{digit:x}": "89ab"[digit & 3] for digit in range(16)}
