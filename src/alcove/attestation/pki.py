"""The certificates of a chain, in exactly AWS's shape (attestation.md §4.1).

Core: keys, names, serial numbers and the time in; certificates out. Who calls brings the randomness.

    root (30 y) ──▶ regional (20 d) ──▶ zonal (5 d 14 h) ──▶ instance (24 h) ──▶ leaf (3 h)

Every key is P-384 and every signature ecdsa-with-SHA384. Countries are PrintableString and all other names UTF8String,
which is `cryptography`'s own choice. All certificates stay below 1024 bytes, since verifiers enforce that. No authority
outlives the one above it: near its parent's end its own life is cut short. The country, organization and unit of a
root go down to every name below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from alcove.attestation.names import Organization, split_enclave_id
from alcove.codec import der
from alcove.codec.der_writer import encode
from alcove.errors import MachineError

ROOT_YEARS: Final = 30  # from 2020 on that ends after 2049, as GeneralizedTime (RFC 5280 §4.1.2.5)
REGIONAL_LIFE: Final = timedelta(days=20, hours=1)
ZONAL_LIFE: Final = timedelta(days=5, hours=14)
INSTANCE_LIFE: Final = timedelta(hours=24)
LEAF_LIFE: Final = timedelta(hours=3, seconds=3)
AUTHORITY_BACKDATE: Final = timedelta(hours=1)  # the odd hour in the root's and the regional life
INSTANCE_BACKDATE: Final = timedelta(minutes=1)
LEAF_BACKDATE: Final = timedelta(seconds=3)

# Nobody serves revocation lists here; AWS tells verifiers not to fetch its own (§5.2 step 10). The name cannot resolve.
_CRL_HOST: Final = "crl.alcove.invalid"

_SEATTLE: Final = (NameOID.LOCALITY_NAME, "Seattle")
_STATE: Final = NameOID.STATE_OR_PROVINCE_NAME
_ECDSA_WITH_SHA384: Final = bytes.fromhex("300a06082a8648ce3d040303")


@dataclass(frozen=True, slots=True)
class RemoteKey:
    """A P-384 key that is somewhere else, such as on a token.

    `sign` returns the DER of an ECDSA signature over the SHA-384 of its argument.
    """

    public: EllipticCurvePublicKey
    sign: Callable[[bytes], bytes]


SigningKey = EllipticCurvePrivateKey | RemoteKey


@dataclass(frozen=True, slots=True)
class Issuer:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: SigningKey

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


def public_key(key: SigningKey) -> EllipticCurvePublicKey:
    """The public half of a key, wherever that is."""
    return key.public if isinstance(key, RemoteKey) else key.public_key()


def issue_root(
    key: SigningKey, *, serial: int, now: datetime, years: int = ROOT_YEARS, owner: Organization | None = None
) -> Issuer:
    """A self-signed root: an hour back, thirty years ahead."""
    name = _name([*(owner or Organization()).attributes, (NameOID.COMMON_NAME, "aws.nitro-enclaves")])
    issued = _second(now)
    day = issued - timedelta(days=1) if (issued.month, issued.day) == (2, 29) else issued  # not every year has one
    validity = (issued - AUTHORITY_BACKDATE, day.replace(year=day.year + years))
    builder = _builder(name, name, public_key(key), serial, validity)
    builder = _authority(builder, public_key(key), None, _Shape(path_length=None), None)
    return Issuer(_signed(builder, key), key)


def issue_regional(
    root: Issuer, key: EllipticCurvePublicKey, *, region: str, label: str, crl: str, serial: int, now: datetime
) -> x509.Certificate:
    """The certificate of a Region; `label` is 16 hexadecimal digits and `crl` a UUID."""
    owner = Organization.of(root.certificate)
    name = _name([*owner.attributes, (NameOID.COMMON_NAME, f"{label}.{region}.aws.nitro-enclaves")])
    validity = _validity(root, now, AUTHORITY_BACKDATE, REGIONAL_LIFE)
    builder = _builder(name, root.certificate.subject, key, serial, validity)
    builder = _authority(builder, key, root, _Shape(path_length=2), f"http://{_CRL_HOST}/crl/{crl}.crl")
    return _signed(builder, root.key)


def issue_zonal(
    regional: Issuer, key: EllipticCurvePublicKey, *, region: str, label: str, crl: str, serial: int, now: datetime
) -> x509.Certificate:
    """The certificate of a zone in a Region; its name has another order than the others' (§4.1)."""
    country, organization, unit = Organization.of(regional.certificate).attributes
    common_name = (NameOID.COMMON_NAME, f"{label}.zonal.{region}.aws.nitro-enclaves")
    name = _name((common_name, unit, organization, country, (_STATE, "WA"), _SEATTLE))
    url = f"http://crl-{region}.{_CRL_HOST}/crl/{crl}.crl"
    validity = _validity(regional, now, AUTHORITY_BACKDATE, ZONAL_LIFE)
    builder = _builder(name, regional.certificate.subject, key, serial, validity)
    return _signed(_authority(builder, key, regional, _Shape(path_length=1), url), regional.key)


