"""The service: one signed request in, one answer out, in a fixed order (kms.md §1.4).

Core: the clock, randomness, the store and the audit sink come in as parameters.

The recipe, numbered as the code is:
    1 the operation is known and served; the body fits the model
    2 keys, aliases and grants are found, from names, from the ciphertext's header, from tokens
    3 the recipient's attestation document is verified
    4 the policies decide, with the full context; nothing has touched key material yet
    5 the key's state, then the operation's own checks
    6 a dry run ends here
    7 the handler runs
    8 the audit record is durable; if it cannot be, the call fails

Steps 2 to 7 of an operation that writes are one transaction: what it decided on is what it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from alcove.attestation.crl import RevocationLists
from alcove.attestation.verify import ChainCache, Root
from alcove.errors import AlcoveError
from alcove.kms.attest import Recipient, check_recipient, header_recipient
from alcove.kms.authorize import authorize
from alcove.kms.call import Answer, Call, Peer, Tools, new_ids
from alcove.kms.claim import SignedRequest
from alcove.kms.credentials import identify
from alcove.kms.errors import KmsError, internal, unsupported
from alcove.kms.keys import Realm, check_state
from alcove.kms.log import Log, place_of, silent
from alcove.kms.material import KeyPending
from alcove.kms.model import ALSO_ATTESTED, TARGET_PREFIX, Model
from alcove.kms.operations.table import OPERATIONS, Operation
from alcove.kms.policy.explain import denial
from alcove.kms.record import Trail
from alcove.kms.resolve import resolve
from alcove.kms.store import Usage
from alcove.kms.usage import TRACKED


class Service:
    """The KMS without its transport.

    Args:
        tools: Store, realm, random bytes, Regions; a request is of the Region that it is signed for.
        model: Validates requests and renders answers.
        roots: Attestation roots that are trusted.
        audit: Writes one record durably; raises OSError when it cannot.
        clock: Aware time.
        crls: Revocation lists as they are now; AlcoveError when that cannot be told.
        log: Told of refusals and faults.
    """

    def __init__(
        self,
        tools: Tools,
        model: Model,
        roots: Sequence[Root],
        audit: Callable[[Mapping[str, Any]], None],
        clock: Callable[[], datetime],
        *,
        crls: Callable[[], RevocationLists | None] = lambda: None,
        log: Log = silent,
    ) -> None:
        self._tools = tools
        self._model = model
        self._roots = tuple(roots)
        self._audit = audit
        self._log = log
        self._clock = clock
        self._crls = crls
        self._chains = ChainCache()
        self._names = names = tools.regions or (tools.realm.region,)
        self._rows = {f"{TARGET_PREFIX}.{name}": row for name, row in OPERATIONS.items() if name in model.operations}
        self._regions = {name: replace(tools, realm=replace(tools.realm, region=name), regions=names) for name in names}

    def handle(self, request: SignedRequest, peer: Peer, made: bytes | None = None) -> Answer:
        """The answer to a request; KmsErrors become answers here and nowhere else.

        Args:
            request: As it came.
            peer: Where it came from.
            made: The key pair that a KeyPending asked for.

        Raises:
            KeyPending: The request is allowed and needs a key pair that takes long to make. Nothing has been done or
                recorded yet: the caller makes it, without holding up others, and hands in the request again.
        """
        request_id, event_id = new_ids(self._tools.random)
        try:
            self._tools.store.look()
            return Answer(200, self._handle(request, peer, (request_id, event_id), made), request_id)
        except KeyPending:
            raise
        except KmsError as error:
            return Answer(error.status, error.body(), request_id, kind=error.kind)
        except Exception as error:  # noqa: BLE001 - the store failed before there was a record to write it in
            self._log("fault", request_id=request_id, error=place_of(error))
            fault = KmsError("KMSInternalException", "The request could not be served.")
            return Answer(fault.status, fault.body(), request_id, kind=fault.kind)
        finally:
            self._tools.store.leave()

    def _handle(self, request: SignedRequest, peer: Peer, ids: tuple[str, str], made: bytes | None) -> bytes:
        now = self._clock()
        identity, region = identify(request, self._tools, now=now, service="kms", regions=self._names)
        tools = self._regions[region]
        target = request.value("x-amz-target") or ""
        trail = Trail(*ids, now, peer, identity, target.rpartition(".")[2][:128])
        try:
            row = self._row(target)  # 1
            trail.read_only = row.read_only
            trail.params = self._model.parse(trail.operation, request.body)
            call = Call(trail.operation, trail.params, identity, peer, now, made=made)
            if row.read_only:
                trail.answer = self._perform(tools, row, request, call, trail)
            else:
                told: list[Mapping[str, Any]] = []
                calling = replace(tools, events=told.append)  # what happens to keys in a call that fails, does not
                with tools.store.transaction():
                    trail.answer = self._perform(calling, row, request, call, trail)
                    for record in told:
                        tools.events(record)
            body = self._model.render(trail.operation, trail.answer)
        except KeyPending:
            trail.ended = False
            raise
        except KmsError as error:
            trail.error = error
            raise
        except Exception as error:
            trail.error = internal(error)
            raise trail.error from error
        finally:
            if trail.error is not None:
                self._tell(trail)
            if trail.ended:
                self._write(trail, tools.realm)  # 8
        return body

    def _tell(self, trail: Trail) -> None:
        """Tells the operator of a refusal or a fault; the audit log has the rest under the same request id."""
        error, cause = trail.error, trail.error.__cause__ if trail.error else None
        if error is None:
            return
        decided = {"because": error.text} if error.kind == "AccessDeniedException" else {}
        fault = {"because": place_of(cause)} if error.status == 500 and cause else {}
        self._log(
            "fault" if error.status == 500 else "refused",
            request_id=trail.request_id,
            operation=trail.operation,
            error=error.kind,
            caller=trail.identity.caller.arn,
            address=trail.peer.address,
            **decided,
            **fault,
        )

    def _perform(
        self, tools: Tools, row: Operation, request: SignedRequest, call: Call, trail: Trail
    ) -> dict[str, Any]:
        call = resolve(row.source, tools, call)  # 2
        trail.note_keys(tools.realm, call)
        trail.recipient = self._recipient(request, call)  # 3
        if trail.recipient:
            call.recipient = trail.recipient
        self._authorize(tools, call, trail)  # 4
        for key in call.keys:
            check_state(key, row.needs, tools.realm)  # 5
        for check in row.checks:
            check(tools, call)
        if call.params.get("DryRun"):  # 6
            message = "The request would have succeeded, but the DryRun option is set."
            raise KmsError("DryRunOperationException", message)
        answer = row.run(tools, call)  # 7
        if call.operation in TRACKED:
            for key in call.keys:
                used = Usage(key.region, key.key_id, call.operation, call.seconds, trail.event_id, trail.request_id)
                tools.usages.note(used, tools.store)
        return answer

    def _row(self, target: str) -> Operation:
        row = self._rows.get(target)
        if row is not None:
            return row
        prefix, _, operation = target.partition(".")
        if prefix != TARGET_PREFIX or operation not in self._model.operations:
            raise KmsError("UnknownOperationException", "X-Amz-Target names no operation of this service")
        raise unsupported(f"{operation} is not served")

    def _recipient(self, request: SignedRequest, call: Call) -> Recipient | None:
        parameter = call.params.get("Recipient")
        if parameter is None and call.operation in ALSO_ATTESTED:
            parameter = header_recipient(request)
        if parameter is None:
            return None
        try:
            crls = self._crls()
        except AlcoveError as error:  # nobody can say who is revoked
            message = "The revocation lists cannot be read."
            raise KmsError("KMSInternalException", message, because=error.message) from error
        return check_recipient(parameter, roots=self._roots, now=call.now, crls=crls, cache=self._chains)

    def _authorize(self, tools: Tools, call: Call, trail: Trail) -> None:
        access, decision = authorize(tools, call)
        trail.decision = decision
        if not decision.allowed:
            raise KmsError("AccessDeniedException", denial(access, decision, attested=call.recipient is not None))

    def _write(self, trail: Trail, realm: Realm) -> None:
        try:
            self._audit(trail.record(realm))
        except OSError as error:
            raise KmsError("KMSInternalException", "The call could not be recorded.", because=str(error)) from error
