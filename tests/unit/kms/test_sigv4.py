"""SigV4: the known answers, and every rule that refuses."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest

from alcove.kms.claim import Scope, SignedRequest
from alcove.kms.errors import KmsError
from alcove.kms.sigv4 import (
    MISMATCH,
    Secret,
    authenticate,
    canonical_request,
    signing_key,
    string_to_sign,
)

ACCESS_KEY = "AKIDEXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
STAMP = "20150830T123600Z"
NOW = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
SIGNATURE = "01bb4b67a0d13b68247ea42b7739fba5db4d37ac345e548a5267193e05624a6f"
SIGNED = "content-type;host;x-amz-date;x-amz-security-token;x-amz-target"
SCOPE = "20150830/us-east-1/kms/aws4_request"


def request(*, drop: tuple[str, ...] = (), body: bytes = b'{"KeyId":"alias/test"}', **change: str) -> SignedRequest:
    headers = {
        "host": "kms.us-east-1.amazonaws.com",
        "content-type": "application/x-amz-json-1.1",
        "x-amz-date": STAMP,
        "x-amz-security-token": "TOKEN",
        "x-amz-target": "TrentService.DescribeKey",
        "authorization": authorization(),
    }
    headers |= {name.replace("_", "-"): value for name, value in change.items()}
    return SignedRequest("POST", "/", "", tuple((k, v) for k, v in headers.items() if k not in drop), body)


def authorization(scope: str = SCOPE, signed: str = SIGNED, signature: str = SIGNATURE) -> str:
    return f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={signed}, Signature={signature}"


def find(access_key_id: str) -> Secret | None:
    return Secret(SECRET, "TOKEN") if access_key_id == ACCESS_KEY else None


def check(given: SignedRequest, now: datetime = NOW) -> str:
    scope = authenticate(given, now=now, regions=("us-east-1",), find=find)
    assert scope.region == "us-east-1"
    return scope.access_key_id


def refusal(given: SignedRequest, now: datetime = NOW) -> KmsError:
    with pytest.raises(KmsError) as caught:
        check(given, now)
    return caught.value


def test_the_first_known_answer() -> None:
    """AWS's published vector: canonical request and signature (kms.md §22.3)."""
    headers = (("host", "example.amazonaws.com"), ("x-amz-date", STAMP))
    canonical = canonical_request(SignedRequest("POST", "/", "", headers, b""), ["host", "x-amz-date"])
    assert (
        hashlib.sha256(canonical.encode()).hexdigest()
        == "553f88c9e4d10fc9e109e2aeb65f030801b70c2f6468faca261d401ae622fc87"
    )
    scope = Scope(ACCESS_KEY, "20150830", "us-east-1", "service")
    signature = hmac.digest(signing_key(SECRET, scope), string_to_sign(canonical, STAMP, scope).encode(), "sha256")
    assert signature.hex() == "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"