def issue_instance(
    zonal: Issuer, key: EllipticCurvePublicKey, *, region: str, instance_id: str, serial: int, now: datetime
) -> x509.Certificate:
    """The certificate of a parent."""
    name = _place(zonal, f"{instance_id}.{region}.aws.nitro-enclaves")
    shape = _Shape(path_length=0, signs_only_certificates=True, keys_after_usage=True)
    validity = _validity(zonal, now, INSTANCE_BACKDATE, INSTANCE_LIFE)
    builder = _builder(name, zonal.certificate.subject, key, serial, validity)
    return _signed(_authority(builder, key, zonal, shape, None), zonal.key)


def issue_leaf(
    instance: Issuer, key: EllipticCurvePublicKey, *, region: str, enclave_id: str, now: datetime
) -> x509.Certificate:
    """The certificate of an enclave.

    Its serial number is the slot, four zero bytes and the time of issue; its CN lacks ``.nitro-enclaves``; keyUsage is
    not critical (§4.1). Its life is never cut short: the caller looks whether the instance lives that long.
    """
    issued = _second(now)
    slot = split_enclave_id(enclave_id)[1]
    serial = int.from_bytes(slot + bytes(4) + int(issued.timestamp()).to_bytes(4))
    start = issued - LEAF_BACKDATE
    name = _place(instance, f"{enclave_id}.{region}.aws")
    builder = (
        _builder(name, instance.certificate.subject, key, serial, (start, start + LEAF_LIFE))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True, content_commitment=True), critical=False)
    )
    return _signed(builder, instance.key)


def issue_crl(
    issuer: Issuer, revoked: Sequence[x509.RevokedCertificate], *, number: int, now: datetime, life: timedelta
) -> x509.CertificateRevocationList:
    """The list of what `issuer` has revoked, valid for `life` (RFC 5280 §5)."""
    start = _second(now)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(start)
        .next_update(start + life)
        .add_extension(_parent_id(issuer), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for entry in revoked:
        builder = builder.add_revoked_certificate(entry)
    if isinstance(issuer.key, EllipticCurvePrivateKey):
        return builder.sign(issuer.key, SHA384())
    shaped = builder.sign(_stand_in(), SHA384())
    return x509.load_der_x509_crl(_spliced(shaped.tbs_certlist_bytes, issuer.key))


def _signed(builder: x509.CertificateBuilder, key: SigningKey) -> x509.Certificate:
    if isinstance(key, EllipticCurvePrivateKey):
        return builder.sign(key, SHA384())
    shaped = builder.sign(_stand_in(), SHA384())
    return x509.load_der_x509_certificate(_spliced(shaped.tbs_certificate_bytes, key))


def _stand_in() -> EllipticCurvePrivateKey:
    """No secret: `cryptography` encodes what is to be signed only together with a signature, which is thrown away."""
    return derive_private_key(1, SECP384R1())


def _spliced(signed: bytes, key: RemoteKey) -> bytes:
    """The DER of `signed` with a signature by a key that `cryptography` does not hold."""
    signature = key.sign(signed)
    try:
        key.public.verify(signature, signed, ECDSA(SHA384()))
    except (InvalidSignature, ValueError):
        raise MachineError("the token made a signature that its own public key does not accept") from None
    return encode(der.SEQUENCE, signed, _ECDSA_WITH_SHA384, encode(der.BIT_STRING, b"\0", signature))


def _validity(parent: Issuer, now: datetime, backdate: timedelta, life: timedelta) -> tuple[datetime, datetime]:
    start = _second(now) - backdate
    return start, min(start + life, parent.certificate.not_valid_after_utc)


def _second(now: datetime) -> datetime:
    """Certificates count in seconds."""
    return now.astimezone(UTC).replace(microsecond=0)


def _name(attributes: Sequence[tuple[x509.ObjectIdentifier, str]]) -> x509.Name:
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])


def _place(parent: Issuer, common_name: str) -> x509.Name:
    country, organization, unit = Organization.of(parent.certificate).attributes
    name = (country, (_STATE, "Washington"), _SEATTLE, organization, unit, (NameOID.COMMON_NAME, common_name))
    return _name(name)


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
