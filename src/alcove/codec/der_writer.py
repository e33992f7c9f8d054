"""DER (X.690 §10), written; `der` reads it.

Core: content in, bytes out.
"""

from __future__ import annotations


def encode(tag: int, *parts: bytes) -> bytes:
    """An item of `tag` whose content is `parts`, one after the other."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content
