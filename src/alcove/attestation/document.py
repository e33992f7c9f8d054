"""The attestation document: its payload, byte for byte as the platform emits it (attestation.md §1, §2).

Core: bytes in, values out; values in, bytes out.

Steps 1 to 5 of the recipe in `verify` are here; a parsed document is NOT verified.

    a9                                       map of nine, keys always present and in this order
      module_id    text                      i-<17 hex>-enc<16 hex>
      digest       "SHA384"
      timestamp    1b + 8 bytes              milliseconds since 1970, UTC
      pcrs         map                       the locked registers, ascending, 48 bytes each
      certificate  bytes                     DER of the leaf
      cabundle     array of bytes            root, regional, zonal, instance
      public_key   bytes or null
      user_data    bytes or null
      nonce        bytes or null
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

from alcove.attestation.certificate import MAX_CERTIFICATE
from alcove.codec import cbor, cose
from alcove.errors import AttestationError

MAX_DOCUMENT: Final = 16 * 1024  # §5.2 step 1; the device makes none above 12 KiB (§5.1)
MAX_PCRS: Final = 32  # §2; indexes 0 to 31
PCR_SIZES: Final = frozenset({32, 48, 64})  # §2: SHA-256, SHA-384, SHA-512
MAX_CABUNDLE: Final = 32  # §5.2 step 4
MAX_FIELD: Final = 1024  # §5.1: public_key, user_data, nonce
STRICT_FIELD: Final = 512  # §5.1: user_data and nonce, by the smaller of the two limits that AWS documents
DIGEST: Final = "SHA384"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS: Final = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)  # what datetime can hold
_Size = tuple[int, int]  # smallest and largest number of bytes
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AttestationDocument:
    """What a document says; only inside a `VerifiedAttestation` is it also true.

    `timestamp_ms` counts from 1970 UTC, `pcrs` holds raw digests by index and cannot be changed, `cabundle` begins with
    the root.
    """

    module_id: str
    timestamp_ms: int
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None = None
    user_data: bytes | None = None
    nonce: bytes | None = None
    digest: str = DIGEST

    def __post_init__(self) -> None:
        """Keep a view of the registers, so that nobody changes a verified document."""
        object.__setattr__(self, "pcrs", MappingProxyType(dict(self.pcrs)))

    @property
    def timestamp(self) -> datetime:
        """When the document was made, aware, UTC."""
        return _EPOCH + timedelta(milliseconds=self.timestamp_ms)

    def encode_payload(self) -> bytes:
        """The payload in the platform's shape.

        Sizes of user_data, nonce and public_key are not limited here, because the real device does not limit them
        (nsm.md §7); a verifier does.
        """
        return b"".join(
            (
                cbor.head(5, 9),  # a map of nine
                _pairs((("module_id", self.module_id), ("digest", self.digest))),
                _TIMESTAMP,
                cbor.encode(cbor.Uint64(self.timestamp_ms)),
                _registers(tuple(sorted(self.pcrs.items()))),
                _pairs((("certificate", self.certificate), ("cabundle", tuple(self.cabundle)))),
                _PUBLIC_KEY,
                _asked(self.public_key),
                _USER_DATA,
                _asked(self.user_data),
                _NONCE,
                _asked(self.nonce),
            )
        )


# A device signs document after document that differ in little: what stays the same is encoded once.


_TIMESTAMP, _PUBLIC_KEY, _USER_DATA, _NONCE = map(cbor.encode, ("timestamp", "public_key", "user_data", "nonce"))


def _asked(value: bytes | None) -> bytes:
    return cbor.NULL if value is None else cbor.head(2, len(value)) + value


@lru_cache(8)
def _pairs(pairs: tuple[tuple[str, object], ...]) -> bytes:
    return b"".join(cbor.encode(name) + cbor.encode(value) for name, value in pairs)


@lru_cache(8)
def _registers(registers: tuple[tuple[int, bytes], ...]) -> bytes:
    return cbor.encode("pcrs") + cbor.encode(dict(registers))


class _Fields(NamedTuple):
    """Fields of which a document of an enclave has the same as the one before, until its leaf is renewed."""

    module_id: str
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]


class Standing(NamedTuple):
    """What stands in an enclave's documents: bytes, and the fields that were read and checked in these very bytes.

    `start` is a payload's beginning, up to the timestamp; `middle` is what follows the timestamp, up to the end of
    `cabundle`. A payload that has both in these places has the fields, too, and need not be read there again.
    """

    start: bytes
    middle: bytes
    fields: _Fields


Known = Callable[[bytes], Standing | None]
"""What stood in a verified document with this start."""

_HEAD: Final = cbor.head(5, 9)  # of a map of nine
START: Final = 77  # bytes, with the platform's module ids of 39 characters; all other payloads are read as a whole
_TIME: Final = slice(START, START + 8)
_EIGHT_BYTES: Final = b"\x1b"  # before them: the head of an integer
_FIRST: Final = ["module_id", "digest", "timestamp"]
_MIDDLE: Final = ["pcrs", "certificate", "cabundle"]
_ASKED: Final = {"public_key", "user_data", "nonce"}


def standing(payload: bytes, claims: AttestationDocument) -> Standing | None:
    """What stands in a payload that says `claims`; None when it has not the platform's shape."""
    try:
        first, begin = cbor.decode_pairs(payload, 3, len(_HEAD))
        fields, end = cbor.decode_pairs(payload, 3, begin)
    except ValueError:
        return None
    shaped = payload.startswith(_HEAD) and begin == _TIME.stop and payload[:START].endswith(_EIGHT_BYTES)
    if not shaped or [*first] != _FIRST or [*fields] != _MIDDLE:
        return None
    stand = _Fields(claims.module_id, claims.pcrs, claims.certificate, claims.cabundle)
    return Standing(payload[:START], payload[begin:end], stand)


