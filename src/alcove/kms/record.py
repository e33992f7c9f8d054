"""The audit record of a call, shaped as CloudTrail's (kms.md §24).

Core: what became known of a call in; a JSON object out. Plaintext, ciphertext and policies' texts never come here.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from alcove.kms.attest import Recipient
from alcove.kms.call import Call, Identity, Peer
from alcove.kms.errors import KmsError
from alcove.kms.keys import Realm
from alcove.kms.policy.evaluate import Decision
from alcove.kms.policy.text import Value
from alcove.kms.specs import SYMMETRIC

_HIDDEN: Final = frozenset({"Plaintext", "CiphertextBlob", "Policy", "Recipient", "GrantTokens", "GrantToken"})
MAX_PARAMETERS: Final = 131_072  # characters of JSON; a line of the log is bounded (`audit.MAX_LINE`)
MAX_VALUES: Final = 64  # of a multi-valued condition key
MAX_VALUE: Final = 1024  # characters of what a request had for one condition, or of what an error says
_UNANSWERED: Final = frozenset({"GrantToken", "ReplicaPolicy"})
_MAPS: Final = frozenset({
    "EncryptionContext", "SourceEncryptionContext", "DestinationEncryptionContext", "EncryptionContextEquals",
    "EncryptionContextSubset",
})  # fmt: skip
_INTERNAL: Final = "AWS Internal"  # CloudTrail's words for the service itself
_ANSWERED: Final = frozenset(
    {"CreateKey", "CreateGrant", "ReplicateKey", "CancelKeyDeletion", "ScheduleKeyDeletion", "AssumeRole"}
)


@functools.lru_cache(maxsize=16)
def _stamp(second: int) -> str:
    """A time as CloudTrail has it; a second's records share it."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True)
class Trail:
    """What is known of a call so far; filled as the service goes through its steps."""

    request_id: str
    event_id: str
    now: datetime
    peer: Peer
    identity: Identity
    operation: str
    read_only: bool = True
    params: Mapping[str, Any] = field(default_factory=dict)
    key_arns: tuple[str, ...] = ()
    grant_id: str | None = None
    recipient: Recipient | None = None
    decision: Decision | None = None
    answer: Mapping[str, Any] | None = None
    error: KmsError | None = None
    ended: bool = True
    source: str = "kms.amazonaws.com"

    def note_keys(self, realm: Realm, call: Call) -> None:
        """The keys of a call, the source before the destination, and its grant."""
        self.key_arns = tuple(dict.fromkeys([realm.at(key.region).key_arn(key.key_id) for key in call.keys]))
        self.grant_id = call.grant.grant_id if call.grant else None

    def record(self, realm: Realm) -> dict[str, Any]:
        """The record."""
        made = self.answer["KeyMetadata"]["Arn"] if self.answer and self.operation == "CreateKey" else None
        arns = (made,) if made else self.key_arns
        resources = [{"accountId": arn.split(":")[4], "type": "AWS::KMS::Key", "ARN": arn} for arn in arns]
        failure = {"errorCode": self.error.kind, "errorMessage": self.error.text} if self.error else {}
        return {
            "eventVersion": "1.11",
            "userIdentity": self._identity(),
            "eventTime": _stamp(int(self.now.timestamp())),
            "eventSource": self.source,
            "eventName": self.operation,
            "awsRegion": realm.region,
            "sourceIPAddress": self.peer.address,
            "userAgent": self.peer.user_agent,
            **failure,
            "requestParameters": self._parameters(),
            "responseElements": self._response(),
            "additionalEventData": self._additional(),
            "requestID": self.request_id,
            "eventID": self.event_id,
            "readOnly": self.read_only,
            "resources": resources,
            "eventType": "AwsApiCall",
            "recipientAccountId": realm.account,
        }

    def _identity(self) -> dict[str, Any]:
        caller = self.identity.caller
        found = {
            "type": "IAMUser" if caller.name else "AssumedRole" if caller.role_arn else "Root",
            "principalId": caller.user_id,
            "arn": caller.arn,
            "accountId": caller.account,
            "accessKeyId": self.identity.access_key_id,
        }
        return found | ({"userName": caller.name} if caller.name else {})

    def _parameters(self) -> dict[str, Any] | None:
        if self.operation == "GenerateRandom":
            return None
        shown = {k: v for k, v in self.params.items() if k not in _HIDDEN and not isinstance(v, bytes)}
        if self.operation == "Decrypt":
            shown.setdefault("EncryptionAlgorithm", SYMMETRIC)
        return _bounded(_lowered(shown)) or None

    def _response(self) -> dict[str, Any] | None:
        if self.answer is None or self.operation not in _ANSWERED:
            return None
        found: dict[str, Any] = _lowered({k: v for k, v in self.answer.items() if k not in _UNANSWERED})
        return found

    def _additional(self) -> dict[str, Any] | None:
        found: dict[str, Any] = {}
        if self.recipient:
            found["recipient"] = _recipient(self.recipient)
        if self.decision:
            found["decision"] = _decision(self.decision)
        if self.error and self.error.because:
            found["because"] = self.error.because[:MAX_VALUE]
        if self.grant_id:
            found["grantId"] = self.grant_id
        for name in ("KeyMaterialId", "SourceKeyMaterialId", "DestinationKeyMaterialId"):
            if self.answer and name in self.answer:
                found[f"{name[:1].lower()}{name[1:]}"] = self.answer[name]
        return found or None


