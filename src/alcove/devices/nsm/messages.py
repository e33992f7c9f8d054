"""NSM requests and responses in CBOR (nsm.md §3-§5; aws-nitro-enclaves-nsm-api src/api/mod.rs).

Core: bytes in, messages out; messages in, bytes out. Used in guests too, so it imports the CBOR codec alone.

A request or response without fields is a text, any other is a map of one pair: {name: {field: value}}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from alcove.codec import cbor
from alcove.errors import ProtocolError

MAX_REQUEST: Final = 0x1000  # nsm.md §7
MAX_RESPONSE: Final = 0x3000  # nsm.md §7
PCR_COUNT: Final = 32  # nsm.md §6


class ErrorCode(StrEnum):
    """The device's errors, by the names on the wire (nsm.md §5)."""

    INVALID_ARGUMENT = "InvalidArgument"
    INVALID_INDEX = "InvalidIndex"
    INVALID_RESPONSE = "InvalidResponse"
    READ_ONLY_INDEX = "ReadOnlyIndex"
    INVALID_OPERATION = "InvalidOperation"
    BUFFER_TOO_SMALL = "BufferTooSmall"
    INPUT_TOO_LARGE = "InputTooLarge"
    INTERNAL_ERROR = "InternalError"


@dataclass(frozen=True, slots=True)
class DescribePCR:
    """Read a register."""

    index: int


@dataclass(frozen=True, slots=True)
class ExtendPCR:
    """Extend a register with data."""

    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class LockPCR:
    """Lock a register until the machine ends."""

    index: int


@dataclass(frozen=True, slots=True)
class LockPCRs:
    """Lock the registers [0, range)."""

    range: int


@dataclass(frozen=True, slots=True)
class DescribeNSM:
    """Ask what the module is."""


@dataclass(frozen=True, slots=True)
class GetRandom:
    """Ask for random bytes."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """Ask for an attestation document that holds these fields."""

    user_data: bytes | None = None
    nonce: bytes | None = None
    public_key: bytes | None = None


Request = DescribePCR | ExtendPCR | LockPCR | LockPCRs | DescribeNSM | GetRandom | Attestation


@dataclass(frozen=True, slots=True)
class PcrDescribed:
    """A register's state; `data` is its value."""

    lock: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class PcrExtended:
    """A register's new value."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PcrLocked:
    """LockPCR succeeded."""


@dataclass(frozen=True, slots=True)
class PcrsLocked:
    """LockPCRs succeeded."""


@dataclass(frozen=True, slots=True)
class NsmDescribed:
    """What the module is; the fields are in the order of the wire (nsm.md §4)."""

    version_major: int
    version_minor: int
    version_patch: int
    module_id: str
    max_pcrs: int
    locked_pcrs: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Attested:
    """An attestation document: COSE_Sign1 bytes."""

    document: bytes


@dataclass(frozen=True, slots=True)
class RandomBytes:
    """Random bytes, 256 from every known device."""

    random: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The module refused."""

    error: ErrorCode


Response = PcrDescribed | PcrExtended | PcrLocked | PcrsLocked | NsmDescribed | Attested | RandomBytes | Failed

_REQUEST_NAMES: Final[dict[type[Request], str]] = {
    kind: kind.__name__ for kind in (DescribePCR, ExtendPCR, LockPCR, LockPCRs, DescribeNSM, GetRandom, Attestation)
}
_RESPONSE_NAMES: Final[dict[type[Response], str]] = {
    PcrDescribed: "DescribePCR",
    PcrExtended: "ExtendPCR",
    PcrLocked: "LockPCR",
    PcrsLocked: "LockPCRs",
    NsmDescribed: "DescribeNSM",
    Attested: "Attestation",
    RandomBytes: "GetRandom",
}


def encode_request(request: Request) -> bytes:
    """The bytes of a request."""
    return _encode(_REQUEST_NAMES[type(request)], request)


def decode_request(data: bytes) -> Request:
    """Read a request, with the tolerance of nsm.md §3.

    Raises:
        ProtocolError: The bytes are no request.
    """
    name, fields = _decode(data)
    if fields is None:
        return _pick(_BARE_REQUESTS, name)()
    return _pick(_REQUESTS, name)(fields)


def encode_response(response: Response) -> bytes:
    """The bytes of a response."""
    if isinstance(response, Failed):
        return cbor.encode({"Error": response.error.value})
    if isinstance(response, Attested):  # by far the longest: not copied a second time
        return b"".join((_BEFORE_DOCUMENT, cbor.head(2, len(response.document)), response.document))
    return _encode(_RESPONSE_NAMES[type(response)], response)


_BEFORE_DOCUMENT: Final = cbor.encode({"Attestation": {"document": b""}})[:-1]