def test_the_second_known_answer() -> None:
    """A signed DescribeKey with a session token is accepted (kms.md §22.3)."""
    given = request()
    canonical = canonical_request(given, SIGNED.split(";"))
    assert (
        hashlib.sha256(canonical.encode()).hexdigest()
        == "93a1a29a9e091248e476946aedb4e744ce31f938145035e8cb868f7371e41363"
    )
    assert check(given) == ACCESS_KEY


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        (request(drop=("authorization",)), "MissingAuthenticationTokenException", "Missing"),
        (request(authorization="AWS4-ECDSA-P256-SHA256 x"), "IncompleteSignatureException", "Authorization"),
        (request(drop=("x-amz-date",)), "IncompleteSignatureException", "x-amz-date"),
        (request(x_amz_date="20150830T126600Z"), "IncompleteSignatureException", "date"),
        (
            request(authorization=authorization(scope="20150830/eu-west-1/kms/aws4_request")),
            "InvalidSignatureException",
            "valid Region, not eu-west-1",
        ),
        (
            request(authorization=authorization(scope="20150830/us-east-1/s3/aws4_request")),
            "InvalidSignatureException",
            "correct service: 'kms'",
        ),
        (
            request(authorization=authorization(scope="20150830/us-east-1/kms/aws5_request")),
            "InvalidSignatureException",
            "valid terminator",
        ),
        (
            request(authorization=authorization(scope="20150829/us-east-1/kms/aws4_request")),
            "InvalidSignatureException",
            "Date in Credential scope",
        ),
        (request(authorization=authorization(scope="x")), "InvalidSignatureException", "5 slash-delimited"),
        (request(x_amz_extra="1"), "InvalidSignatureException", "x-amz-extra"),
        (
            request(authorization=authorization(signed="host;x-amz-date;x-amz-security-token")),
            "InvalidSignatureException",
            "x-amz-target",
        ),
        (
            request(authorization=authorization(signed="host;content-type")),
            "InvalidSignatureException",
            "sorted",
        ),
        (request(drop=("content-type",)), "InvalidSignatureException", "missing from the request"),
        (request(body=b"{}"), "InvalidSignatureException", MISMATCH),
        (request(x_amz_target="TrentService.Decrypt"), "InvalidSignatureException", MISMATCH),
        (request(host="other"), "InvalidSignatureException", MISMATCH),
        (request(x_amz_security_token="OTHER"), "UnrecognizedClientException", "security token"),
        (
            request(authorization=authorization().replace(ACCESS_KEY, "AKIDNOBODY")),
            "UnrecognizedClientException",
            "security token",
        ),
    ],
)
def test_a_rule_that_is_broken_is_named(given: SignedRequest, kind: str, text: str) -> None:
    """Each rule of §22.2 has its class and its words."""
    error = refusal(given)
    assert error.kind == kind
    assert error.text
    assert text in error.text


@pytest.mark.parametrize("claimed", ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "00" * 32])
def test_the_payload_hash_must_be_the_bodys(claimed: str) -> None:
    """Unsigned and streaming payloads are refused like a wrong hash."""
    signed = "content-type;host;x-amz-content-sha256;x-amz-date;x-amz-security-token;x-amz-target"
    error = refusal(request(x_amz_content_sha256=claimed, authorization=authorization(signed=signed)))
    assert error.kind == "InvalidSignatureException"
    assert "x-amz-content-sha256" in str(error.text)


@pytest.mark.parametrize(("seconds", "fine"), [(299, True), (301, False), (-299, True), (-301, False)])
def test_the_clock_may_be_five_minutes_off(seconds: int, *, fine: bool) -> None:
    """Inside five minutes a signature counts, outside it does not (kms.md §26)."""
    now = NOW + timedelta(seconds=seconds)
    if fine:
        assert check(request(), now) == ACCESS_KEY
        return
    words = "Signature expired" if seconds > 0 else "Signature not yet current"
    assert words in str(refusal(request(), now).text)


@pytest.mark.parametrize("name", ["host", "x-amz-date", "x-amz-target", "authorization", "content-type"])
def test_a_header_that_could_be_read_twice_is_refused(name: str) -> None:
    """Repeated headers are refused before anything is computed."""
    given = request()
    twice = SignedRequest("POST", "/", "", (*given.headers, (name, "again")), given.body)
    assert refusal(twice).kind == "IncompleteSignatureException"


PRESIGNED = {
    "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
    "X-Amz-Credential": f"{ACCESS_KEY}/20150830/us-east-1/kms/aws4_request",
    "X-Amz-Date": STAMP,
    "X-Amz-Expires": "600",
    "X-Amz-SignedHeaders": "host;x-amz-target",
    "X-Amz-Security-Token": "TOKEN",
}


def presigned(*, drop: str = "", more: str = "", **change: str) -> SignedRequest:
    """A presigned DescribeKey, signed after its parameters were changed."""
    given = {**PRESIGNED, **{name.replace("_", "-"): value for name, value in change.items()}}
    given.pop(drop, None)
    headers = (("host", "kms.us-east-1.amazonaws.com"), ("x-amz-target", "TrentService.DescribeKey"))
    query = "&".join(f"{quote(name)}={quote(value, safe='')}" for name, value in sorted(given.items())) + more
    unsigned = SignedRequest("POST", "/", query, headers, b"{}")
    canonical = canonical_request(unsigned, given.get("X-Amz-SignedHeaders", "").split(";"), query)
    scope = Scope(*given.get("X-Amz-Credential", "a/b/c/d").split("/")[:4])
    text = string_to_sign(canonical, given.get("X-Amz-Date", ""), scope)
    signature = hmac.digest(signing_key(SECRET, scope), text.encode(), "sha256").hex()
    return SignedRequest("POST", "/", f"{query}&X-Amz-Signature={signature}", headers, b"{}")


