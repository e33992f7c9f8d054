"""Keys on an open token: finding one, reading its public half, signing with it.

The private half never leaves the token. Digests are computed here, so that a token needs CKM_ECDSA alone.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

import pkcs11
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from alcove.errors import MachineError, UsageError
from alcove.pkcs11.uri import Pkcs11Uri

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_CURVES: Final[dict[bytes, ec.EllipticCurve]] = {  # CKA_EC_PARAMS: the DER of the curve's OID (SEC 2 §A.2)
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("06052b81040022"): ec.SECP384R1(),
    bytes.fromhex("06052b81040023"): ec.SECP521R1(),
    bytes.fromhex("06052b8104000a"): ec.SECP256K1(),
}
_RSA: Final[dict[str, Mechanism]] = {
    "sha256": Mechanism.SHA256_RSA_PKCS,
    "sha384": Mechanism.SHA384_RSA_PKCS,
    "sha512": Mechanism.SHA512_RSA_PKCS,
}
_UNREADABLE: Final = (AttributeError, LookupError, ValueError, TypeError, UnsupportedAlgorithm, pkcs11.PKCS11Error)


def reason(error: Exception) -> str:
    """What a PKCS#11 error says; most have a name and no text."""
    return str(error) or type(error).__name__


class TokenKey:
    """A private key on a token, while its session is open; several threads may use it.

    Args:
        private: The key object.
        public_key: Its public half.
        pin: For keys that ask for it before each use (CKA_ALWAYS_AUTHENTICATE), else None.
    """

    def __init__(self, private: Any, public_key: PublicKey, pin: str | None) -> None:
        self.public_key = public_key
        self._private = private
        self._lock = threading.Lock()
        self._options = {} if pin is None else {"pin": pin}

    def sign(self, data: bytes, digest: hashes.HashAlgorithm) -> bytes:
        """A signature over the digest of `data`: ECDSA in DER, or RSA PKCS#1 v1.5.

        Raises:
            UsageError: An RSA key and a digest other than SHA-256, SHA-384 and SHA-512.
            MachineError: The token refused.
        """
        if isinstance(self.public_key, rsa.RSAPublicKey):
            if digest.name not in _RSA:
                raise UsageError(f"a token's RSA key does not sign with {digest.name}")
            return self._sign(data, _RSA[digest.name])
        order_bytes = (self.public_key.curve.key_size + 7) // 8
        raw = self._sign(_digest(data, digest)[:order_bytes], Mechanism.ECDSA)  # FIPS 186-5 §6.4: leftmost bits
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))

    def _sign(self, data: bytes, mechanism: Mechanism) -> bytes:
        try:
            with self._lock:
                return bytes(self._private.sign(data, mechanism=mechanism, **self._options))
        except pkcs11.PKCS11Error as error:
            raise MachineError(f"the token did not sign: {reason(error)}") from error


def find_key(session: Any, uri: Pkcs11Uri, pin: str | None) -> TokenKey:
    """The one private key that the URI names.

    Raises:
        UsageError: None, or several, or one of a kind that is not known, or one that may not sign.
        MachineError: The token holds no public half of it.
    """
    if uri.type not in {None, "private"}:
        raise UsageError(f"the URI names an object of type {uri.type}", hint="leave out type=, or use type=private")
    wanted = {Attribute.LABEL: uri.object, Attribute.ID: uri.id}
    named = {name: value for name, value in wanted.items() if value is not None}
    found = _objects(session, ObjectClass.PRIVATE_KEY, named)
    if not found:
        raise _nothing(session, named)
    if len(found) > 1:
        raise UsageError("several private keys on the token match", hint="name one with object= and id=")
    private = found[0]
    if _read(private, Attribute.SIGN) is False:
        raise UsageError("the key on the token is not for signing", hint="its CKA_SIGN is false")
    always = _read(private, Attribute.ALWAYS_AUTHENTICATE) is True
    return TokenKey(private, _public_key(session, private), pin if always else None)


def _nothing(session: Any, named: Mapping[Attribute, Any]) -> UsageError:
    kinds = {ObjectClass.PUBLIC_KEY: "public key", ObjectClass.CERTIFICATE: "certificate"}
    beside = [word for kind, word in kinds.items() if named and _objects(session, kind, named)]
    if beside:
        return UsageError(f"the token holds a {beside[0]} of that name and no private key")
    labels = sorted({str(_read(key, Attribute.LABEL)) for key in _objects(session, ObjectClass.PRIVATE_KEY, {})})
    hint = f"it holds: {', '.join(labels[:8])}" if labels else "it holds no private key that this PIN opens"
    return UsageError("no private key on the token matches", hint=hint)


def _public_key(session: Any, private: Any) -> PublicKey:
    """From the private object, or from the public key or certificate that goes with it."""
    kind = _read(private, Attribute.KEY_TYPE)
    if kind not in {KeyType.EC, KeyType.RSA}:
        raise UsageError(f"keys of type {getattr(kind, 'name', kind)} are not served", hint="use an EC or RSA key")
    names = {name: value for name in (Attribute.ID, Attribute.LABEL) if (value := _read(private, name))}
    beside = [{name: value} for name, value in names.items()]
    publics = [found for by in beside for found in _objects(session, ObjectClass.PUBLIC_KEY, by)]
    certificates = [found for by in beside for found in _objects(session, ObjectClass.CERTIFICATE, by)]
    for candidate in (private, *publics):
        if (key := _of_object(candidate, kind)) is not None:
            return key
    for certificate in certificates:
        if (key := _of_certificate(certificate)) is not None:
            return key
    raise MachineError(
        "the token holds no public key for this private key",
        hint="store the public key or the certificate beside it, with the same id",
    )


def _of_object(candidate: Any, kind: KeyType) -> PublicKey | None:
    try:
        if kind is KeyType.RSA:
            modulus, exponent = (candidate[name] for name in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT))
            return rsa.RSAPublicNumbers(int.from_bytes(exponent), int.from_bytes(modulus)).public_key()
        curve = _CURVES[candidate[Attribute.EC_PARAMS]]
        point = candidate[Attribute.EC_POINT][-(1 + 2 * ((curve.key_size + 7) // 8)) :]  # bare, or in an OCTET STRING
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    except _UNREADABLE:
        return None


def _of_certificate(certificate: Any) -> PublicKey | None:
    try:
        key = x509.load_der_x509_certificate(certificate[Attribute.VALUE]).public_key()
    except _UNREADABLE:
        return None
    return key if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) else None


def _objects(session: Any, kind: ObjectClass, named: Mapping[Attribute, Any]) -> list[Any]:
    return list(session.get_objects({Attribute.CLASS: kind, **named}))


def _read(found: Any, name: Attribute) -> Any:
    try:
        return found[name]
    except _UNREADABLE:
        return None


def _digest(data: bytes, digest: hashes.HashAlgorithm) -> bytes:
    hasher = hashes.Hash(digest)
    hasher.update(data)
    return hasher.finalize()