def parse_document(data: bytes, *, strict: bool = False) -> AttestationDocument:
    """What a document says, UNVERIFIED: for showing it, never for deciding; arguments as in `open_document`.

    Raises:
        AttestationError: With the number of the failed step, 1 to 5.
    """
    return open_document(data, strict=strict)[1]


def open_document(
    data: bytes, *, strict: bool = False, known: Known | None = None
) -> tuple[cose.Sign1, AttestationDocument]:
    """Steps 1 to 5: the COSE structure and what its payload says, UNVERIFIED; errors as in `parse_document`.

    Args:
        data: The document.
        strict: Hold user_data and nonce to `STRICT_FIELD` bytes.
        known: Spares reading again what is byte for byte as it was before; it changes nothing else.
    """
    # 1. Bound the input.
    if not 0 < len(data) <= MAX_DOCUMENT:
        raise AttestationError(f"the document is empty or has more than {MAX_DOCUMENT} bytes", step=1)
    # 2. and 3. The structure.
    sign1 = cose.usual_sign1(bytes(data)) or _sign1(bytes(data))
    # 4. and 5. The payload.
    return sign1, parse_payload(sign1.payload, strict=strict, known=known)


def _sign1(data: bytes) -> cose.Sign1:
    # 2. One CBOR item: an array of four, bare or in tag 18.
    try:
        parts = cose.sign1_parts(data)
    except ValueError as error:
        raise AttestationError(f"not a COSE_Sign1: {error}", step=2) from error
    # 3. The four parts; the algorithm is ES384.
    try:
        return cose.check_parts(parts)
    except ValueError as error:
        raise AttestationError(f"COSE_Sign1: {error}", step=3) from error


def parse_payload(payload: bytes, *, strict: bool = False, known: Known | None = None) -> AttestationDocument:
    """What a payload says, UNVERIFIED; arguments as in `open_document`.

    Raises:
        AttestationError: Step 4 when it is not one map with text keys, step 5 when a field breaks a rule of §2.
    """
    # 4. One map, text keys, each key at most once.
    fields, stand = (known and _familiar(payload, known)) or (_fields(payload), None)
    # 5. Types and limits of all nine fields; unknown keys are not looked at.
    module_id, pcrs, certificate, cabundle = stand or _standing_fields(fields)
    own = (0, STRICT_FIELD if strict else MAX_FIELD)
    return AttestationDocument(
        module_id=module_id,
        timestamp_ms=_timestamp(fields),
        pcrs=pcrs,
        certificate=certificate,
        cabundle=cabundle,
        public_key=_optional(fields, "public_key", (1, MAX_FIELD)),
        user_data=_optional(fields, "user_data", own),
        nonce=_optional(fields, "nonce", own),
    )