@pytest.mark.parametrize(("seconds", "fine"), [(-299, True), (-301, False), (600, True), (601, False)])
def test_a_presigned_request_is_good_until_it_expires(seconds: int, *, fine: bool) -> None:
    """From five minutes before its date, for clocks that differ, until its own end."""
    now = NOW + timedelta(seconds=seconds)
    if fine:
        assert check(presigned(), now) == ACCESS_KEY
        return
    words = "Signature expired" if seconds > 0 else "Signature not yet current"
    assert words in str(refusal(presigned(), now).text)


@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        *(
            (presigned(drop=name), "IncompleteSignatureException", name)
            for name in PRESIGNED
            if name not in {"X-Amz-Security-Token", "X-Amz-Algorithm"}
        ),
        (presigned(drop="X-Amz-Algorithm"), "IncompleteSignatureException", "X-Amz-Algorithm"),
        (presigned(drop="X-Amz-Security-Token"), "UnrecognizedClientException", "security token"),
        (presigned(X_Amz_Security_Token="OTHER"), "UnrecognizedClientException", "security token"),
        (presigned(X_Amz_Algorithm="AWS4-ECDSA-P256-SHA256"), "IncompleteSignatureException", "X-Amz-Algorithm"),
        (presigned(X_Amz_Expires="0"), "IncompleteSignatureException", "604800"),
        (presigned(X_Amz_Expires="604801"), "IncompleteSignatureException", "604800"),
        (presigned(X_Amz_Expires="-1"), "IncompleteSignatureException", "604800"),
        (presigned(X_Amz_Date="20150830T126600Z"), "IncompleteSignatureException", "not a date"),
        (presigned(X_Amz_SignedHeaders="host"), "InvalidSignatureException", "x-amz-target"),
        (presigned(more="&X-Amz-Date=20150830T123600Z"), "IncompleteSignatureException", "more than once"),
    ],
)
def test_a_rule_of_presigned_requests_is_named(given: SignedRequest, kind: str, text: str) -> None:
    """Each parameter must be there, once, and be what it can be."""
    error = refusal(given)
    assert error.kind == kind
    assert text in str(error.text)


@pytest.mark.parametrize(
    ("old", "new"),
    [("Expires=600", "Expires=601"), ("X-Amz-Alg", "extra=1&X-Amz-Alg"), ("Signature=", "Signature=0")],
)
def test_a_presigned_request_cannot_be_changed(old: str, new: str) -> None:
    """Its parameters, headers and body are signed."""
    given = presigned()
    query = given.query.replace(old, new)
    query = query[:-1] if new.endswith("=0") else query  # another signature, as long
    assert refusal(SignedRequest("POST", "/", query, given.headers, b"{}")).text == MISMATCH
    assert refusal(SignedRequest("POST", "/", given.query, given.headers, b"[]")).text == MISMATCH
    assert refusal(SignedRequest("GET", "/", given.query, given.headers, b"{}")).text == MISMATCH
    host = (("host", "elsewhere"), given.headers[1])
    assert refusal(SignedRequest("POST", "/", given.query, host, b"{}")).text == MISMATCH


def test_a_request_is_signed_once() -> None:
    """A header and a query that both sign are refused, and so is a token in both places."""
    given = presigned()
    both = SignedRequest("POST", "/", given.query, (*given.headers, ("authorization", authorization())), b"{}")
    assert refusal(both).kind == "IncompleteSignatureException"
    token = SignedRequest("POST", "/", given.query, (*given.headers, ("x-amz-security-token", "TOKEN")), b"{}")
    assert refusal(token).kind == "IncompleteSignatureException"


def test_an_expired_temporary_key_says_so() -> None:
    """ExpiredTokenException, so that clients renew instead of giving up."""
    expired = Secret(SECRET, "TOKEN", NOW)
    with pytest.raises(KmsError) as caught:
        authenticate(request(), now=NOW, regions=("us-east-1",), find=lambda _: expired)
    assert caught.value.kind == "ExpiredTokenException"
