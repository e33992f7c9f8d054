"""The provisioning requests, checked (acm.md §4): JSON in, orders out.

Core: values in, values out.

AWS's requests are taken as AWS's client sends them. `{"Alcove": request}` marks those of our own agent: they may have
more members, and an error comes back with a sentence beside its name.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from alcove.apps.acm.mechanisms import Profile
from alcove.apps.acm.token import MAX_LABEL, MAX_PIN, MIN_PIN
from alcove.errors import AlcoveError

MAX_KEYS: Final = 256  # an id is a byte
MAX_DOMAINS: Final = 100
MAX_DOMAIN: Final = 253  # RFC 1035 §3.1


class Denied(AlcoveError):  # noqa: N818 - an answer to the client, not a fault of ours
    """A request that is not carried out.

    Args:
        name: AWS's name of the error, or a mapping of it to a detail.
        message: What happened, for people.
    """

    def __init__(self, name: str | dict[str, Any], message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class Envelope:
    """How to reach KMS: AWS's members, and ours from `key_id` on.

    Attributes:
        key_id: The key that must have encrypted; None for any that the image allows.
        endpoint: `name[:port]` of the server; None for AWS's.
    """

    region: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    key_id: str | None = None
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """A key: encrypted by KMS, sealed by this image, or plain where the image takes that.

    Attributes:
        bound: The KMS ciphertext has the encryption context of `sealing.binding`.
    """

    id: int
    label: str
    encrypted: bytes | None = None
    sealed: str | None = None
    plain: str | None = field(default=None, repr=False)
    certificate: str | None = None
    bound: bool = False


@dataclass(frozen=True, slots=True)
class TokenOrder:
    """A token as it should be."""

    label: str
    pin: bytes = field(repr=False)
    envelope: Envelope | None
    keys: tuple[KeyOrder, ...]
    profile: Profile = Profile.TLS
    rate: float | None = None
    domains: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class BirthOrder:
    """A key to be made here."""

    label: str
    domains: tuple[str, ...]
    key_type: str
    envelope: Envelope


def unwrap(request: Any) -> tuple[str, Mapping[str, Any], bool]:
    """The name of a request, its members, and whether it is our agent's.

    Raises:
        Denied: It is no request.
    """
    ours = isinstance(request, dict) and list(request) == ["Alcove"]
    if ours:
        request = request["Alcove"]
    if isinstance(request, str):
        return request, {}, ours
    if isinstance(request, dict) and len(request) == 1:
        ((name, members),) = request.items()
        if isinstance(members, dict):
            return name, members, ours
    raise Denied("InternalError", "this is no request")


def parse_token(item: Any, *, label: str | None = None, pin: bytes | None = None) -> TokenOrder:
    """A token from AddToken, or from UpdateToken with the label and the PIN of the one that is there.

    Raises:
        Denied: A member is missing or wrong.
    """
    members = _mapping(item, "token")
    if label is None:
        label = _label(members.get("label"))
    if pin is None:
        pin = _pin(members.get("pin"))
    keys = members.get("keys")
    if not isinstance(keys, list) or not keys:
        raise Denied("EmptyToken", "a token without keys")
    if len(keys) > MAX_KEYS:
        raise Denied("InternalError", f"{len(keys)} keys in one token, and ids for {MAX_KEYS}")
    orders = tuple([_key(key) for key in keys])
    _no_duplicates(orders)
    domains = None if members.get("domains") is None else parse_domains(members["domains"])
    rate = members.get("rate")
    if rate is not None and (not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate <= 1e6):
        raise Denied("InternalError", "rate is signatures a second, more than 0")
    return TokenOrder(
        label, pin, _envelope(members.get("envelope_key")), orders, _profile(members.get("mechanisms")), rate, domains
    )


def parse_birth(members: Mapping[str, Any]) -> BirthOrder:
    """The members of CreateKey.

    Raises:
        Denied: One is missing or wrong.
    """
    envelope = _envelope(members.get("envelope_key"))
    if envelope is None or envelope.key_id is None:
        raise Denied("InternalError", "a key is born under a KMS key: envelope_key.Kms.key_id")
    kind = _text(members.get("key_type", "ec-p256"), "key_type")
    return BirthOrder(_label(members.get("label")), parse_domains(members.get("domains")), kind, envelope)


def parse_envelope(item: Any) -> Envelope | None:
    """An envelope_key by itself."""
    return _envelope(item)


def parse_access(members: Mapping[str, Any]) -> tuple[str, bytes]:
    """Label and PIN of the token that a request is about."""
    return _text(members.get("label"), "label"), _text(members.get("pin"), "pin").encode()


def parse_domains(item: Any) -> tuple[str, ...]:
    """Names of hosts."""
    names = item if isinstance(item, list) else []
    if not 1 <= len(names) <= MAX_DOMAINS or not all(isinstance(name, str) and _is_domain(name) for name in names):
        raise Denied("InternalError", "domains is a list of names of hosts")
    return tuple(name.lower() for name in names)


def _is_domain(name: str) -> bool:
    bare = name.removeprefix("*.")
    labels = bare.split(".")
    fine = all(0 < len(label) <= 63 and label.replace("-", "").isalnum() for label in labels)
    return name.isascii() and len(name) <= MAX_DOMAIN and fine


def _label(item: Any) -> str:
    text = _text(item, "label")
    if not text:
        raise Denied({"InvalidArgs": "LabelTooShort"}, "a token's label is empty")
    if len(text.encode()) > MAX_LABEL:
        raise Denied({"InvalidArgs": "LabelTooLong"}, f"a token's label has more than {MAX_LABEL} bytes")
    return text


def _pin(item: Any) -> bytes:
    pin = _text(item, "pin").encode()
    if len(pin) < MIN_PIN:
        raise Denied({"InvalidArgs": "PinTooShort"}, f"a PIN has at least {MIN_PIN} characters")
    if len(pin) > MAX_PIN:
        raise Denied({"InvalidArgs": "PinTooLong"}, f"a PIN has at most {MAX_PIN} characters")
    return pin


def _key(item: Any) -> KeyOrder:
    members = _mapping(item, "keys")
    number = members.get("id")
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MAX_KEYS:
        raise Denied("InternalError", "a key's id is 0 to 255")
    order = KeyOrder(
        number,
        _text(members.get("label"), "label"),
        _optional_bytes(members.get("encrypted_pem_b64"), "encrypted_pem_b64"),
        _optional_text(members.get("sealed_key"), "sealed_key"),
        _optional_text(members.get("pem"), "pem"),
        _optional_text(members.get("cert_pem"), "cert_pem"),
        members.get("bound") is True,
    )
    if sum(part is not None for part in (order.encrypted, order.sealed, order.plain)) != 1:
        raise Denied("InternalError", "a key is one of encrypted_pem_b64, sealed_key and pem")
    return order


def _no_duplicates(keys: Sequence[KeyOrder]) -> None:
    ids: set[int] = set()
    labels: set[str] = set()
    for key in keys:
        if key.id in ids:
            raise Denied({"InvalidArgs": {"DuplicateKeyId": key.id}}, f"two keys with the id {key.id}")
        if key.label in labels:
            raise Denied({"InvalidArgs": {"DuplicateKeyLabel": key.label}}, f"two keys with the label {key.label}")
        ids.add(key.id)
        labels.add(key.label)


def _envelope(item: Any) -> Envelope | None:
    if item is None:
        return None
    members = _mapping(_mapping(item, "envelope_key").get("Kms"), "Kms")
    needed = ("region", "access_key_id", "secret_access_key")
    optional = ("session_token", "key_id", "endpoint")
    return Envelope(
        *[_text(members.get(name), name) for name in needed],
        **{name: _optional_text(members.get(name), name) or None for name in optional},  # type: ignore[arg-type]
    )


def _profile(item: Any) -> Profile:
    try:
        return Profile(item if item is not None else Profile.TLS)
    except ValueError:
        raise Denied("InternalError", f"mechanisms is one of {', '.join(Profile)}") from None


def _mapping(item: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(item, dict):
        raise Denied("InternalError", f"{name} is missing, or no object")
    return item


def _text(item: Any, name: str) -> str:
    if not isinstance(item, str):
        raise Denied("InternalError", f"{name} is missing, or no text")
    return item


def _optional_text(item: Any, name: str) -> str | None:
    return None if item is None else _text(item, name)


def _optional_bytes(item: Any, name: str) -> bytes | None:
    if item is None:
        return None
    try:
        return base64.b64decode("".join(_text(item, name).split()), validate=True)
    except (binascii.Error, ValueError):
        raise Denied("InternalError", f"{name} is not base64") from None
