"""Attribute values and mechanisms as p11-kit sends them (acm.md §6.4, §6.5): read beside write.

Core: bytes in, values out, and back. What is accepted is written again as the same bytes.
"""

from __future__ import annotations

import struct
from enum import Enum, auto
from typing import Final, NamedTuple

from alcove.apps.acm.cryptoki import Cka, Ckm, Ckr, Refused
from alcove.errors import ProtocolError

MAX_DEPTH: Final = 8  # of attribute arrays in attribute arrays; p11-kit's own limit
MAX_ATTRIBUTES: Final = 256  # in one array; CKA knows about a hundred
NULL: Final = 0xFFFFFFFF
_MAX_BYTES: Final = 0x7FFFFFFF  # p11-kit: longer is an error
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_PSS: Final = struct.Struct(">QQQ")  # hashAlg, mgf, sLen
_SIZEOF_ATTRIBUTE: Final = 24  # struct CK_ATTRIBUTE on 64 bits; array attributes count in it


class Reader:
    """Walks over one message; every method raises ProtocolError at the end of it."""

    def __init__(self, data: bytes | memoryview, at: int = 0) -> None:
        self._data = bytes(data)
        self.at = at

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self.at + size
        if end > len(self._data):
            raise ProtocolError(f"the message ends inside a value (at offset {self.at})")
        taken, self.at = self._data[self.at : end], end
        return taken

    def byte(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def u32(self) -> int:
        """Four bytes, big-endian."""
        return self._number(_U32)

    def u64(self) -> int:
        """Eight bytes, big-endian."""
        return self._number(_U64)

    def _number(self, form: struct.Struct) -> int:
        try:
            number: int = form.unpack_from(self._data, self.at)[0]
        except struct.error:
            raise ProtocolError(f"the message ends inside a number (at offset {self.at})") from None
        self.at += form.size
        return number

    def octets(self) -> bytes | None:
        """A length and as many bytes; None is a NULL pointer."""
        length = self.u32()
        if length == NULL:
            return None
        if length >= _MAX_BYTES:
            raise ProtocolError(f"a byte array of {length} bytes (at offset {self.at - 4})")
        return self.take(length)

    def finish(self) -> None:
        """Nothing may follow."""
        if self.at != len(self._data):
            raise ProtocolError(f"{len(self._data) - self.at} bytes follow the arguments")


def put_octets(value: bytes | None) -> bytes:
    """See `Reader.octets`."""
    return _U32.pack(NULL) if value is None else _U32.pack(len(value)) + value


class Size(NamedTuple):
    """A value of which only the length is told: a NULL pointer, or the answer to a size query."""

    length: int


class Attribute(NamedTuple):
    """An attribute; None is length −1: it cannot be told.

    A byte and a ulong are int, an array of attributes or mechanisms is a tuple, everything else is bytes.
    """

    type: int
    value: Value | None


Value = int | bytes | Size | tuple[int, ...] | tuple[Attribute, ...]


class Room(NamedTuple):
    """The caller's buffer for an attribute; None is a NULL pointer, which asks for the length."""

    type: int
    size: int | None


class Kind(Enum):
    """How a value travels."""

    BYTE = auto()
    ULONG = auto()
    BYTES = auto()
    DATE = auto()
    MECHANISMS = auto()
    ATTRIBUTES = auto()


_KINDS: Final[dict[int, Kind]] = {
    **dict.fromkeys((
        Cka.TOKEN, Cka.PRIVATE, Cka.TRUSTED, Cka.SENSITIVE, Cka.ENCRYPT, Cka.DECRYPT, Cka.WRAP, Cka.UNWRAP, Cka.SIGN,
        Cka.SIGN_RECOVER, Cka.VERIFY, Cka.VERIFY_RECOVER, Cka.DERIVE, Cka.EXTRACTABLE, Cka.LOCAL,
        Cka.NEVER_EXTRACTABLE, Cka.ALWAYS_SENSITIVE, Cka.MODIFIABLE, Cka.COPYABLE, Cka.SECONDARY_AUTH,
        Cka.ALWAYS_AUTHENTICATE, Cka.WRAP_WITH_TRUSTED, Cka.RESET_ON_INIT, Cka.HAS_RESET, Cka.COLOR,
    ), Kind.BYTE),
    **dict.fromkeys((
        Cka.CLASS, Cka.CERTIFICATE_TYPE, Cka.CERTIFICATE_CATEGORY, Cka.JAVA_MIDP_SECURITY_DOMAIN, Cka.KEY_TYPE,
        Cka.MODULUS_BITS, Cka.PRIME_BITS, Cka.SUB_PRIME_BITS, Cka.VALUE_BITS, Cka.VALUE_LEN, Cka.KEY_GEN_MECHANISM,
        Cka.AUTH_PIN_FLAGS, Cka.HW_FEATURE_TYPE, Cka.PIXEL_X, Cka.PIXEL_Y, Cka.RESOLUTION, Cka.CHAR_ROWS,
        Cka.CHAR_COLUMNS, Cka.BITS_PER_PIXEL, Cka.MECHANISM_TYPE,
    ), Kind.ULONG),
    **dict.fromkeys((Cka.WRAP_TEMPLATE, Cka.UNWRAP_TEMPLATE, Cka.DERIVE_TEMPLATE), Kind.ATTRIBUTES),
    **dict.fromkeys((Cka.START_DATE, Cka.END_DATE), Kind.DATE),
    Cka.ALLOWED_MECHANISMS: Kind.MECHANISMS,
}  # fmt: skip


def kind_of(attribute: int) -> Kind:
    """How the values of an attribute travel; unknown ones do as bytes."""
    return _KINDS.get(attribute, Kind.BYTES)


def length_of(attribute: Attribute) -> int:
    """The length that PKCS#11 gives for a value that can be told."""
    value = attribute.value
    if isinstance(value, Size):
        return value.length
    if isinstance(value, int):
        return 1 if kind_of(attribute.type) is Kind.BYTE else 8
    if isinstance(value, bytes):
        return len(value)
    return len(value or ()) * (8 if kind_of(attribute.type) is Kind.MECHANISMS else _SIZEOF_ATTRIBUTE)


def read_attributes(reader: Reader, depth: int = MAX_DEPTH) -> tuple[Attribute, ...]:
    """An array of attributes.

    Raises:
        ProtocolError: It is malformed, too long or too deep.
    """
    count = reader.u32()
    if count > MAX_ATTRIBUTES or depth == 0:
        raise ProtocolError("too many attributes" if depth else "attributes are nested too deeply")
    return tuple([_read_attribute(reader, depth - 1) for _ in range(count)])


def _read_attribute(reader: Reader, depth: int) -> Attribute:
    kind, valid = reader.u32(), reader.byte()
    if valid > 1:
        raise ProtocolError(f"validity {valid} (at offset {reader.at - 1})")
    return Attribute(kind, _read_value(reader, kind, depth) if valid else None)


def _read_value(reader: Reader, attribute: int, depth: int) -> Value:
    length = reader.u32()
    value: Value | None
    match kind_of(attribute):
        case Kind.BYTE:
            value = reader.byte()
        case Kind.ULONG:
            value = reader.u64()
        case Kind.MECHANISMS:
            count = reader.u32()
            if count > MAX_ATTRIBUTES:
                raise ProtocolError("too many mechanisms")
            value = tuple([reader.u64() for _ in range(count)])
        case Kind.ATTRIBUTES:
            value = read_attributes(reader, depth)
        case kind:
            value = reader.octets()
            if kind is Kind.DATE and value is not None and len(value) not in {0, 8}:
                raise ProtocolError("a date that has not eight characters")
    if value is None or (value in {0, ()} and length != length_of(Attribute(attribute, value))):
        return Size(length)  # a NULL pointer, with an empty value in the value's place
    if length != length_of(Attribute(attribute, value)):
        raise ProtocolError(f"an attribute's length is {length}, its value says otherwise")
    return value


def put_attributes(attributes: tuple[Attribute, ...]) -> bytes:
    """See `read_attributes`."""
    return _U32.pack(len(attributes)) + b"".join(map(_put_attribute, attributes))


def _put_attribute(attribute: Attribute) -> bytes:
    if attribute.value is None:
        return _U32.pack(attribute.type) + b"\0"
    return _U32.pack(attribute.type) + b"\1" + _U32.pack(length_of(attribute)) + _put_value(attribute)


def _put_value(attribute: Attribute) -> bytes:
    kind, value = kind_of(attribute.type), attribute.value
    if isinstance(value, Size):
        return {Kind.BYTE: b"\0", Kind.ULONG: bytes(8), Kind.BYTES: b"\xff" * 4, Kind.DATE: b"\xff" * 4}.get(
            kind, bytes(4)
        )
    if isinstance(value, int):
        return bytes([value]) if kind is Kind.BYTE else _U64.pack(value)
    if isinstance(value, bytes):
        return put_octets(value)
    if kind is Kind.MECHANISMS:
        return _U32.pack(len(value or ())) + b"".join(
            [_U64.pack(item) for item in value or () if isinstance(item, int)]
        )
    return put_attributes(tuple(item for item in value or () if isinstance(item, Attribute)))


def read_rooms(reader: Reader, depth: int = MAX_DEPTH) -> tuple[Room, ...]:
    """The buffers of C_GetAttributeValue.

    Those of array attributes have buffers of their own behind them, from clients of 0.25 on; no object here has such
    an attribute, so they are passed over. Older clients send none, and what follows then makes no sense: an error.
    """
    count = reader.u32()
    if count > MAX_ATTRIBUTES or depth == 0:
        raise ProtocolError("too many attributes" if depth else "attributes are nested too deeply")
    rooms = []
    for _ in range(count):
        kind, size = reader.u32(), reader.u32()
        rooms.append(Room(kind, size or None))
        if size and kind_of(kind) is Kind.ATTRIBUTES:
            read_rooms(reader, depth - 1)
    return tuple(rooms)


def put_rooms(rooms: tuple[Room, ...]) -> bytes:
    """The buffers of attributes that are no arrays; see `read_rooms`."""
    return _U32.pack(len(rooms)) + b"".join([_U32.pack(room.type) + _U32.pack(room.size or 0) for room in rooms])


class PssParameters(NamedTuple):
    """CK_RSA_PKCS_PSS_PARAMS."""

    hash: int
    mgf: int
    salt_length: int


class OaepParameters(NamedTuple):
    """CK_RSA_PKCS_OAEP_PARAMS."""

    hash: int
    mgf: int
    source: int
    label: bytes | None


class Mechanism(NamedTuple):
    """A mechanism with its parameter."""

    type: int
    parameter: PssParameters | OaepParameters | bytes | None = None


PSS_MECHANISMS: Final = frozenset({
    Ckm.RSA_PKCS_PSS, Ckm.SHA1_RSA_PKCS_PSS, Ckm.SHA224_RSA_PKCS_PSS, Ckm.SHA256_RSA_PKCS_PSS,
    Ckm.SHA384_RSA_PKCS_PSS, Ckm.SHA512_RSA_PKCS_PSS,
})  # fmt: skip
_PLAIN: Final = frozenset(Ckm) - PSS_MECHANISMS - {Ckm.RSA_PKCS_OAEP}


def read_mechanism(reader: Reader, *, new: bool) -> Mechanism:
    """A mechanism.

    Args:
        reader: At the mechanism.
        new: The encoding of clients that offer version 2 (0.25.6 and later): a byte tells whether there is a parameter,
            and nothing at all follows a mechanism that never has one.

    Raises:
        Refused: The mechanism is not known, and so neither is the form of what follows.
        ProtocolError: It is malformed.
    """
    kind = reader.u32()
    if kind in _PLAIN:
        return Mechanism(kind, None if new else reader.octets())
    if kind not in PSS_MECHANISMS and kind != Ckm.RSA_PKCS_OAEP:
        raise Refused(Ckr.MECHANISM_INVALID)
    if new and not _present(reader):
        return Mechanism(kind)
    fields = _PSS.unpack(reader.take(_PSS.size))
    if kind in PSS_MECHANISMS:
        return Mechanism(kind, PssParameters(*fields))
    return Mechanism(kind, OaepParameters(fields[0], fields[1], fields[2], reader.octets()))


def _present(reader: Reader) -> bool:
    present = reader.byte()
    if present > 1:
        raise ProtocolError(f"a parameter is there or not, and not {present}")
    return bool(present)


def put_mechanism(mechanism: Mechanism, *, new: bool) -> bytes:
    """See `read_mechanism`."""
    kind, parameter = _U32.pack(mechanism.type), mechanism.parameter
    if mechanism.type in _PLAIN:
        return kind if new else kind + put_octets(parameter if isinstance(parameter, bytes) else None)
    if isinstance(parameter, PssParameters):
        packed = _PSS.pack(*parameter)
    elif isinstance(parameter, OaepParameters):
        packed = _PSS.pack(*parameter[:3]) + put_octets(parameter.label)
    else:
        return kind + b"\0"
    return kind + (b"\1" if new else b"") + packed