def _familiar(payload: bytes, known: Known) -> tuple[dict[str, object], _Fields] | None:
    """The fields of a payload that differ from what stands, and that; None for every other payload, valid or not."""
    found = known(payload[:START])
    if found is None or not payload.startswith(found.middle, _TIME.stop):
        return None
    try:
        fields, end = cbor.decode_pairs(payload, 3, _TIME.stop + len(found.middle))
    except ValueError:
        return None
    if end != len(payload) or fields.keys() != _ASKED:
        return None
    return {**fields, "timestamp": int.from_bytes(payload[_TIME])}, found.fields  # type: ignore[dict-item]  # text keys


def _fields(payload: bytes) -> dict[str, object]:
    try:
        fields = cbor.decode(payload)
    except ValueError as error:
        raise AttestationError(f"the payload is not CBOR: {error}", step=4) from error
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise AttestationError("the payload is not a map with text keys", step=4)
    return fields


def _standing_fields(fields: dict[str, object]) -> _Fields:
    digest = _required(fields, "digest", str)
    if digest != DIGEST:
        raise _wrong("digest", f"not {DIGEST}")
    return _Fields(
        _module_id(fields),
        _pcrs(_required(fields, "pcrs", dict)),
        _sized(_required(fields, "certificate", bytes), "certificate", (1, MAX_CERTIFICATE)),
        _cabundle(_required(fields, "cabundle", list)),
    )


def _wrong(field: str, message: str) -> AttestationError:
    return AttestationError(f"{field}: {message}", step=5)


def _required(fields: dict[str, object], name: str, kind: type[_T]) -> _T:
    if name not in fields:
        raise _wrong(name, "missing")
    value = fields[name]
    if not isinstance(value, kind) or isinstance(value, bool):  # Python counts a bool as an int
        raise _wrong(name, f"{type(value).__name__} where {kind.__name__} must be")
    return value


def _module_id(fields: dict[str, object]) -> str:
    module_id = _required(fields, "module_id", str)
    if not module_id:
        raise _wrong("module_id", "empty")
    return module_id


def _timestamp(fields: dict[str, object]) -> int:
    timestamp = _required(fields, "timestamp", int)
    if not 0 < timestamp <= _LAST_MS:
        raise _wrong("timestamp", f"{timestamp} is no time after 1970")
    return timestamp


def _pcrs(pcrs: dict[object, object]) -> dict[int, bytes]:
    if not 1 <= len(pcrs) <= MAX_PCRS:
        raise _wrong("pcrs", f"{len(pcrs)} registers; 1 to {MAX_PCRS} are allowed")
    found: dict[int, bytes] = {}
    for index, value in pcrs.items():
        if not isinstance(index, int) or not 0 <= index < MAX_PCRS:
            raise _wrong("pcrs", f"the index {index!r:.20} is not in 0 to {MAX_PCRS - 1}")
        if not isinstance(value, bytes) or len(value) not in PCR_SIZES:
            raise _wrong("pcrs", f"PCR{index} is not a digest of 32, 48 or 64 bytes")
        found[index] = value
    return dict(sorted(found.items()))


def _cabundle(entries: list[object]) -> tuple[bytes, ...]:
    if not 1 <= len(entries) <= MAX_CABUNDLE:
        raise _wrong("cabundle", f"{len(entries)} certificates; 1 to {MAX_CABUNDLE} are allowed")
    return tuple(_sized(entry, f"cabundle[{index}]", (1, MAX_CERTIFICATE)) for index, entry in enumerate(entries))


def _sized(value: object, name: str, size: _Size) -> bytes:
    smallest, largest = size
    if not isinstance(value, bytes) or not smallest <= len(value) <= largest:
        raise _wrong(name, f"not a byte string of {smallest} to {largest} bytes")
    return value


def _optional(fields: dict[str, object], name: str, size: _Size) -> bytes | None:
    value = fields.get(name)  # absent and null are the same (§2)
    return None if value is None else _sized(value, name, size)
