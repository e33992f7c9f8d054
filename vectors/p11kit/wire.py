"""p11-kit's encodings (acm.md §6), by themselves."""

from __future__ import annotations


def u32(number: int) -> bytes:
    """Four bytes."""
    return number.to_bytes(4)


def u64(number: int) -> bytes:
    """Eight bytes: a CK_ULONG."""
    return number.to_bytes(8)


def octets(data: bytes) -> bytes:
    """Length and bytes."""
    return u32(len(data)) + data


def body(call: int, signature: str, *arguments: bytes) -> bytes:
    """A message's body."""
    return u32(call) + octets(signature.encode()) + b"".join(arguments)
