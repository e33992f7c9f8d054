"""The certificates of a chain, in exactly AWS's shape (attestation.md §4.1).

Core: keys, names, serial numbers and the time in; certificates out. Who calls brings the randomness.

    root ──▶ regional (20 d) ──▶ zonal (5 d 14 h) ──▶ instance (24 h) ──▶ leaf (3 h)

Every key is P-384 and every signature ecdsa-with-SHA384. Countries are PrintableString and all other names UTF8String,
which is `cryptography`'s own choice. All certificates stay below 1024 bytes, since verifiers enforce that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from alcove.errors import UsageError

ROOT_LIFE: Final = timedelta(days=365 * 30 + 7)
LAST_UTC_TIME: Final = datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280 §4.1.2.5; §4.1: "times as UTCTime"
REGIONAL_LIFE: Final = timedelta(days=20, hours=1)
ZONAL_LIFE: Final = timedelta(days=5, hours=14)
INSTANCE_LIFE: Final = timedelta(hours=24)
LEAF_LIFE: Final = timedelta(hours=3, seconds=3)
AUTHORITY_BACKDATE: Final = timedelta(hours=1)  # the odd hour in the root's and the regional life
INSTANCE_BACKDATE: Final = timedelta(minutes=1)
LEAF_BACKDATE: Final = timedelta(seconds=3)

# Nobody serves revocation lists here; AWS tells verifiers not to fetch its own (§5.2 step 10). The name cannot resolve.
_CRL_HOST: Final = "crl.alcove.invalid"
_REGION: Final = re.compile(r"[a-z0-9-]{1,20}")  # a leaf's CN has 64 characters, 44 of them its own (§4.1)
_INSTANCE_ID: Final = re.compile(r"i-[0-9a-f]{17}")
_ENCLAVE_ID: Final = re.compile(r"(i-[0-9a-f]{17})-enc([0-9a-f]{16})")

_US: Final = (NameOID.COUNTRY_NAME, "US")
_AMAZON: Final = (NameOID.ORGANIZATION_NAME, "Amazon")
_AWS: Final = (NameOID.ORGANIZATIONAL_UNIT_NAME, "AWS")
_SEATTLE: Final = (NameOID.LOCALITY_NAME, "Seattle")
_STATE: Final = NameOID.STATE_OR_PROVINCE_NAME


@dataclass(frozen=True, slots=True)
class Issuer:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        """The certificate's DER."""
        return self.certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What differs between the authorities of §4.1."""

    path_length: int | None
    signs_only_certificates: bool = False
    keys_after_usage: bool = False  # extension order of the instance certificate


def check_region(region: str) -> str:
    """`region`, which fits into every name of a chain; UsageError otherwise."""
    if not _REGION.fullmatch(region):
        raise UsageError(f"`{region}` is no Region", hint="such as us-east-1: at most 20 letters, digits and hyphens")
    return region


def check_instance_id(instance_id: str) -> str:
    """`instance_id`, of the form ``i-<17 hex>``; UsageError otherwise."""
    if not _INSTANCE_ID.fullmatch(instance_id):
        raise UsageError(f"`{instance_id}` is no instance id", hint="such as i-0123456789abcdef0")
    return instance_id


def split_enclave_id(enclave_id: str) -> tuple[str, bytes]:
    """The instance id and the eight bytes of the slot in ``i-<17 hex>-enc<16 hex>``; UsageError otherwise."""
    match = _ENCLAVE_ID.fullmatch(enclave_id)
    if match is None:
        raise UsageError(f"`{enclave_id}` is no enclave id", hint="such as i-0123456789abcdef0-enc0123456789abcdef")
    return match[1], bytes.fromhex(match[2])


def issue_root(key: EllipticCurvePrivateKey, *, serial: int, now: datetime) -> Issuer:
    """A self-signed root: an hour back, thirty years ahead, not beyond what UTCTime can say."""
    name = _name((_US, _AMAZON, _AWS, (NameOID.COMMON_NAME, "aws.nitro-enclaves")))
    start = _second(now) - AUTHORITY_BACKDATE
    builder = _builder(name, name, key.public_key(), serial, (start, min(start + ROOT_LIFE, LAST_UTC_TIME)))
    builder = _authority(builder, key.public_key(), None, _Shape(path_length=None), None)
    return Issuer(builder.sign(key, SHA384()), key)


def issue_regional(
    root: Issuer, key: EllipticCurvePrivateKey, *, region: str, label: str, crl: str, serial: int, now: datetime
) -> Issuer:
    """The certificate of a Region; `label` is 16 hexadecimal digits and `crl` a UUID."""
    name = _name((_US, _AMAZON, _AWS, (NameOID.COMMON_NAME, f"{label}.{region}.aws.nitro-enclaves")))
    start = _second(now) - AUTHORITY_BACKDATE
    builder = _builder(name, root.certificate.subject, key.public_key(), serial, (start, start + REGIONAL_LIFE))
    builder = _authority(builder, key.public_key(), root, _Shape(path_length=2), f"http://{_CRL_HOST}/crl/{crl}.crl")
    return Issuer(builder.sign(root.key, SHA384()), key)


def issue_zonal(
    regional: Issuer, key: EllipticCurvePrivateKey, *, region: str, label: str, crl: str, serial: int, now: datetime
) -> Issuer:
    """The certificate of a zone in a Region; its name has another order than the others' (§4.1)."""
    common_name = (NameOID.COMMON_NAME, f"{label}.zonal.{region}.aws.nitro-enclaves")
    name = _name((common_name, _AWS, _AMAZON, _US, (_STATE, "WA"), _SEATTLE))
    start = _second(now) - AUTHORITY_BACKDATE
    url = f"http://crl-{region}.{_CRL_HOST}/crl/{crl}.crl"
    builder = _builder(name, regional.certificate.subject, key.public_key(), serial, (start, start + ZONAL_LIFE))
    builder = _authority(builder, key.public_key(), regional, _Shape(path_length=1), url)
    return Issuer(builder.sign(regional.key, SHA384()), key)


