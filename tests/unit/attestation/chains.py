"""A whole chain below a test root, and a signer of whatever payload a test can think of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from alcove.attestation import pki
from alcove.attestation.verify import Root
from alcove.codec import cbor, cose, der

NOW = datetime(2026, 3, 4, 5, 6, 7, 890_000, UTC)
INSTANCE_ID = "i-0123456789abcdef0"
ENCLAVE_ID = f"{INSTANCE_ID}-enc018e7aa61e2040ff"
REGION = "eu-central-1"
PCRS = {index: bytes(48) for index in range(16)} | {index: bytes([index + 1]) * 48 for index in (0, 1, 2, 4)}


def tlv(tag: int, content: bytes) -> bytes:
    """One DER item."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content


def new_key() -> ec.EllipticCurvePrivateKey:
    """A P-384 key."""
    return ec.generate_private_key(ec.SECP384R1())


@dataclass
class World:
    """A chain of issuers, and a leaf with its key."""

    issuers: list[pki.Issuer]
    leaf: bytes
    leaf_key: ec.EllipticCurvePrivateKey
    now: datetime = NOW
    pcrs: Mapping[int, bytes] = field(default_factory=lambda: dict(PCRS))

    @property
    def root(self) -> Root:
        """The trust anchor."""
        return Root.from_pem(self.issuers[0].certificate.public_bytes(Encoding.PEM))

    @property
    def cabundle(self) -> list[bytes]:
        """The authorities, root first."""
        return [issuer.der for issuer in self.issuers]

    def fields(self, **changes: object) -> dict[str, object]:
        """The payload's fields, in order, with changes; a change to Ellipsis removes the field."""
        fields: dict[str, object] = {
            "module_id": ENCLAVE_ID,
            "digest": "SHA384",
            "timestamp": cbor.Uint64((self.now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)),
            "pcrs": dict(self.pcrs),
            "certificate": self.leaf,
            "cabundle": self.cabundle,
            "public_key": None,
            "user_data": None,
            "nonce": None,
        } | changes
        return {name: value for name, value in fields.items() if value is not ...}

    def sign(self, payload: bytes, *, protected: bytes = cose.ES384_PROTECTED) -> bytes:
        """A COSE_Sign1 over any bytes."""
        signed = cose.sign1_structure(protected, payload)
        r, s = decode_dss_signature(self.leaf_key.sign(signed, ec.ECDSA(SHA384())))
        return cose.encode_sign1(cose.Sign1(protected, payload, r.to_bytes(48) + s.to_bytes(48)))

    def document(self, **changes: object) -> bytes:
        """A signed document with changed fields."""
        return self.sign(cbor.encode(self.fields(**changes)))

    def rebuilt_leaf(self, changes: Mapping[int, bytes]) -> bytes:
        """The leaf with some fields of its tbsCertificate replaced, signed by the instance again."""
        return rebuilt(self.leaf, self.issuers[-1].key, changes)  # type: ignore[arg-type]


def rebuilt(certificate: bytes, key: ec.EllipticCurvePrivateKey, changes: Mapping[int, bytes]) -> bytes:
    """A certificate with fields of its tbsCertificate replaced (by index), signed with `key`."""
    tbs, algorithm, _ = der.parse(certificate).children(der.SEQUENCE, "certificate")
    fields = [node.raw for node in tbs.children(der.SEQUENCE, "tbs")]
    for index, raw in changes.items():
        fields[index] = raw
    new = tlv(der.SEQUENCE, b"".join(fields))
    signature = key.sign(new, ec.ECDSA(SHA384()))
    return tlv(der.SEQUENCE, new + algorithm.raw + tlv(der.BIT_STRING, b"\0" + signature))


def make_world(now: datetime = NOW) -> World:
    """A fresh chain: root, regional, zonal, instance and leaf."""
    uuid = "00000000-0000-4000-8000-000000000000"
    root = pki.issue_root(new_key(), serial=(1 << 127) | 1, now=now)
    names = {"region": REGION, "label": "5a195aa34ee0a5b2", "crl": uuid}
    keys = [new_key() for _ in range(3)]
    made = pki.issue_regional(root, keys[0].public_key(), **names, serial=(1 << 127) | 2, now=now)
    regional = pki.Issuer(made, keys[0])
    made = pki.issue_zonal(regional, keys[1].public_key(), **names, serial=(1 << 127) | 3, now=now)
    zonal = pki.Issuer(made, keys[1])
    made = pki.issue_instance(
        zonal, keys[2].public_key(), region=REGION, instance_id=INSTANCE_ID, serial=(1 << 158) | 4, now=now
    )
    instance = pki.Issuer(made, keys[2])
    key = new_key()
    leaf = pki.issue_leaf(instance, key.public_key(), region=REGION, enclave_id=ENCLAVE_ID, now=now)
    return World([root, regional, zonal, instance], leaf.public_bytes(Encoding.DER), key, now)
