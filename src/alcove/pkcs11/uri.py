"""`pkcs11:` URIs (RFC 7512): which token, which key on it, which module, and where the PIN is.

Core: text in, values out.

    pkcs11:token=hsm;object=signing;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/pin

Stricter than the RFC where laxness would widen a match or leak: an attribute that is not known is refused, and so are
`pin-value`, which would stand in argv, and a `pin-source` that is a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Self
from urllib.parse import quote_from_bytes, unquote_to_bytes

from alcove.errors import UsageError

SCHEME: Final = "pkcs11:"
MAX_URI: Final = 4096  # characters
MAX_ID: Final = 1024  # bytes of CKA_ID
_PATH: Final = (
    "token", "manufacturer", "serial", "model", "library-manufacturer", "library-version", "library-description",
    "object", "type", "id", "slot-manufacturer", "slot-description", "slot-id",
)  # fmt: skip
_QUERY: Final = ("module-path", "module-name", "pin-source")
_TYPES: Final = frozenset({"public", "private", "cert", "secret-key", "data"})  # RFC 7512 §2.3
_COMMON: Final = r"A-Za-z0-9\-._~:\[\]@!$'()*+,=%"  # unreserved, pk11-res-avail and the escape
_PATH_VALUE: Final = re.compile(rf"[{_COMMON}&]*")
_QUERY_VALUE: Final = re.compile(rf"[{_COMMON}/?|]*")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_URI_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_HINT: Final = "a key on a token is named as in pkcs11:token=LABEL;object=LABEL"


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """The attributes of a URI; None where it says nothing. `pin_source` is a path."""

    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    library_manufacturer: str | None = None
    library_version: str | None = None
    library_description: str | None = None
    object: str | None = None
    type: str | None = None
    id: bytes | None = None
    slot_manufacturer: str | None = None
    slot_description: str | None = None
    slot_id: int | None = None
    module_path: str | None = None
    module_name: str | None = None
    pin_source: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The URI in `text`.

        Raises:
            UsageError: When it is not one, or asks for what is refused here.
        """
        if not text.startswith(SCHEME):
            _refuse("it does not begin with pkcs11:")
        if len(text) > MAX_URI:
            _refuse(f"it is longer than {MAX_URI} characters")
        path, separator, query = text.removeprefix(SCHEME).partition("?")
        found: dict[str, Any] = {}
        for name, raw in _attributes(path, ";", _PATH, _PATH_VALUE):
            found[name.replace("-", "_")] = _path_value(name, raw)
        if separator:
            for name, raw in _attributes(query, "&", _QUERY, _QUERY_VALUE):
                found[name.replace("-", "_")] = _query_value(name, raw)
        return cls(**found)

    def __str__(self) -> str:
        path = ";".join(f"{name}={self._encoded(name)}" for name in _PATH if self._has(name))
        query = "&".join(f"{name}={self._encoded(name)}" for name in _QUERY if self._has(name))
        return f"{SCHEME}{path}?{query}" if query else f"{SCHEME}{path}"

    def _has(self, name: str) -> bool:
        return getattr(self, name.replace("-", "_")) is not None

    def _encoded(self, name: str) -> str:
        value = getattr(self, name.replace("-", "_"))
        raw = value if isinstance(value, bytes) else str(value).encode()
        if name == "id":
            return "".join(f"%{octet:02X}" for octet in raw)
        return quote_from_bytes(raw, safe="/" if name in _QUERY else "")


def _attributes(
    text: str, separator: str, names: tuple[str, ...], well_formed: re.Pattern[str]
) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise UsageError(
                "a PIN in a pkcs11: URI can be read by everyone who lists processes",
                hint="use pin-source=file:PATH, or put the PIN into ALCOVE_PKCS11_PIN",
            )
        if not equals or name not in names:
            _refuse(f"the attribute {name[:40]!r} is not known")
        if name in seen:
            _refuse(f"the attribute {name} is there twice")
        if not well_formed.fullmatch(value) or _BAD_ESCAPE.search(value):
            _refuse(f"the value of {name} holds a character that must be written as %XX")
        seen.add(name)
        yield name, unquote_to_bytes(value)


def _path_value(name: str, raw: bytes) -> str | bytes | int:
    if name == "id":
        if not 0 < len(raw) <= MAX_ID:
            _refuse(f"the id has no bytes, or more than {MAX_ID}")
        return raw
    text = _text(name, raw)
    if name == "type" and text not in _TYPES:
        _refuse(f"the type {text[:40]!r} is not known")
    if name != "slot-id":
        return text
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        _refuse("the slot-id is not a number")
    return int(text)


def _query_value(name: str, raw: bytes) -> str:
    text = _text(name, raw)
    if not text or "\0" in text:
        _refuse(f"{name} is empty or holds a zero byte")
    if name == "module-name" and "/" in text:
        _refuse("module-name is a name and not a path")
    if name != "pin-source":
        return text
    if text.startswith("|"):
        _refuse("a program as pin-source is not run")
    path = re.sub(r"^file:(//(?=/))?", "", text, flags=re.IGNORECASE)
    if not path or _URI_SCHEME.match(path) or path.startswith("//"):
        _refuse("pin-source is not a file")
    return path


def _text(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        _refuse(f"the value of {name} is not UTF-8")


def _refuse(why: str) -> NoReturn:
    raise UsageError(f"this is no usable pkcs11: URI: {why}", hint=_HINT)
