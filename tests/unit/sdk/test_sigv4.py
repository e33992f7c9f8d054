from __future__ import annotations

import hashlib

import pytest

from alcove.sdk.sigv4 import authorization, canonical_request

ACCESS_KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
DATE = {"X-Amz-Date": "20150830T123600Z"}
KMS = {
    "Host": "kms.us-east-1.amazonaws.com",
    "Content-Type": "application/x-amz-json-1.1",
    "X-Amz-Security-Token": "TOKEN",
    "X-Amz-Target": "TrentService.DescribeKey",
    **DATE,
}


@pytest.mark.parametrize(
    ("service", "headers", "body", "digest", "signature"),
    [
        (
            "service",
            {"Host": "example.amazonaws.com", **DATE},
            b"",
            "553f88c9e4d10fc9e109e2aeb65f030801b70c2f6468faca261d401ae622fc87",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        (
            "kms",
            KMS,
            b'{"KeyId":"alias/test"}',
            "93a1a29a9e091248e476946aedb4e744ce31f938145035e8cb868f7371e41363",
            "01bb4b67a0d13b68247ea42b7739fba5db4d37ac345e548a5267193e05624a6f",
        ),
    ],
    ids=["plain", "kms"],
)
def test_known_answers(service: str, headers: dict[str, str], body: bytes, digest: str, signature: str) -> None:
    """The canonical requests and signatures of kms.md §22.3."""
    lower = {name.lower(): value for name, value in headers.items()}
    assert hashlib.sha256(canonical_request(lower, body)).hexdigest() == digest
    value = authorization(
        headers, body, access_key_id=ACCESS_KEY, secret_access_key=SECRET, region="us-east-1", service=service
    )
    names = ";".join(sorted(lower))
    assert value == (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20150830/us-east-1/{service}/aws4_request, "
        f"SignedHeaders={names}, Signature={signature}"
    )


def test_spaces_in_values_collapse() -> None:
    """Values are trimmed and runs of spaces count once (kms.md §22.1)."""
    loose, tight = ({"host": "h", "x-amz-date": "d", "x": value} for value in ("  a   b ", "a b"))
    assert canonical_request(loose, b"") == canonical_request(tight, b"")


@pytest.mark.parametrize("missing", ["Host", "X-Amz-Date"])
def test_host_and_date_must_be_there(missing: str) -> None:
    """A signature over neither is a mistake of the caller."""
    headers = {name: value for name, value in KMS.items() if name != missing}
    with pytest.raises(ValueError):
        authorization(headers, b"", access_key_id="a", secret_access_key="b", region="r", service="kms")