def _recipient(recipient: Recipient) -> dict[str, str]:
    document = recipient.attestation.document
    return {
        "attestationDocumentModuleId": document.module_id,
        "attestationDocumentSha256": recipient.sha256,
        **_registers(tuple(document.pcrs), tuple(document.pcrs.values())),
    }


@functools.lru_cache(maxsize=256)  # an enclave asks again and again
def _registers(indexes: tuple[int, ...], values: tuple[bytes, ...]) -> Mapping[str, str]:
    names = [f"attestationDocumentEnclave{f'PCR{index}' if index else 'ImageDigest'}" for index in indexes]
    return MappingProxyType({name: value.hex() for name, value in zip(names, values, strict=True)})


def service_event(name: str, realm: Realm, arn: str, now: float, event_id: str, **details: str) -> dict[str, Any]:
    """The record of what happened without a call (§24).

    To a key: RotateKey, DeleteExpiredKeyMaterial, DeleteKey. To the log, with an empty `arn`: AuditLogCut.
    """
    resources = [{"accountId": realm.account, "type": "AWS::KMS::Key", "ARN": arn}] if arn else []
    return {
        "eventVersion": "1.11",
        "userIdentity": {"accountId": realm.account, "invokedBy": _INTERNAL},
        "eventTime": _stamp(int(now)),
        "eventSource": "kms.amazonaws.com",
        "eventName": name,
        "awsRegion": realm.region,
        "sourceIPAddress": _INTERNAL,
        "userAgent": _INTERNAL,
        "requestParameters": None,
        "responseElements": None,
        "eventID": event_id,
        "readOnly": False,
        "resources": resources,
        "eventType": "AwsServiceEvent",
        "recipientAccountId": realm.account,
        "serviceEventDetails": ({"keyId": arn} if arn else {}) | details,
    }


def _lowered(value: Any, *, freely: bool = False) -> Any:
    """Members in lower camel case, as CloudTrail has them, at every depth; `freely` marks a caller's own map."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        named = {k if freely else f"{k[:1].lower()}{k[1:]}": (k, v) for k, v in value.items() if v is not None}
        return {shown: _lowered(v, freely=k in _MAPS) for shown, (k, v) in named.items()}
    return [_lowered(item) for item in value] if isinstance(value, (list, tuple)) else value


def _bounded(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as they are, or, when there is too much of them, the key and a hash by which they can be proved."""
    if all(isinstance(value, str) and len(value) <= MAX_VALUE for value in parameters.values()):
        return parameters  # as nearly all are; there are few members
    text = json.dumps(parameters, sort_keys=True)
    if len(text) <= MAX_PARAMETERS:
        return parameters
    omitted = {"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return {name: parameters[name] for name in ("keyId",) if name in parameters} | {"omitted": omitted}


def _shortened(actual: Value | None) -> object:
    if actual is None or isinstance(actual, str):
        return actual and actual[:MAX_VALUE]
    return [value[:MAX_VALUE] for value in actual[:MAX_VALUES]]


def _decision(decision: Decision) -> dict[str, Any]:
    failures = [
        {
            "statement": f.statement,
            "operator": f.operator,
            "key": f.key,
            "expected": list(f.expected),
            "actual": _shortened(f.actual),
        }
        for f in decision.failures
    ]
    found: dict[str, Any] = {"allowed": decision.allowed, "why": decision.why.value}
    return (
        found
        | ({"statement": decision.statement} if decision.statement else {})
        | ({"conditions": failures} if failures else {})
    )
