"""STS beside the KMS: GetCallerIdentity and AssumeRole, enough for SDKs' credential chains (kms.md §23).

Core: the clock, randomness, the store and the audit sink come in as parameters.

The query protocol: a form in, XML out. A role trusts users by their ids, and who it trusts may take it on, unless an
identity policy denies ``sts:AssumeRole``. What AWS knows and this does not (session policies and tags, MFA, external
ids) is refused: ignoring it would widen what the credentials can do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from alcove.kms.call import Answer, Call, Peer, Tools, new_ids
from alcove.kms.claim import SignedRequest
from alcove.kms.context import request_context
from alcove.kms.credentials import identify
from alcove.kms.errors import KmsError, internal
from alcove.kms.policy.evaluate import Access, Why, evaluate
from alcove.kms.record import Trail
from alcove.kms.sessions import LABEL, Sealer, Session
from alcove.kms.store import Role

CONTENT_TYPE: Final = "text/xml"
FORM: Final = "application/x-www-form-urlencoded"
VERSION: Final = "2011-06-15"
XMLNS: Final = "https://sts.amazonaws.com/doc/2011-06-15/"
GLOBAL_REGION: Final = "us-east-1"  # what clients of the global endpoint sign for
MAX_FIELDS: Final = 32
DEFAULT_SECONDS: Final = 3600
MIN_SECONDS: Final = 900
MAX_SECONDS: Final = 43_200
_SESSION_NAME = re.compile(r"[\w+=,.@-]{2,64}", re.ASCII)
_ERRORS: Final = {  # our class → STS's code and status
    "UnrecognizedClientException": ("InvalidClientTokenId", 403),
    "ExpiredTokenException": ("ExpiredToken", 403),
    "InvalidSignatureException": ("SignatureDoesNotMatch", 403),
    "IncompleteSignatureException": ("IncompleteSignature", 400),
    "MissingAuthenticationTokenException": ("MissingAuthenticationToken", 403),
    "AccessDeniedException": ("AccessDenied", 403),
    "ValidationException": ("ValidationError", 400),
    "UnknownOperationException": ("InvalidAction", 400),
    "KMSInternalException": ("InternalFailure", 500),
}


class Sts:
    """The service without its transport.

    Args:
        tools: Store, realm, random bytes.
        audit: Writes one record durably; raises OSError when it cannot.
        clock: Aware time.
    """

    def __init__(self, tools: Tools, audit: Callable[[Mapping[str, Any]], None], clock: Callable[[], datetime]) -> None:
        self._tools = tools
        self._audit = audit
        self._clock = clock

    def handle(self, request: SignedRequest, peer: Peer) -> Answer:
        """The answer to a request; errors become answers here."""
        request_id, event_id = new_ids(self._tools.random)
        try:
            body = self._handle(request, peer, request_id, event_id)
        except KmsError as error:
            return _refusal(error, request_id)
        except Exception:  # noqa: BLE001 - the store failed before there was a record to write it in
            return _refusal(KmsError("KMSInternalException", "The request could not be served."), request_id)
        return Answer(200, body, request_id, CONTENT_TYPE)

    def _handle(self, request: SignedRequest, peer: Peer, request_id: str, event_id: str) -> bytes:
        now, realm = self._clock(), self._tools.realm
        regions = {*self._tools.regions, realm.region, GLOBAL_REGION}
        identity, _ = identify(request, self._tools, now=now, service="sts", regions=regions)
        trail = Trail(request_id, event_id, now, peer, identity, "", source="sts.amazonaws.com")
        try:
            form = _form(request)
            trail.operation = form.pop("Action", "")[:128]
            result = self._perform(trail, form)
        except KmsError as error:
            trail.error = error
            raise
        except Exception as error:
            trail.error = internal(error)
            raise trail.error from error
        finally:
            self._write(trail)
        return _xml(trail.operation, result, request_id)

    def _perform(self, trail: Trail, form: dict[str, str]) -> dict[str, Any]:
        if form.pop("Version", VERSION) != VERSION or trail.operation not in {"GetCallerIdentity", "AssumeRole"}:
            raise KmsError("UnknownOperationException", f"Could not find operation {trail.operation}")
        caller = trail.identity.caller
        if trail.operation == "GetCallerIdentity":
            return {"Arn": caller.arn, "UserId": caller.user_id, "Account": caller.account}
        return self._assume(trail, form)

    def _assume(self, trail: Trail, form: dict[str, str]) -> dict[str, Any]:
        unknown = sorted(set(form) - {"RoleArn", "RoleSessionName", "DurationSeconds"})
        if unknown:
            raise _invalid(f"{unknown[0]} is not served")
        arn, name, seconds = form.get("RoleArn", ""), form.get("RoleSessionName", ""), _seconds(form)
        if not _SESSION_NAME.fullmatch(name):
            raise _invalid("RoleSessionName must be 2 to 64 letters, digits and _+=,.@-")
        trail.params = {"RoleArn": arn[:2048], "RoleSessionName": name, "DurationSeconds": seconds}
        role = self._trusting(trail, arn)
        issued = int(trail.now.timestamp())
        session = Session(role.role_id, name, issued, issued + seconds)
        made = Sealer(self._tools.store.secret(LABEL)).seal(session, self._tools.random(22))
        expiration = datetime.fromtimestamp(session.expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        user = {
            "AssumedRoleId": f"{role.role_id}:{name}",
            "Arn": self._tools.realm.session_arn(role.name, name),
        }
        shown = {"AccessKeyId": made.access_key_id, "Expiration": expiration}
        trail.answer = {"Credentials": shown, "AssumedRoleUser": user}
        secrets = {"SecretAccessKey": made.secret, "SessionToken": made.token}
        return {"Credentials": shown | secrets, "AssumedRoleUser": user}

    def _trusting(self, trail: Trail, arn: str) -> Role:
        """The role, if it trusts the caller; one that does not exist is refused in the same words."""
        caller = trail.identity.caller
        role = next((r for r in self._tools.store.roles() if self._tools.realm.role_arn(r.name) == arn), None)
        call = Call("AssumeRole", {}, trail.identity, trail.peer, trail.now)
        access = Access(caller, "sts:AssumeRole", arn, request_context(call, self._tools.realm))
        denied = evaluate(access, None, trail.identity.policies).why is Why.IDENTITY_DENIES
        if role is None or denied or caller.user_id not in role.trusted:
            asked = f"User: {caller.arn} is not authorized to perform: sts:AssumeRole on resource: {arn[:2048]}"
            raise KmsError("AccessDeniedException", asked)
        return role

    def _write(self, trail: Trail) -> None:
        try:
            self._audit(trail.record(self._tools.realm))
        except OSError as error:
            raise KmsError("KMSInternalException", "The call could not be recorded.", because=str(error)) from error


def is_sts(request: SignedRequest) -> bool:
    """Whether a request is in the query protocol: a form, or an Action in the query, and no target."""
    if request.value("x-amz-target") is not None:
        return False
    kind = (request.value("content-type") or "").partition(";")[0].strip().lower()
    return kind == FORM or ("Action=" in request.query and any(name == "Action" for name, _ in request.parameters()))


def _form(request: SignedRequest) -> dict[str, str]:
    """The parameters of the query and of the body, without those of a presigned request's signature."""
    try:
        body = request.body.decode()
        pairs = parse_qsl(body, keep_blank_values=True, strict_parsing=True, max_num_fields=MAX_FIELDS) if body else []
    except ValueError:
        raise _invalid("the body is not a form") from None
    pairs += [(name, value) for name, value in request.parameters() if not name.startswith("X-Amz-")]
    form = dict(pairs)
    if len(form) != len(pairs):
        raise _invalid("a parameter is there more than once")
    return form


