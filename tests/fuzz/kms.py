"""Fuzz targets of the KMS: policies, signatures, parameters, recipients, ciphertexts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache

from vectors.attestation import world

from alcove.attestation import Root
from alcove.kms import blob, sts
from alcove.kms.attest import check_recipient
from alcove.kms.claim import SignedRequest, token_of
from alcove.kms.errors import KmsError
from alcove.kms.model import kms_model
from alcove.kms.policy.document import PolicyKind, parse_policy
from alcove.kms.policy.evaluate import Access, evaluate
from alcove.kms.policy.lint import lint
from alcove.kms.policy.principals import Caller
from alcove.kms.policy.walk import Verdict, walk
from alcove.kms.sigv4 import Secret, authenticate

ACCOUNT = "111122223333"
KEY = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
CALLERS = (
    Caller(f"arn:aws:iam::{ACCOUNT}:user/alice", ACCOUNT, "AIDA", "alice"),
    Caller(f"arn:aws:sts::{ACCOUNT}:assumed-role/r/s", ACCOUNT, "AROA:s", role_arn=f"arn:aws:iam::{ACCOUNT}:role/r"),
)
CONTEXT = {"aws:username": "alice", "aws:sourceip": "192.0.2.1", "kms:encryptioncontextkeys": ("a", "b")}
NOW = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
OPERATIONS = sorted(kms_model().operations)
AUTHENTICATION = {
    "InvalidSignatureException", "IncompleteSignatureException", "MissingAuthenticationTokenException",
    "UnrecognizedClientException", "ExpiredTokenException",
}  # fmt: skip
SIGNED = (  # kms.md §22.3
    b"POST / \n"
    b"host:kms.us-east-1.amazonaws.com\ncontent-type:application/x-amz-json-1.1\nx-amz-date:20150830T123600Z\n"
    b"x-amz-security-token:TOKEN\nx-amz-target:TrentService.DescribeKey\nauthorization:AWS4-HMAC-SHA256 "
    b"Credential=AKIDEXAMPLE/20150830/us-east-1/kms/aws4_request, "
    b"SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, "
    b"Signature=01bb4b67a0d13b68247ea42b7739fba5db4d37ac345e548a5267193e05624a6f\n\n"
    b'{"KeyId":"alias/test"}'
)
PRESIGNED = (
    b"GET / Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE"
    b"%2F20150830%2Fus-east-1%2Fkms%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-Expires=60"
    b"&X-Amz-SignedHeaders=host&X-Amz-Security-Token=TOKEN&X-Amz-Signature=" + b"0" * 64 + b"\nhost:localhost\n\n"
)


def policy(data: bytes) -> None:
    """A policy is refused in a class of its own, or decides every request, and its explanation decides alike."""
    text = data.decode("utf-8", "replace")
    for kind in PolicyKind:
        try:
            parsed = parse_policy(text, kind)
        except KmsError as error:
            assert error.kind in {"MalformedPolicyDocumentException", "LimitExceededException"}  # noqa: PT017 - of every one
            continue
        for caller in CALLERS:
            access = Access(caller, "kms:Decrypt", KEY, CONTEXT)
            on_key, others = (parsed, []) if kind is PolicyKind.KEY else (None, [parsed])
            decision = evaluate(access, on_key, others)
            steps = list(walk(access, [("it", parsed)]))
            applying = [step.allow for step in steps if step.verdict is Verdict.APPLIES]
            assert decision.allowed <= (True in applying and False not in applying)
        for finding in lint(text, OPERATIONS, kind):
            assert finding.message


def signature(data: bytes) -> None:
    """A request is refused in a class of authentication, or is the one request that was signed."""
    request = _request(data)
    sts.is_sts(request)
    token_of(request)
    try:
        scope = authenticate(request, now=NOW, regions=("us-east-1",), find=_secret)
    except KmsError as error:
        assert error.kind in AUTHENTICATION  # noqa: PT017 - a property of every one
        return
    genuine = _request(SIGNED)
    assert (scope.access_key_id, scope.region) == ("AKIDEXAMPLE", "us-east-1")
    assert (request.method, request.body) == (genuine.method, genuine.body)
    assert request.value("x-amz-target") == genuine.value("x-amz-target")


def _secret(access_key_id: str) -> Secret | None:
    return Secret("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "TOKEN") if access_key_id == "AKIDEXAMPLE" else None


def _request(data: bytes) -> SignedRequest:
    """A request from a first line of method, path and query, lines of headers, and a body."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    method, path, query = [*first.split(" ", 2), "", ""][:3]
    headers = (line.partition(":") for line in lines)
    return SignedRequest(method, path, query, tuple((n.lower(), value.strip()) for n, _, value in headers), body)


