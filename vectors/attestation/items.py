"""CBOR and DER, written item by item so that any one of them can be wrong."""

from __future__ import annotations

NULL = b"\xf6"
BREAK = b"\xff"


def head(major: int, argument: int) -> bytes:
    """The shortest head of a CBOR item."""
    if argument < 24:
        return bytes([major << 5 | argument])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * size:
            return bytes([major << 5 | info]) + argument.to_bytes(size)
    raise ValueError(argument)


def number(value: int) -> bytes:
    """An integer."""
    return head(0, value) if value >= 0 else head(1, -1 - value)


def moment(milliseconds: int) -> bytes:
    """A time as the platform writes it: eight bytes, whatever the value."""
    return b"\x1b" + milliseconds.to_bytes(8)


def octets(value: bytes) -> bytes:
    """A byte string."""
    return head(2, len(value)) + value


def text(value: str) -> bytes:
    """A text string."""
    return head(3, len(value.encode())) + value.encode()


def array(items: list[bytes], *, endless: bool = False) -> bytes:
    """An array of encoded items."""
    return b"\x9f" + b"".join(items) + BREAK if endless else head(4, len(items)) + b"".join(items)


def mapping(pairs: list[tuple[bytes, bytes]], *, endless: bool = False) -> bytes:
    """A map of encoded keys and values, in their order."""
    content = b"".join(key + value for key, value in pairs)
    return b"\xbf" + content + BREAK if endless else head(5, len(pairs)) + content


def tlv(tag: int, *content: bytes) -> bytes:
    """A DER item."""
    inner = b"".join(content)
    if len(inner) < 0x80:
        return bytes([tag, len(inner)]) + inner
    size = (len(inner).bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + len(inner).to_bytes(size) + inner


def sequence(*content: bytes) -> bytes:
    """A DER SEQUENCE."""
    return tlv(0x30, *content)


def integer(value: int) -> bytes:
    """A DER INTEGER that is not negative."""
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1))
