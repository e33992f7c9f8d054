"""What the bytes that an enclave put into a document hold, for people: text, JSON, CBOR, a key, or just bytes.

Core: bytes in, words out. Nothing is decided by it.
"""

from __future__ import annotations

import json
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from alcove.codec import cbor

_SIMPLE: Final = {True: "true", False: "false", None: "null"}


def explain(value: bytes) -> tuple[str, str]:
    """The kind of content, and the content in printable characters.

    The kind is ``empty``, ``JSON`` (an object or a list), ``text``, ``key`` (DER of a public key), ``CBOR`` (a map, a
    list or a tag, in the diagnostic notation of RFC 8949 §8) or ``bytes`` (hexadecimal).
    """
    if not value:
        return "empty", ""
    text = _text(value)
    if text is not None:
        shown = text if text.isprintable() else None
        if text.lstrip()[:1] in {"{", "["} and (parsed := _json(text)) is not None:
            return "JSON", shown or parsed
        if shown is not None:
            return "text", shown
    key = _key(value)
    if key is not None:
        return "key", key
    item = _cbor(value)
    return ("bytes", value.hex()) if item is None else ("CBOR", item)


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _json(text: str) -> str | None:
    try:
        return json.dumps(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _key(value: bytes) -> str | None:
    try:
        key = load_der_public_key(value)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA, {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"elliptic curve, {key.curve.name}"
    return type(key).__name__


def _cbor(value: bytes) -> str | None:
    try:
        item = cbor.decode(value)
    except ValueError:
        return None
    return _diagnostic(item) if isinstance(item, list | dict | cbor.Tag) else None


def _diagnostic(item: object) -> str:
    if isinstance(item, dict):
        return "{" + ", ".join(f"{_diagnostic(key)}: {_diagnostic(value)}" for key, value in item.items()) + "}"
    if isinstance(item, list):
        return "[" + ", ".join(_diagnostic(value) for value in item) + "]"
    if isinstance(item, cbor.Tag):
        return f"{item.number}({_diagnostic(item.value)})"
    if isinstance(item, cbor.Simple):
        return f"simple({item.number})"
    if isinstance(item, bytes):
        return f"h'{item.hex()}'"
    if isinstance(item, str):
        return json.dumps(item)
    return _SIMPLE[item] if item is None or isinstance(item, bool) else str(item)
