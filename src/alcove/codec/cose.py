"""COSE_Sign1 with ES384 (RFC 9052 §4, RFC 9053 §2.1; attestation.md §1): syntax only, no cryptography.

Core: bytes in, structure out; structure in, bytes out.

    84                      array(4), untagged as the platform emits it; tag 18 is accepted in every encoding
       44 a1 01 38 22       protected: a byte string that holds the map {1: -35}, ES384
       a0                   unprotected: a map, not authenticated and therefore never looked at
       59 LLLL <payload>    payload
       58 60 <96 bytes>     signature: r ‖ s, 48 + 48 bytes, big-endian

The signed bytes hold `protected` and `payload` as they were received: `Sign1` keeps them and nothing re-encodes them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from alcove.codec import cbor

ES384: Final = -35  # RFC 9053 §2.1
ES384_PROTECTED: Final = bytes.fromhex("a1013822")
SIGNATURE_SIZE: Final = 96
MAX_PAYLOAD: Final = 16384  # attestation.md §5.2 step 3

_TO_SIZE: Final = b"\x84\x44" + ES384_PROTECTED + b"\xa0\x59"  # of the payload, in the usual encoding
_PAYLOAD: Final = len(_TO_SIZE) + 2
_TO_SIGNATURE: Final = bytes((0x58, SIGNATURE_SIZE))
_END: Final = len(_TO_SIGNATURE) + SIGNATURE_SIZE
_TAG: Final = 18  # RFC 9052 §4.2
_ALGORITHM: Final = 1  # RFC 9052 §3.1


class CoseError(ValueError):
    """A CBOR item that is not a COSE_Sign1 with ES384."""


class Sign1(NamedTuple):
    """A COSE_Sign1: the encoded protected header, the payload and the raw signature r ‖ s."""

    protected: bytes
    payload: bytes
    signature: bytes


def decode_sign1(data: bytes) -> Sign1:
    """The COSE_Sign1 in `data`.

    Raises:
        CborError: `data` is not exactly one CBOR item.
        CoseError: The item is something else.
    """
    return usual_sign1(data) or check_parts(sign1_parts(data))


def usual_sign1(data: bytes) -> Sign1 | None:
    """The COSE_Sign1 in `data` when it is encoded as shown above, which spares taking it apart; None otherwise."""
    end = len(data) - _END
    size = end - _PAYLOAD
    if not 1 <= size <= MAX_PAYLOAD or not data.startswith(_TO_SIZE + size.to_bytes(2)):
        return None
    if not data.startswith(_TO_SIGNATURE, end):
        return None
    return Sign1(ES384_PROTECTED, data[_PAYLOAD:end], data[end + len(_TO_SIGNATURE) :])


def sign1_parts(data: bytes) -> list[object]:
    """The four items of the array, inside tag 18 or bare; errors as in `decode_sign1`."""
    item = cbor.decode(data)
    if isinstance(item, cbor.Tag):
        if item.number != _TAG:
            raise CoseError(f"CBOR tag {item.number} where only 18 may be")
        item = item.value
    if not isinstance(item, list) or len(item) != 4:
        raise CoseError("not an array of four")
    return item


def check_parts(parts: list[object]) -> Sign1:
    """The four items as a structure, each of the right type and size.

    Raises:
        CborError: The protected header is not exactly one CBOR item.
        CoseError: A part is not what it should be.
    """
    protected, unprotected, payload, signature = parts
    if not isinstance(protected, bytes):
        raise CoseError("the protected header is not a byte string")
    if not isinstance(unprotected, dict):
        raise CoseError("the unprotected header is not a map")
    if not isinstance(payload, bytes) or not 1 <= len(payload) <= MAX_PAYLOAD:
        raise CoseError(f"the payload is not a byte string of 1 to {MAX_PAYLOAD} bytes")
    if not isinstance(signature, bytes) or len(signature) != SIGNATURE_SIZE:
        raise CoseError(f"the signature is not a byte string of {SIGNATURE_SIZE} bytes")
    if protected != ES384_PROTECTED:  # the usual bytes need no second look
        _check_algorithm(protected)
    return Sign1(protected, payload, signature)


def _check_algorithm(protected: bytes) -> None:
    header = cbor.decode(protected)
    algorithm = header.get(_ALGORITHM) if isinstance(header, dict) and len(header) == 1 else None
    if type(algorithm) is not int or algorithm != ES384:
        raise CoseError("the protected header is not {1: -35} (ES384)")


def encode_sign1(sign1: Sign1) -> bytes:
    """The untagged encoding, with an empty unprotected header."""
    payload, signature = sign1.payload, sign1.signature
    before = _before_payload(_SIGN1, sign1.protected, _NO_HEADERS)
    return b"".join((before, cbor.head(2, len(payload)), payload, cbor.head(2, len(signature)), signature))


def sign1_structure(protected: bytes, payload: bytes) -> bytes:
    """The Sig_structure: the bytes that are signed (RFC 9052 §4.4), without external data."""
    return b"".join((_before_payload(_STRUCTURE, protected, _NO_DATA), cbor.head(2, len(payload)), payload))


# documents are signed with one protected header: what stands before their payloads is encoded once
_SIGN1: Final = cbor.head(4, 4)
_STRUCTURE: Final = cbor.head(4, 4) + cbor.encode("Signature1")
_NO_HEADERS: Final = cbor.encode({})
_NO_DATA: Final = cbor.encode(b"")


@lru_cache(8)
def _before_payload(start: bytes, protected: bytes, after: bytes) -> bytes:
    return start + cbor.encode(protected) + after