def _seconds(form: Mapping[str, str]) -> int:
    text = form.get("DurationSeconds", str(DEFAULT_SECONDS))
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not MIN_SECONDS <= int(text) <= MAX_SECONDS:
        raise _invalid(f"DurationSeconds must be from {MIN_SECONDS} to {MAX_SECONDS}")
    return int(text)


def _invalid(message: str) -> KmsError:
    return KmsError("ValidationException", message)


def _xml(operation: str, result: Mapping[str, Any], request_id: str) -> bytes:
    inner = _elements({f"{operation}Result": result, "ResponseMetadata": {"RequestId": request_id}})
    return f'<{operation}Response xmlns="{XMLNS}">{inner}</{operation}Response>'.encode()


def _refusal(error: KmsError, request_id: str) -> Answer:
    code, status = _ERRORS.get(error.kind, ("InternalFailure", 500))
    told = {"Type": "Receiver" if status == 500 else "Sender", "Code": code, "Message": error.text or code}
    inner = _elements({"Error": told, "RequestId": request_id})
    return Answer(
        status, f'<ErrorResponse xmlns="{XMLNS}">{inner}</ErrorResponse>'.encode(), request_id, CONTENT_TYPE, error.kind
    )


def _elements(values: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return _elements(value) if isinstance(value, Mapping) else escape(_printable(str(value)))

    return "".join(f"<{name}>{text(value)}</{name}>" for name, value in values.items())


def _printable(text: str) -> str:
    """XML 1.0 has no form at all for most control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)
