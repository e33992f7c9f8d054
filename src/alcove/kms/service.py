"""The service: one signed request in, one answer out, in a fixed order (kms.md §1.4).

Core: the clock, randomness, the store and the audit sink come in as parameters.

The recipe, numbered as the code is:
    1 the operation is known and served; the body fits the model
    2 the key is found, from KeyId or from the ciphertext's header
    3 the recipient's attestation document is verified
    4 the policies decide, with the full context; nothing has touched key material yet
    5 the key's state, then the operation's own checks
    6 a dry run ends here
    7 the handler runs
    8 the audit record is durable; if it cannot be, the call fails
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from alcove.attestation.verify import ChainCache, Root
from alcove.kms import blob, sigv4
from alcove.kms.attest import Recipient, check_recipient
from alcove.kms.call import Answer, Call, Peer, Tools
from alcove.kms.context import request_context
from alcove.kms.credentials import identify
from alcove.kms.errors import KmsError, unsupported, validation
from alcove.kms.keys import Key, check_state, no_such_key, parse_key_id
from alcove.kms.material import KeyPending
from alcove.kms.model import TARGET_PREFIX, Model
from alcove.kms.operations.table import OPERATIONS, Operation, Source
from alcove.kms.policy.document import parse_policy
from alcove.kms.policy.evaluate import Access, evaluate
from alcove.kms.policy.explain import denial
from alcove.kms.record import Trail

_NO_CIPHERTEXT = (
    "1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null"
)
_NO_USABLE_KEY = (
    "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are "
    "not allowed to access."
)


class Service:
    """The KMS without its transport.

    Args:
        tools: Store, realm, random bytes.
        model: Validates requests and renders answers.
        roots: Attestation roots that are trusted.
        audit: Writes one record durably; raises OSError when it cannot.
        clock: Aware time.
    """

    def __init__(
        self,
        tools: Tools,
        model: Model,
        roots: Sequence[Root],
        audit: Callable[[Mapping[str, Any]], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._tools = tools
        self._model = model
        self._roots = tuple(roots)
        self._audit = audit
        self._clock = clock
        self._chains = ChainCache()

    def handle(self, request: sigv4.SignedRequest, peer: Peer, made: bytes | None = None) -> Answer:
        """The answer to a request; KmsErrors become answers here and nowhere else.

        Args:
            request: As it came.
            peer: Where it came from.
            made: The key pair that a KeyPending asked for.

        Raises:
            KeyPending: The request is allowed and needs a key pair that takes long to make. Nothing has been done or
                recorded yet: the caller makes it, without holding up others, and hands in the request again.
        """
        request_id = str(uuid.UUID(bytes=self._tools.random(16), version=4))
        try:
            return Answer(200, self._handle(request, peer, request_id, made), request_id)
        except KeyPending:
            raise
        except KmsError as error:
            return Answer(error.status, error.body(), request_id)
        except Exception:  # noqa: BLE001 - the store failed before there was a record to write it in
            fault = KmsError("KMSInternalException", "The request could not be served.")
            return Answer(fault.status, fault.body(), request_id)

    def _handle(self, request: sigv4.SignedRequest, peer: Peer, request_id: str, made: bytes | None) -> bytes:
        now = self._clock()
        identity = identify(request, self._tools, now=now, service="kms", regions=(self._tools.realm.region,))
        target = request.value("x-amz-target") or ""
        event_id = str(uuid.UUID(bytes=self._tools.random(16), version=4))
        trail = Trail(request_id, event_id, now, peer, identity, target.rpartition(".")[2][:128])
        try:
            trail.answer = self._perform(request, target, trail, made)
            body = self._model.render(trail.operation, trail.answer)
        except KeyPending:
            trail.ended = False
            raise
        except KmsError as error:
            trail.error = error
            raise
        except Exception as error:
            trail.error = KmsError("KMSInternalException", "The request could not be served.", because=repr(error))
            raise trail.error from error
        finally:
            if trail.ended:
                self._write(trail)  # 8
        return body

    def _perform(self, request: sigv4.SignedRequest, target: str, trail: Trail, made: bytes | None) -> dict[str, Any]:
        row = self._row(target)  # 1
        trail.read_only = row.read_only
        params = trail.params = self._model.parse(trail.operation, request.body)
        key = self._key(row, params)  # 2
        trail.key_arn = self._tools.realm.key_arn(key.key_id) if key else None
        trail.recipient = self._recipient(params, trail.now)  # 3
        call = Call(trail.operation, params, trail.identity, trail.peer, trail.now, key, trail.recipient, made)
        self._authorize(call, trail)  # 4
        if key:
            check_state(key, row.needs, str(trail.key_arn))  # 5
        for check in row.checks:
            check(self._tools, call)
        if params.get("DryRun"):  # 6
            raise KmsError(
                "DryRunOperationException", "The request would have succeeded, but the DryRun option is set."
            )
        return row.run(self._tools, call)  # 7

    def _row(self, target: str) -> Operation:
        prefix, _, operation = target.partition(".")
        if prefix != TARGET_PREFIX or operation not in self._model.operations:
            raise KmsError("UnknownOperationException", "X-Amz-Target names no operation of this service")
        if operation not in OPERATIONS:
            raise unsupported(f"{operation} is not served")
        return OPERATIONS[operation]

    def _key(self, row: Operation, params: Mapping[str, Any]) -> Key | None:
        if row.source is Source.NONE:
            return None
        if row.source is Source.BLOB and "CiphertextBlob" not in params:
            if params.get("DryRun"):
                raise unsupported("a dry run without its ciphertext is not served")
            raise validation(_NO_CIPHERTEXT)
        if row.source is Source.BLOB and "KeyId" not in params:
            return self._key_of_blob(params["CiphertextBlob"])
        key_id = parse_key_id(params["KeyId"], self._tools.realm)
        key = self._tools.store.key(key_id)
        if key is None or self._is_gone(key):
            raise no_such_key(key_id, self._tools.realm)
        return key

    def _key_of_blob(self, ciphertext: bytes) -> Key:
        try:
            header = blob.Header.parse(ciphertext)
        except ValueError as error:
            raise KmsError("InvalidCiphertextException", because=str(error)) from error
        key = self._tools.store.key(header.key_id)
        if key is None or self._is_gone(key):
            raise KmsError("AccessDeniedException", _NO_USABLE_KEY)
        return key

    def _is_gone(self, key: Key) -> bool:
        """A key whose window has passed is gone, whether it is purged yet or not."""
        return key.deletion_date is not None and key.deletion_date <= self._clock().timestamp()

    def _recipient(self, params: Mapping[str, Any], now: datetime) -> Recipient | None:
        if "Recipient" not in params:
            return None
        return check_recipient(params["Recipient"], roots=self._roots, now=now, cache=self._chains)

    def _authorize(self, call: Call, trail: Trail) -> None:
        context = request_context(call, self._tools.realm)
        access = Access(call.identity.caller, f"kms:{call.operation}", trail.key_arn, context)
        policy = parse_policy(call.key.policy) if call.key else None
        decision = trail.decision = evaluate(access, policy, call.identity.policies)
        if decision.allowed and call.params.get("Tags"):
            access = replace(access, action="kms:TagResource")
            decision = trail.decision = evaluate(access, policy, call.identity.policies)
        if not decision.allowed:
            raise KmsError("AccessDeniedException", denial(access, decision, attested=call.recipient is not None))

    def _write(self, trail: Trail) -> None:
        try:
            self._audit(trail.record(self._tools.realm))
        except OSError as error:
            raise KmsError("KMSInternalException", "The call could not be recorded.", because=str(error)) from error