def issue_instance(
    zonal: Issuer, key: EllipticCurvePrivateKey, *, region: str, instance_id: str, serial: int, now: datetime
) -> Issuer:
    """The certificate of a parent."""
    name = _place(f"{instance_id}.{region}.aws.nitro-enclaves")
    start = _second(now) - INSTANCE_BACKDATE
    shape = _Shape(path_length=0, signs_only_certificates=True, keys_after_usage=True)
    builder = _builder(name, zonal.certificate.subject, key.public_key(), serial, (start, start + INSTANCE_LIFE))
    return Issuer(_authority(builder, key.public_key(), zonal, shape, None).sign(zonal.key, SHA384()), key)


def issue_leaf(
    instance: Issuer, public_key: EllipticCurvePublicKey, *, region: str, enclave_id: str, now: datetime
) -> x509.Certificate:
    """The certificate of an enclave.

    Its serial number is the slot, four zero bytes and the time of issue; its CN lacks ``.nitro-enclaves``; keyUsage is
    not critical (§4.1).
    """
    issued = _second(now)
    slot = split_enclave_id(enclave_id)[1]
    serial = int.from_bytes(slot + bytes(4) + int(issued.timestamp()).to_bytes(4))
    start = issued - LEAF_BACKDATE
    name = _place(f"{enclave_id}.{region}.aws")
    builder = (
        _builder(name, instance.certificate.subject, public_key, serial, (start, start + LEAF_LIFE))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True, content_commitment=True), critical=False)
    )
    return builder.sign(instance.key, SHA384())


def _second(now: datetime) -> datetime:
    """Certificates count in seconds."""
    return now.astimezone(UTC).replace(microsecond=0)


def _name(attributes: Sequence[tuple[x509.ObjectIdentifier, str]]) -> x509.Name:
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])


def _place(common_name: str) -> x509.Name:
    return _name((_US, (_STATE, "Washington"), _SEATTLE, _AMAZON, _AWS, (NameOID.COMMON_NAME, common_name)))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePublicKey,
    serial: int,
    validity: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=serial,
        not_valid_before=validity[0],
        not_valid_after=validity[1],
    )


def _authority(
    builder: x509.CertificateBuilder,
    key: EllipticCurvePublicKey,
    parent: Issuer | None,
    shape: _Shape,
    crl_url: str | None,
) -> x509.CertificateBuilder:
    """The extensions of an authority, in the order of §4.1."""
    signs_data = not shape.signs_only_certificates
    usage = _key_usage(digital_signature=signs_data, key_cert_sign=True, crl_sign=signs_data)
    subject_id = x509.SubjectKeyIdentifier.from_public_key(key)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=shape.path_length), critical=True)
    if shape.keys_after_usage:
        builder = builder.add_extension(usage, critical=True).add_extension(subject_id, critical=False)
    if parent is not None:
        builder = builder.add_extension(_parent_id(parent), critical=False)
    if not shape.keys_after_usage:
        builder = builder.add_extension(subject_id, critical=False).add_extension(usage, critical=True)
    if crl_url is not None:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    return builder


def _parent_id(parent: Issuer) -> x509.AuthorityKeyIdentifier:
    extension = parent.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(extension.value)


def _key_usage(
    *,
    digital_signature: bool = False,
    content_commitment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=content_commitment,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
