"""The signature section (eif.md §3.1): CBOR around a certificate and a COSE_Sign1 over PCR0. Syntax only.

Core: bytes in, values out; values in, bytes out.

    [ { "signing_certificate": [bytes of the PEM file], "signature": [bytes of a COSE_Sign1] } ]
    COSE_Sign1 = [ protected {1: alg}, {}, payload, r ‖ s ]
    payload = { "register_index": 0, "register_value": [48 bytes] }

Byte strings are arrays of integers here; readers of AWS's own accept nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn, Self

from alcove.codec import cbor
from alcove.errors import ImageFormatError
from alcove.image.format import MAX_SIGNATURE

_SIGN1_TAG: Final = 18  # RFC 9052 §2: read, never written
_ALGORITHM: Final = 1  # RFC 9052 §3.1, label of the algorithm


def _refuse(what: str) -> NoReturn:
    raise ImageFormatError(what, field="signature", hint="sign the image again with sign-eif")


def _decode(data: bytes, what: str) -> object:
    try:
        return cbor.decode(data)
    except ValueError as error:
        _refuse(f"{what} is not CBOR: {error}")


def _octets(value: object, what: str) -> bytes:
    if not isinstance(value, list):
        _refuse(f"{what} is not an array of bytes")
    try:
        return bytes(value)
    except (TypeError, ValueError):
        _refuse(f"{what} is not an array of bytes")


@dataclass(frozen=True, slots=True)
class PcrInfo:
    """The payload of the signature: which register, and its value."""

    index: int
    value: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The payload in `data`.

        Raises:
            ImageFormatError: When it is not one.
        """
        item = _decode(data, "the signed payload")
        if not isinstance(item, dict) or set(item) != {"register_index", "register_value"}:
            _refuse("the signed payload does not hold register_index and register_value alone")
        index = item["register_index"]
        if type(index) is not int:
            _refuse("register_index is not an integer")
        return cls(index, _octets(item["register_value"], "register_value"))

    def pack(self) -> bytes:
        """The payload as CBOR."""
        return cbor.encode({"register_index": self.index, "register_value": list(self.value)})


@dataclass(frozen=True, slots=True)
class Sign1:
    """A COSE_Sign1 with the algorithm of its protected header."""

    algorithm: int
    protected: bytes
    payload: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The COSE_Sign1 in `data`, tagged or not.

        Raises:
            ImageFormatError: When it is not one.
        """
        item = _decode(data, "the signature")
        if isinstance(item, cbor.Tag) and item.number == _SIGN1_TAG:
            item = item.value
        if not isinstance(item, list) or len(item) != 4:
            _refuse("the signature is not a COSE_Sign1 of four parts")
        protected, unprotected, payload, signature = item
        if not (isinstance(protected, bytes) and isinstance(payload, bytes) and isinstance(signature, bytes)):
            _refuse("a part of the COSE_Sign1 is not a byte string")
        if not isinstance(unprotected, dict):
            _refuse("the unprotected header is not a map")
        header = _decode(protected, "the protected header")
        algorithm = header.get(_ALGORITHM) if isinstance(header, dict) else None
        if type(algorithm) is not int:
            _refuse("the protected header names no algorithm")
        return cls(algorithm, protected, payload, signature)

    @classmethod
    def unsigned(cls, algorithm: int, payload: bytes) -> Self:
        """The structure before it is signed."""
        return cls(algorithm, cbor.encode({_ALGORITHM: algorithm}), payload, b"")

    @property
    def to_be_signed(self) -> bytes:
        """RFC 9052 §4.4, Sig_structure."""
        return cbor.encode(["Signature1", self.protected, b"", self.payload])

    def pack(self) -> bytes:
        """The COSE_Sign1 as untagged CBOR."""
        return cbor.encode([self.protected, {}, self.payload, self.signature])


@dataclass(frozen=True, slots=True)
class SignatureEntry:
    """What one signer left: the PEM file of its certificate, verbatim, and a serialized COSE_Sign1."""

    certificate: bytes
    sign1: bytes


def parse_section(data: bytes) -> SignatureEntry:
    """The first entry of a signature section, the only one that counts.

    Raises:
        ImageFormatError: When the section is empty, too long or malformed.
    """
    if len(data) > MAX_SIGNATURE:
        _refuse(f"{len(data)} bytes are more than {MAX_SIGNATURE}")
    item = _decode(data, "the signature section")
    if not isinstance(item, list) or not item:
        _refuse("the signature section holds no signature")
    entry = item[0]
    if not isinstance(entry, dict) or not {"signing_certificate", "signature"} <= set(entry):
        _refuse("the entry does not hold signing_certificate and signature")
    return SignatureEntry(
        _octets(entry["signing_certificate"], "signing_certificate"), _octets(entry["signature"], "signature")
    )


def pack_section(entry: SignatureEntry) -> bytes:
    """The signature section with that one entry."""
    return cbor.encode([{"signing_certificate": list(entry.certificate), "signature": list(entry.sign1)}])
