"""Vectors of requests that a server reads; most were recorded from p11-kit 0.24.1 (acm.md §7.1)."""

from __future__ import annotations

import json

from vectors.collection import Collection, Fields
from vectors.p11kit.wire import body, octets, u32, u64

vector = Collection("request")
Made = tuple[bytes, Fields]
SESSION = 0x11


def read(data: bytes, call: str, arguments: list[object], mechanisms: str = "either") -> Made:
    """A body, the call and the arguments that it holds, and by which encoding of mechanisms."""
    return data, {"expect": "read", "call": call, "arguments": json.dumps(arguments), "mechanisms": mechanisms}


@vector
def initialize() -> Made:
    """The first call of every client: the handshake, and an empty string as the reserved argument."""
    handshake = b"PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1"
    data = body(1, "ayyay", b"\1" + octets(handshake), b"\0", b"\1" + octets(b"\0"))
    return read(data, "C_Initialize", [handshake.hex(), 0, "00"])


@vector
def finalize() -> Made:
    """No arguments: an empty signature."""
    return read(body(2, ""), "C_Finalize", [])


@vector
def slot_list_size() -> Made:
    """Room of 0 is a NULL pointer: how many slots are there?"""
    return read(body(4, "yfu", b"\0", u32(0)), "C_GetSlotList", [0, None])


@vector
def slot_list() -> Made:
    """Room for two slots."""
    return read(body(4, "yfu", b"\1", u32(2)), "C_GetSlotList", [1, 2])


@vector
def login() -> Made:
    """The user's PIN."""
    return read(body(18, "uuay", u64(SESSION), u64(1), b"\1" + octets(b"1234")), "C_Login", [SESSION, 1, b"1234".hex()])


@vector
def login_without_pin() -> Made:
    """A NULL pointer of length 0, as a PIN pad would have it."""
    return read(body(18, "uuay", u64(SESSION), u64(1), b"\1" + b"\xff" * 4), "C_Login", [SESSION, 1, None])


@vector
def login_length_alone() -> Made:
    """A NULL pointer with a length: the length travels alone."""
    data = body(18, "uuay", u64(SESSION), u64(1), b"\0" + u32(4))
    return read(data, "C_Login", [SESSION, 1, {"length": 4}])


@vector
def find_private_key() -> Made:
    """A ulong (CLASS) and bytes (ID)."""
    template = u32(2) + u32(0) + b"\1" + u32(8) + u64(3) + u32(0x102) + b"\1" + u32(1) + octets(b"\1")
    return read(body(26, "uaA", u64(SESSION), template), "C_FindObjectsInit", [SESSION, [[0, 3], [0x102, "01"]]])


@vector
def find_everything() -> Made:
    """An empty template."""
    return read(body(26, "uaA", u64(SESSION), u32(0)), "C_FindObjectsInit", [SESSION, []])


@vector
def find_by_everything() -> Made:
    """A byte, a date, mechanisms, a nested array, a length of −1 and two NULL pointers."""
    nested = u32(1) + u32(0x108) + b"\1" + u32(1) + b"\1"
    template = (
        u32(7)
        + (u32(0x1) + b"\1" + u32(1) + b"\1")
        + (u32(0x110) + b"\1" + u32(8) + octets(b"20260101"))
        + (u32(0x40000600) + b"\1" + u32(16) + u32(2) + u64(1) + u64(0x1041))
        + (u32(0x40000211) + b"\1" + u32(24) + nested)
        + (u32(0x3) + b"\0")
        + (u32(0x102) + b"\1" + u32(9) + b"\xff" * 4)
        + (u32(0x100) + b"\1" + u32(0) + u64(0))
    )
    attributes = [
        [0x1, 1], [0x110, b"20260101".hex()], [0x40000600, [1, 0x1041]], [0x40000211, [[0x108, 1]]], [0x3, None],
        [0x102, {"length": 9}], [0x100, {"length": 0}],
    ]  # fmt: skip
    return read(body(26, "uaA", u64(SESSION), template), "C_FindObjectsInit", [SESSION, attributes])


@vector
def get_attributes() -> Made:
    """One buffer of one byte, and a question for a length."""
    rooms = u32(2) + u32(0x202) + u32(1) + u32(3) + u32(0)
    data = body(24, "uufA", u64(SESSION), u64(3), rooms)
    return read(data, "C_GetAttributeValue", [SESSION, 3, [[0x202, 1], [3, None]]])


@vector
def sign_init_ecdsa() -> Made:
    """Up to 0.25.5 a mechanism without parameter has a NULL pointer behind it."""
    data = body(42, "uMu", u64(SESSION), u32(0x1041) + b"\xff" * 4, u64(3))
    return read(data, "C_SignInit", [SESSION, {"type": 0x1041, "parameter": None}, 3], "old")


@vector
def sign_init_ecdsa_new() -> Made:
    """From 0.25.6 on there is nothing behind it."""
    data = body(42, "uMu", u64(SESSION), u32(0x1041), u64(3))
    return read(data, "C_SignInit", [SESSION, {"type": 0x1041, "parameter": None}, 3], "new")


@vector
def sign_init_pss() -> Made:
    """SHA-256, MGF1 with SHA-256, a salt of 32 bytes."""
    data = body(42, "uMu", u64(SESSION), u32(0xD) + u64(0x250) + u64(2) + u64(32), u64(3))
    return read(data, "C_SignInit", [SESSION, {"type": 0xD, "parameter": [0x250, 2, 32]}, 3], "old")


@vector
def sign_init_pss_new() -> Made:
    """From 0.25.6 on a byte says that there is a parameter."""
    data = body(42, "uMu", u64(SESSION), u32(0xD) + b"\1" + u64(0x250) + u64(2) + u64(32), u64(3))
    return read(data, "C_SignInit", [SESSION, {"type": 0xD, "parameter": [0x250, 2, 32]}, 3], "new")


@vector
def decrypt_init_oaep() -> Made:
    """Hash, mask, source, and a label that is a NULL pointer."""
    data = body(33, "uMu", u64(SESSION), u32(9) + u64(0x250) + u64(2) + u64(1) + b"\xff" * 4, u64(3))
    return read(data, "C_DecryptInit", [SESSION, {"type": 9, "parameter": [0x250, 2, 1, None]}, 3], "old")


@vector
def sign() -> Made:
    """Data, and room for 512 bytes."""
    data = body(43, "uayfy", u64(SESSION), b"\1" + octets(bytes(32)), u32(512))
    return read(data, "C_Sign", [SESSION, bytes(32).hex(), 512])


@vector
def sign_no_room() -> Made:
    """0.25.0 and later tell a buffer of no bytes from none at all."""
    data = body(43, "uayfy", u64(SESSION), b"\1" + octets(b""), b"\xff" * 4)
    return read(data, "C_Sign", [SESSION, "", 0])


@vector
def copy_object() -> Made:
    """pkcs11-provider copies a key into the session."""
    data = body(21, "uuaA", u64(SESSION), u64(3), u32(1) + u32(1) + b"\1" + u32(1) + b"\0")
    return read(data, "C_CopyObject", [SESSION, 3, [[1, 0]]])
