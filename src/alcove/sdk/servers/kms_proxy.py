"""KMS on the enclave's loopback for any AWS SDK: adds Recipient, signs anew, opens envelopes (sdk.md §9, §10.2).

How a call goes:
    1 POST / for KMS, signed by the one access key that callers have; nobody else's request is signed for
    2 an operation that can carry Recipient gets it, with a document made for this call; any other passes as it is
    3 the request is signed with the proxy's credentials and sent to KMS over TLS that ends here
    4 an error of KMS passes as it is; an answer's envelope is opened, after the checks of `sdk.recipient`
    5 the answer has the plaintext in the operation's own member, as if there were no Recipient

A program in the enclave that opens vsock itself goes round this: what protects a key is its policy.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from alcove.errors import AlcoveError, MachineError
from alcove.sdk import nsm, sigv4
from alcove.sdk.attested import RecipientKey
from alcove.sdk.clock import document_time
from alcove.sdk.endpoint import CONTENT_TYPE, Credentials, Endpoint
from alcove.sdk.recipient import ENVELOPE, KEY_ENCRYPTION, AttestedCall, attested_call
from alcove.sdk.servers.request import Request, Response

_TARGET: Final = re.compile(r"TrentService\.(?P<operation>[A-Za-z]{1,64})")


class _RefusedError(Exception):
    """A request that is answered with an error in KMS's form."""

    def __init__(self, kind: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.kind, self.message, self.status = kind, message, status


class KmsProxy:
    """Answers the requests of AWS's SDKs.

    Args:
        endpoint: The KMS, with the credentials that requests are signed with.
        callers: Gives the access key that requests must come signed with.
        keys: ARNs or ids of the keys that answers may name; empty allows every one.
        attester: What makes documents.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        callers: Callable[[], Credentials],
        *,
        keys: Sequence[str] = (),
        attester: nsm.Nsm | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._callers = callers
        self._keys = tuple(keys)
        self._attester = nsm.default() if attester is None else attester
        self._key = RecipientKey(self._attester)

    def __call__(self, request: Request) -> Response:
        """The answer to one request; nothing is raised."""
        try:
            return self._answer(request)
        except _RefusedError as refused:
            return _error(refused.kind, refused.message, refused.status)
        except MachineError as error:  # SDKs try again
            return _error("ServiceUnavailableException", str(error), 503)
        except AlcoveError as error:  # trying again would not help
            return _error("AttestedCallException", f"{type(error).__name__}: {error}", 400)

    def _answer(self, request: Request) -> Response:
        found = _TARGET.fullmatch(request.headers.get("x-amz-target", ""))
        if request.method != "POST" or request.target != "/" or found is None:  # 1
            raise _RefusedError("UnknownOperationException", "only KMS's calls, POST /, are served here")
        self._authenticate(request)
        members = _members(request.body)
        call = attested_call(found["operation"], members, self._keys)
        if call is None:  # 2
            moment = document_time(self._attester.attestation())
            answer = self._endpoint.post(found[0], request.body, moment)
            return Response(answer.status, answer.body, CONTENT_TYPE)
        document = self._key.document()
        members["Recipient"] = {
            "AttestationDocument": base64.b64encode(document).decode("ascii"),
            "KeyEncryptionAlgorithm": KEY_ENCRYPTION,
        }
        answer = self._endpoint.post(found[0], json.dumps(members).encode(), document_time(document))  # 3
        if answer.status != 200:  # 4
            return Response(answer.status, answer.body, CONTENT_TYPE)
        return Response(200, json.dumps(self._opened(call, answer.body)).encode(), CONTENT_TYPE)

    def _opened(self, call: AttestedCall, body: bytes) -> dict[str, Any]:
        answer = _members(body)
        call.check_answer(answer)
        try:
            envelope = base64.b64decode(answer.pop(ENVELOPE), validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise _RefusedError("AttestedCallException", f"KMS's {ENVELOPE} is not base64") from None
        plaintext = call.check_plaintext(self._key.open(envelope))
        return answer | {call.member: base64.b64encode(plaintext).decode("ascii")}  # 5

    def _authenticate(self, request: Request) -> None:
        callers = self._callers()
        try:
            sigv4.verify(
                request.headers,
                request.body,
                access_key_id=callers.access_key_id,
                secret_access_key=callers.secret_access_key,
                session_token=callers.session_token,
                region=self._endpoint.region,
                service="kms",
                now=time.time(),
            )
        except ValueError as error:
            raise _RefusedError("InvalidSignatureException", f"{error} (said by alcove-enclave kms-proxy)") from None


def environment(url: str, region: str, key: Credentials) -> dict[str, str]:
    """The variables that lead a program's AWS SDK to a proxy."""
    return {
        "AWS_ENDPOINT_URL_KMS": url,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_ACCESS_KEY_ID": key.access_key_id,
        "AWS_SECRET_ACCESS_KEY": key.secret_access_key,
    }


def _members(body: bytes) -> dict[str, Any]:
    try:
        members = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise _RefusedError("SerializationException", "the body is not a JSON object")
    return members


def _error(kind: str, message: str, status: int) -> Response:
    return Response(status, json.dumps({"__type": kind, "message": message}).encode(), CONTENT_TYPE)