def parameters(data: bytes) -> None:
    """The body of any operation fits its shape, or is refused in the words of validation, and not at length."""
    operation, body = OPERATIONS[data[0] % len(OPERATIONS) if data else 0], data[1:]
    try:
        parsed = kms_model().parse(operation, body)
    except KmsError as error:
        answer = error
    else:
        assert set(parsed) <= kms_model().members(operation)
        return
    assert answer.kind in {"ValidationException", "SerializationException"}
    assert len(answer.body()) < 1 << 17


def recipient(data: bytes) -> None:
    """A document is a recipient, or a ValidationException that says no more than a client may know."""
    parameter = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": data}
    try:
        found = check_recipient(parameter, roots=[_root()], now=world.AT)
    except KmsError as error:
        answer = error
    else:
        assert found.attestation.document.public_key == found.public_key
        return
    assert answer.kind == "ValidationException"
    assert "attestation" in str(answer.text)


def ciphertext(data: bytes) -> None:
    """No bytes are a ciphertext of a key but those that were made with it."""
    try:
        opened = blob.unseal(data, bytes(32), {})
    except ValueError:
        return
    assert data == SEALED
    assert opened == b"secret"


@cache
def _root() -> Root:
    return Root.from_fingerprint(world.fingerprint(world.root()))


SEALED = blob.seal(b"secret", bytes(32), blob.Header("1234abcd-12ab-34cd-56ef-1234567890ab", "00" * 32, bytes(32)), {})


def policies() -> Iterator[bytes]:
    """A statement of each kind, and one with each family of conditions."""
    root = f"arn:aws:iam::{ACCOUNT}:root"
    statement = {"Effect": "Allow", "Principal": {"AWS": [root, "*"]}, "Action": "kms:*", "Resource": KEY}
    condition = {
        "StringLike": {"aws:username": ["${aws:username}", "a*?${*}"]},
        "ForAnyValue:StringNotEqualsIfExists": {"kms:EncryptionContextKeys": "a"},
        "IpAddress": {"aws:SourceIp": "192.0.2.0/24"}, "Null": {"x": "true"}, "NumericLessThan": {"y": 1.5},
        "DateGreaterThan": {"z": "2026-01-01T00:00:00Z"}, "ArnLike": {"aws:PrincipalArn": "arn:*:iam::*:user/*"},
    }  # fmt: skip
    denial = {
        "Sid": "no",
        "Effect": "Deny",
        "NotPrincipal": {"AWS": root},
        "NotAction": ["kms:En*"],
        "NotResource": "*",
    }
    for statements in ([statement], [statement | {"Condition": condition}], [statement, denial]):
        yield json.dumps({"Version": "2012-10-17", "Id": "x", "Statement": statements}).encode()
    yield json.dumps({"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}).encode()


def bodies() -> Iterator[bytes]:
    """A body for some operations."""
    examples = {
        "CreateKey": {"Tags": [{"TagKey": "a", "TagValue": "b"}], "MultiRegion": True},
        "CreateGrant": {
            "KeyId": "x",
            "Operations": ["Decrypt"],
            "Constraints": {"EncryptionContextEquals": {"a": "b"}},
        },
        "Decrypt": {"CiphertextBlob": "eA==", "Recipient": {"AttestationDocument": "eA=="}},
        "ImportKeyMaterial": {"KeyId": "x", "ImportToken": "eA==", "EncryptedKeyMaterial": "eA==", "ValidTo": 1.5},
    }
    for operation, body in examples.items():
        yield bytes([OPERATIONS.index(operation)]) + json.dumps(body).encode()


def ciphertexts() -> Iterator[bytes]:
    """One."""
    yield SEALED


def requests() -> Iterator[bytes]:
    """One of each form."""
    yield SIGNED
    yield PRESIGNED