def decode_response(data: bytes) -> Response:
    """Read a response.

    Raises:
        ProtocolError: The bytes are no response.
    """
    name, fields = _decode(data)
    if fields is None:
        return _pick(_BARE_RESPONSES, name)()
    return _pick(_RESPONSES, name)(fields)


def _encode(name: str, message: Request | Response) -> bytes:
    names = message.__slots__  # a dataclass's own field order, which is the order on the wire
    if not names:
        return cbor.encode(name)
    values = (getattr(message, field) for field in names)
    return cbor.encode({name: {f: list(v) if isinstance(v, tuple) else v for f, v in zip(names, values, strict=True)}})


_Fields = Mapping[object, object]
_T = TypeVar("_T")


def _decode(data: bytes) -> tuple[str, _Fields | None]:
    """A message's name and fields; None for a message that is a text."""
    try:
        message = cbor.decode(data)
    except ValueError as error:
        raise ProtocolError(f"NSM: {error}") from None
    if isinstance(message, str):
        return message, None
    if not isinstance(message, dict) or len(message) != 1:
        raise ProtocolError("NSM: a message that is neither a text nor a map of one pair")
    ((name, fields),) = message.items()
    if name == "Error" and isinstance(fields, str):
        return name, {"error": fields}
    if not isinstance(name, str) or not isinstance(fields, dict):
        raise ProtocolError("NSM: a message without a name or without fields")
    return name, fields


def _pick(table: Mapping[str, _T], name: str) -> _T:
    try:
        return table[name]
    except KeyError:
        raise ProtocolError(f"NSM: no message {name[:32]!r} of this shape") from None


def _unsigned(fields: _Fields, name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or value < 0:  # not bool, which is an int to Python
        raise ProtocolError(f"NSM: {name} is no unsigned integer")
    return value


def _bytes(fields: _Fields, name: str) -> bytes:
    value = fields.get(name)
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise ProtocolError(f"NSM: {name} is no byte string")
    return value


def _optional(fields: _Fields, name: str) -> bytes | None:
    return None if fields.get(name) is None else _bytes(fields, name)


def _text(fields: _Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"NSM: {name} is no text")
    return value


def _indexes(fields: _Fields, name: str) -> tuple[int, ...]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise ProtocolError(f"NSM: {name} is no array")
    return tuple(_unsigned({name: item}, name) for item in value)


def _pcr_described(fields: _Fields) -> PcrDescribed:
    lock = fields.get("lock")
    if not isinstance(lock, bool):
        raise ProtocolError("NSM: lock is neither true nor false")
    return PcrDescribed(lock, _bytes(fields, "data"))


def _failed(fields: _Fields) -> Failed:
    try:
        return Failed(ErrorCode(_text(fields, "error")))
    except ValueError:
        raise ProtocolError("NSM: an error of no known name") from None


def _nsm_described(fields: _Fields) -> NsmDescribed:
    return NsmDescribed(
        version_major=_unsigned(fields, "version_major"),
        version_minor=_unsigned(fields, "version_minor"),
        version_patch=_unsigned(fields, "version_patch"),
        module_id=_text(fields, "module_id"),
        max_pcrs=_unsigned(fields, "max_pcrs"),
        locked_pcrs=_indexes(fields, "locked_pcrs"),
        digest=_text(fields, "digest"),
    )


def _attestation(fields: _Fields) -> Attestation:
    return Attestation(_optional(fields, "user_data"), _optional(fields, "nonce"), _optional(fields, "public_key"))


_BARE_REQUESTS: Final[dict[str, Callable[[], Request]]] = {"DescribeNSM": DescribeNSM, "GetRandom": GetRandom}
_REQUESTS: Final[dict[str, Callable[[_Fields], Request]]] = {
    "DescribePCR": lambda f: DescribePCR(_unsigned(f, "index")),
    "ExtendPCR": lambda f: ExtendPCR(_unsigned(f, "index"), _bytes(f, "data")),
    "LockPCR": lambda f: LockPCR(_unsigned(f, "index")),
    "LockPCRs": lambda f: LockPCRs(_unsigned(f, "range")),
    "Attestation": _attestation,
}
_BARE_RESPONSES: Final[dict[str, Callable[[], Response]]] = {"LockPCR": PcrLocked, "LockPCRs": PcrsLocked}
_RESPONSES: Final[dict[str, Callable[[_Fields], Response]]] = {
    "DescribePCR": _pcr_described,
    "ExtendPCR": lambda f: PcrExtended(_bytes(f, "data")),
    "DescribeNSM": _nsm_described,
    "Attestation": lambda f: Attested(_bytes(f, "document")),
    "GetRandom": lambda f: RandomBytes(_bytes(f, "random")),
    "Error": _failed,
}
