"""PKCS#11's objects: a key's private and public one, certificates, mechanisms (acm.md §5.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from alcove.apps.acm import cryptoki
from alcove.apps.acm.cryptoki import Cka, Ckk, Cko, Ckr
from alcove.apps.acm.keypair import CURVES, KeyPair
from alcove.apps.acm.mechanisms import Profile, Spec
from alcove.apps.acm.values import Attribute, Room, Size, Value, length_of
from alcove.codec.der import OCTET_STRING
from alcove.codec.der_writer import encode

CERTIFICATE_LABEL: Final = "acm-ne-cert-{}"  # the name that AWS's Java guide tells
_SECRET: Final = frozenset({
    Cka.VALUE, Cka.PRIVATE_EXPONENT, Cka.PRIME_1, Cka.PRIME_2, Cka.EXPONENT_1, Cka.EXPONENT_2, Cka.COEFFICIENT,
})  # fmt: skip
_SECRETS_OF: Final = {Ckk.RSA: _SECRET - {Cka.VALUE}, Ckk.EC: frozenset({Cka.VALUE})}


@dataclass(frozen=True, slots=True)
class TokenObject:
    """An object.

    Attributes:
        attributes: All that can be read.
        secrets: The attributes that it has and never tells.
        key: The key behind it, if it is one.
    """

    attributes: Mapping[int, Value]
    secrets: frozenset[Cka] = frozenset()
    key: KeyPair | None = field(default=None, repr=False)

    @property
    def private(self) -> bool:
        """Whether it is there only after a login."""
        return bool(self.attributes.get(Cka.PRIVATE))

    def allows(self, use: Cka) -> bool:
        """Whether it may be used so: SIGN, VERIFY, ENCRYPT or DECRYPT."""
        return bool(self.attributes.get(use))

    def matches(self, template: Sequence[Attribute]) -> bool:
        """Whether it has every attribute of a search."""
        return all(self.attributes.get(wanted.type) == wanted.value for wanted in template)

    def read(self, rooms: Sequence[Room]) -> tuple[tuple[Attribute, ...], Ckr]:
        """The attributes that are asked for, each as far as it can be told, and what kept the last from it."""
        found, result = [], Ckr.OK
        for room in rooms:
            value, problem = self._one(room)
            found.append(Attribute(room.type, value))
            result = problem or result
        return tuple(found), result

    def _one(self, room: Room) -> tuple[Value | None, Ckr | None]:
        if room.type in self.secrets:
            return None, Ckr.ATTRIBUTE_SENSITIVE
        value = self.attributes.get(room.type)
        if value is None:
            return None, Ckr.ATTRIBUTE_TYPE_INVALID
        length = length_of(Attribute(room.type, value))
        if room.size is None:
            return Size(length), None
        return (value, None) if length <= room.size else (None, Ckr.BUFFER_TOO_SMALL)


def key_objects(key: KeyPair, key_id: bytes, label: str, profile: Profile) -> Iterator[TokenObject]:
    """The private object and the public one."""
    full = profile is Profile.FULL and key.type is Ckk.RSA
    common: dict[int, Value] = {
        Cka.KEY_TYPE: int(key.type),
        Cka.ID: key_id,
        Cka.LABEL: label.encode(),
        Cka.TOKEN: 1,
        Cka.DERIVE: 0,
        Cka.LOCAL: 0,
        Cka.KEY_GEN_MECHANISM: cryptoki.UNAVAILABLE,
        Cka.START_DATE: b"",
        Cka.END_DATE: b"",
        Cka.SUBJECT: b"",
        Cka.MODIFIABLE: 0,
        Cka.COPYABLE: 0,
        Cka.DESTROYABLE: b"\0",  # p11-kit knows it as bytes (acm.md §6.4)
        Cka.PUBLIC_KEY_INFO: key.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        **_public_numbers(key),
    }
    yield TokenObject(
        common
        | {Cka.CLASS: int(Cko.PRIVATE_KEY), Cka.PRIVATE: 1, Cka.SENSITIVE: 1, Cka.EXTRACTABLE: 0, Cka.SIGN: 1}
        | {Cka.ALWAYS_SENSITIVE: 1, Cka.NEVER_EXTRACTABLE: 1, Cka.DECRYPT: int(full), Cka.ALWAYS_AUTHENTICATE: 0}
        | dict.fromkeys((Cka.UNWRAP, Cka.SIGN_RECOVER, Cka.WRAP, Cka.WRAP_WITH_TRUSTED), 0),
        _SECRETS_OF[key.type],
        key,
    )
    yield TokenObject(
        common
        | {Cka.CLASS: int(Cko.PUBLIC_KEY), Cka.PRIVATE: 0, Cka.VERIFY: 1, Cka.ENCRYPT: int(full)}
        | dict.fromkeys((Cka.WRAP, Cka.VERIFY_RECOVER, Cka.TRUSTED), 0),
        key=key,
    )


def _public_numbers(key: KeyPair) -> dict[int, Value]:
    """On both objects: clients look on the private one first."""
    public = key.public
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {
            Cka.MODULUS: numbers.n.to_bytes(key.bytes),
            Cka.MODULUS_BITS: public.key_size,
            Cka.PUBLIC_EXPONENT: numbers.e.to_bytes((numbers.e.bit_length() + 7) // 8),
        }
    point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return {Cka.EC_PARAMS: CURVES[public.curve.name], Cka.EC_POINT: encode(OCTET_STRING, point)}


def certificate_objects(chain: Sequence[x509.Certificate], key_id: bytes, first: int = 0) -> Iterator[TokenObject]:
    """The certificates of a key, its own first; `first` is the number of the first in the token."""
    for position, certificate in enumerate(chain):
        category = cryptoki.CATEGORY_AUTHORITY if position else cryptoki.CATEGORY_TOKEN_USER
        own_id = key_id if position == 0 else key_id + bytes([position % 256])
        der = certificate.public_bytes(Encoding.DER)
        yield TokenObject(
            {
                Cka.CLASS: int(Cko.CERTIFICATE),
                Cka.CERTIFICATE_TYPE: cryptoki.CKC_X_509,
                Cka.CERTIFICATE_CATEGORY: category,
                Cka.TOKEN: 1,
                Cka.PRIVATE: 0,
                Cka.MODIFIABLE: 0,
                Cka.COPYABLE: 0,
                Cka.DESTROYABLE: b"\0",
                Cka.TRUSTED: 1,
                Cka.LABEL: CERTIFICATE_LABEL.format(first + position).encode(),
                Cka.ID: own_id,
                Cka.SUBJECT: certificate.subject.public_bytes(),
                Cka.ISSUER: certificate.issuer.public_bytes(),
                Cka.SERIAL_NUMBER: _integer(certificate.serial_number),
                Cka.VALUE: der,
                Cka.CHECK_VALUE: hashlib.sha1(der, usedforsecurity=False).digest()[:3],  # PKCS#11 2.40 §4.6.3
                Cka.START_DATE: certificate.not_valid_before_utc.strftime("%Y%m%d").encode(),
                Cka.END_DATE: certificate.not_valid_after_utc.strftime("%Y%m%d").encode(),
                Cka.PUBLIC_KEY_INFO: certificate.public_key().public_bytes(
                    Encoding.DER, PublicFormat.SubjectPublicKeyInfo
                ),
            }
        )


def _integer(number: int) -> bytes:
    """DER INTEGER of a serial number, which is positive."""
    return encode(0x02, number.to_bytes(number.bit_length() // 8 + 1))


def mechanism_object(spec: Spec) -> TokenObject:
    """The object of a mechanism, which only a search for CKO_MECHANISM finds."""
    return TokenObject({Cka.CLASS: int(Cko.MECHANISM), Cka.MECHANISM_TYPE: int(spec.type), Cka.PRIVATE: 0})
