"""Vectors of requests that a server must not take, each with one fault."""

from __future__ import annotations

from vectors.collection import Collection, Fields
from vectors.p11kit.wire import body, octets, u32, u64

vector = Collection("refused-request")
Made = tuple[bytes, Fields]
SESSION = u64(0x11)


def malformed(data: bytes, mechanisms: str = "either") -> Made:
    """Nothing can be said about what follows: the connection ends."""
    return data, {"expect": "malformed", "mechanisms": mechanisms}


def answered(data: bytes, ckr: str) -> Made:
    """A whole message: the client gets this return value, and the connection goes on."""
    return data, {"expect": ckr, "mechanisms": "either"}


def find(template: bytes) -> bytes:
    """C_FindObjectsInit with a template."""
    return body(26, "uaA", SESSION, template)


@vector
def empty() -> Made:
    """No call number."""
    return malformed(b"")


@vector
def an_error() -> Made:
    """0 is the number of an answer."""
    return malformed(body(0, "u", u64(5)))


@vector
def call_of_the_future() -> Made:
    """A number that nobody has given away: its arguments cannot be read, its frame is whole."""
    return answered(body(0x7FFFFFFF, "u", u64(1)), "FUNCTION_NOT_SUPPORTED")


@vector
def other_signature() -> Made:
    """C_GetSlotInfo with the arguments of C_GetMechanismInfo."""
    return malformed(body(5, "uu", u64(1), u64(1)))


@vector
def signature_null() -> Made:
    """A NULL pointer in the signature's place."""
    return malformed(u32(2) + b"\xff" * 4)


@vector
def cut() -> Made:
    """The last byte of a number is missing."""
    return malformed(body(5, "u", u64(1)[:-1]))


@vector
def more() -> Made:
    """A byte follows the last argument."""
    return malformed(body(5, "u", u64(1), b"\0"))


@vector
def length_beyond() -> Made:
    """An array that is longer than its message."""
    return malformed(body(44, "uay", SESSION, b"\1" + u32(5) + b"four"))


@vector
def length_of_an_error() -> Made:
    """0x7fffffff is no length."""
    return malformed(body(44, "uay", SESSION, b"\1" + u32(0x7FFFFFFF) + b"four"))


@vector
def validity_two() -> Made:
    """An array is valid or not."""
    return malformed(body(44, "uay", SESSION, b"\2" + octets(b"four")))


@vector
def attributes_many() -> Made:
    """A count of 2³² − 1 attributes, and none of them."""
    return malformed(find(b"\xff" * 4))


@vector
def attribute_length() -> Made:
    """A ulong of 4 bytes."""
    return malformed(find(u32(1) + u32(0) + b"\1" + u32(4) + u64(3)))


@vector
def attribute_bytes_length() -> Made:
    """The length before the value is not the value's."""
    return malformed(find(u32(1) + u32(0x102) + b"\1" + u32(2) + octets(b"\1")))


@vector
def attribute_date() -> Made:
    """A date of seven characters."""
    return malformed(find(u32(1) + u32(0x110) + b"\1" + u32(7) + octets(b"2026010")))


@vector
def attributes_deep() -> Made:
    """Templates in templates, nine levels deep (CVE-2026-13757 without a limit)."""
    template = u32(0)
    for _ in range(9):
        template = u32(1) + u32(0x40000211) + b"\1" + u32(24) + template
    return malformed(find(template))


@vector
def attributes_deep_unread() -> Made:
    """A thousand levels, of which the innermost is missing."""
    return malformed(find((u32(1) + u32(0x40000211) + b"\1" + u32(24)) * 1000))


@vector
def rooms_deep() -> Made:
    """Buffers in buffers, a thousand levels deep."""
    return malformed(body(24, "uufA", SESSION, u64(1), (u32(1) + u32(0x40000211) + u32(24)) * 1000))


@vector
def mechanism_unknown() -> Made:
    """AES-GCM: the form of its parameter is another one, and it is not offered."""
    return answered(body(42, "uMu", SESSION, u32(0x1087) + b"\xff" * 4, u64(3)), "MECHANISM_INVALID")


@vector
def mechanism_cancel() -> Made:
    """From 0.25.3 on: end the operation. Not offered either, and nothing is behind it."""
    return answered(body(42, "uMu", SESSION, u32(0xFFFFFFFF), u64(3)), "MECHANISM_INVALID")


@vector
def mechanism_of_the_other_encoding() -> Made:
    """The NULL pointer of old clients from one that offered the new encoding."""
    return malformed(body(42, "uMu", SESSION, u32(0x1041) + b"\xff" * 4, u64(3)), "new")


@vector
def parameter_cut() -> Made:
    """Two of the three numbers of PSS."""
    return malformed(body(42, "uMu", SESSION, u32(0xD) + u64(0x250) + u64(2)), "old")
