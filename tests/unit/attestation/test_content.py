from __future__ import annotations

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from alcove.attestation.content import explain


@pytest.mark.parametrize(
    ("value", "kind", "content"),
    [
        (b"", "empty", ""),
        (b"hello, world", "text", "hello, world"),
        ("Grüße".encode(), "text", "Grüße"),
        (b'{"a": [1, null]}', "JSON", '{"a": [1, null]}'),
        (b'{\n "a": 1}', "JSON", '{"a": 1}'),
        (b"[1]", "JSON", "[1]"),
        (b"42", "text", "42"),
        (b"{not json}", "text", "{not json}"),
        (b"[" * 1024, "text", "[" * 1024),
        (b"\x00\x01", "bytes", "0001"),
        (b"\x1b[2J", "bytes", "1b5b324a"),
        ("a\u202eb".encode(), "bytes", "61e280ae62"),
        (b"\xff" * 3, "bytes", "ffffff"),
        (
            cbor2.dumps({1: b"\x01", "k": [True, None, -1, cbor2.undefined], -2: cbor2.CBORTag(7, "\x1b")}),
            "CBOR",
            """{1: h'01', "k": [true, null, -1, simple(23)], -2: 7("\\u001b")}""",
        ),
        (b"\x01", "bytes", "01"),  # CBOR too, and of no use
    ],
)
def test_content_is_recognised(value: bytes, kind: str, content: str) -> None:
    """What a person would call it, in characters that cannot command a terminal."""
    assert explain(value) == (kind, content)


@pytest.mark.parametrize(
    ("key", "content"),
    [
        (rsa.generate_private_key(65537, 2048), "RSA, 2048 bits"),
        (ec.generate_private_key(ec.SECP256R1()), "elliptic curve, secp256r1"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519PublicKey"),
    ],
)
def test_public_keys_are_recognised(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, content: str
) -> None:
    """The DER that KMS wants of an enclave."""
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert explain(der) == ("key", content)


@given(st.binary(max_size=1024))
def test_any_bytes_can_be_explained(value: bytes) -> None:
    """In one printable line, whatever they are."""
    kind, content = explain(value)
    assert kind
    assert content.isprintable()
