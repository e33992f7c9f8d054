"""Signing, verifying, encrypting and decrypting with a mechanism: data in, results or return values out."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature, encode_dss_signature

from alcove.apps.acm import rsa_raw
from alcove.apps.acm.cryptoki import Ckm, Ckr, Refused
from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.mechanisms import HASHES, TLS_HASHES, Profile, Scheme, Spec, oaep_hashes, pss_hashes
from alcove.apps.acm.values import Mechanism

Random = Callable[[int], bytes]
# RFC 8017 §9.2, note 1: DigestInfo up to the hash
_DIGEST_INFO: Final[dict[bytes, Ckm]] = {
    bytes.fromhex("3021300906052b0e03021a05000414"): Ckm.SHA_1,
    bytes.fromhex("302d300d06096086480165030402040500041c"): Ckm.SHA224,
    bytes.fromhex("3031300d060960864801650304020105000420"): Ckm.SHA256,
    bytes.fromhex("3041300d060960864801650304020205000430"): Ckm.SHA384,
    bytes.fromhex("3051300d060960864801650304020305000440"): Ckm.SHA512,
}
_BY_LENGTH: Final = {digest.digest_size: Ckm(kind) for kind, digest in HASHES.items()}


class Digest:
    """A hash that is being made."""

    def __init__(self, kind: Ckm) -> None:
        self._hash = hashes.Hash(HASHES[kind])
        self.length = HASHES[kind].digest_size

    def update(self, data: bytes) -> None:
        """Take more data."""
        self._hash.update(data)

    def finish(self) -> bytes:
        """The hash."""
        return self._hash.finalize()


class Signature:
    """A signature that is being made or verified.

    Args:
        key: The key.
        spec: The mechanism, which fits the key.
        mechanism: With its parameter.
        profile: What the token is for.
        random: Makes unpredictable bytes.

    Raises:
        Refused: The parameter will not do.
    """

    def __init__(self, key: KeyPair, spec: Spec, mechanism: Mechanism, profile: Profile, random: Random) -> None:
        self.length = key.signature_length
        self._key, self._spec, self._profile, self._random = key, spec, profile, random
        self._pss = pss_hashes(spec, mechanism, profile) if spec.scheme is Scheme.PSS else None
        if spec.scheme is not Scheme.PSS and mechanism.parameter:
            raise Refused(Ckr.MECHANISM_PARAM_INVALID)
        if self._pss and self._pss[2] > key.bytes - 2 - HASHES[self._pss[0]].digest_size:
            raise Refused(Ckr.MECHANISM_PARAM_INVALID)
        self._digest = Digest(spec.hash) if spec.hash is not None else None
        self.started = False

    def update(self, data: bytes) -> None:
        """Take more data.

        Raises:
            Refused: The caller hashes, and must give the hash at once.
        """
        if self._digest is None:
            raise Refused(Ckr.FUNCTION_NOT_SUPPORTED)
        self.started = True
        self._digest.update(data)

    def sign(self, data: bytes = b"") -> bytes:
        """The signature, with the last of the data.

        Raises:
            Refused: The data cannot be signed with this mechanism.
        """
        value = self._value(data)
        private = self._key.private
        if isinstance(private, ec.EllipticCurvePrivateKey):
            return self._sign_ec(private, *self._for_ec(value))
        if self._pss:
            digest, mask, salt = self._pss
            return private.sign(value, _pss_padding(mask, salt), _prehashed(digest))
        if self._spec.scheme is Scheme.RAW:
            return rsa_raw.private_operation(private, value, self._random)
        kind, hashed = self._for_pkcs1(value)
        if kind is not None:
            return private.sign(hashed, padding.PKCS1v15(), _prehashed(kind))
        return rsa_raw.private_operation(private, rsa_raw.block_type_1(value, self.length), self._random)

    def verify(self, signature: bytes, data: bytes = b"") -> None:
        """Return when the signature is right.

        Raises:
            Refused: It is not, or the data cannot have been signed with this mechanism.
        """
        if len(signature) != self.length:
            raise Refused(Ckr.SIGNATURE_LEN_RANGE)
        try:
            self._verify(signature, self._value(data))
        except InvalidSignature:
            raise Refused(Ckr.SIGNATURE_INVALID) from None

    def _verify(self, signature: bytes, value: bytes) -> None:
        public = self._key.public
        if isinstance(public, ec.EllipticCurvePublicKey):
            half = self._key.bytes
            encoded = encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))
            kind, hashed = self._for_ec(value)
            public.verify(encoded, hashed, _ecdsa(kind))
        elif self._pss:
            digest, mask, salt = self._pss
            public.verify(signature, value, _pss_padding(mask, salt), _prehashed(digest))
        else:
            self._verify_block(public, signature, value)

    def _verify_block(self, public: rsa.RSAPublicKey, signature: bytes, value: bytes) -> None:
        """The block that the public key shows must be the one that would have been signed, whole."""
        if self._spec.scheme is Scheme.RAW:
            expected = value.rjust(self.length, b"\0")
        else:
            kind, hashed = self._for_pkcs1(value)
            prefix = b"" if kind is None else next(head for head, of in _DIGEST_INFO.items() if of is kind)
            expected = rsa_raw.block_type_1(prefix + hashed, self.length)
        try:
            shown = rsa_raw.public_operation(public, signature)
        except Refused:
            raise InvalidSignature from None
        if not hmac.compare_digest(shown, expected):
            raise InvalidSignature

    def _value(self, data: bytes) -> bytes:
        """The hash, or what the caller gave in its place."""
        if self._digest is not None:
            self._digest.update(data)
            return self._digest.finish()
        if self._pss and len(data) != HASHES[self._pss[0]].digest_size:
            raise Refused(Ckr.DATA_LEN_RANGE)
        return data

    def _for_pkcs1(self, value: bytes) -> tuple[Ckm | None, bytes]:
        """The hash that stands in a DigestInfo; None and the data for anything else, which only `full` signs."""
        if self._spec.hash is not None:
            return self._spec.hash, value
        for prefix, kind in _DIGEST_INFO.items():
            if value.startswith(prefix) and len(value) == len(prefix) + HASHES[kind].digest_size:
                if self._profile is Profile.TLS and kind not in TLS_HASHES:
                    break
                return kind, value[len(prefix) :]
        if self._profile is Profile.TLS:
            raise Refused(Ckr.DATA_INVALID)
        return None, value

    def _for_ec(self, value: bytes) -> tuple[Ckm, bytes]:
        """A hash of a known length that gives the same number (FIPS 186-5 §6.4.1: the leftmost bits count)."""
        if len(value) not in _BY_LENGTH:
            value = value[: self._key.bytes]
            fitting = [length for length in sorted(_BY_LENGTH) if len(value) <= length <= self._key.bytes]
            if not value or not fitting:
                raise Refused(Ckr.DATA_LEN_RANGE)
            value = value.rjust(fitting[0], b"\0")
        kind = _BY_LENGTH[len(value)]
        if self._profile is Profile.TLS and kind not in TLS_HASHES:
            raise Refused(Ckr.DATA_LEN_RANGE)
        return kind, value

    def _sign_ec(self, private: ec.EllipticCurvePrivateKey, kind: Ckm, hashed: bytes) -> bytes:
        r, s = decode_dss_signature(private.sign(hashed, _ecdsa(kind)))
        return r.to_bytes(self._key.bytes) + s.to_bytes(self._key.bytes)


class Encryption:
    """One encryption or decryption with an RSA key; see `Signature` for the arguments."""

    def __init__(self, key: KeyPair, spec: Spec, mechanism: Mechanism, random: Random) -> None:
        self.length = key.bytes
        self._key, self._random = key, random
        self._padding: padding.AsymmetricPadding | None = None
        if spec.scheme is Scheme.OAEP:
            digest, mask, label = oaep_hashes(mechanism)
            self._padding = padding.OAEP(padding.MGF1(HASHES[mask]), HASHES[digest], label)
        elif mechanism.parameter:
            raise Refused(Ckr.MECHANISM_PARAM_INVALID)
        elif spec.scheme is Scheme.PKCS1:
            self._padding = padding.PKCS1v15()

    def encrypt(self, data: bytes) -> bytes:
        """The ciphertext.

        Raises:
            Refused: The data is too long.
        """
        public = self._key.public
        if not isinstance(public, rsa.RSAPublicKey):
            raise Refused(Ckr.KEY_TYPE_INCONSISTENT)
        if self._padding is None:
            return rsa_raw.public_operation(public, data)
        try:
            return public.encrypt(data, self._padding)
        except ValueError:
            raise Refused(Ckr.DATA_LEN_RANGE) from None

    def decrypt(self, data: bytes) -> bytes:
        """The plaintext.

        Raises:
            Refused: The data is no ciphertext of this key.
        """
        private = self._key.private
        if not isinstance(private, rsa.RSAPrivateKey):
            raise Refused(Ckr.KEY_TYPE_INCONSISTENT)
        if len(data) != self.length:
            raise Refused(Ckr.ENCRYPTED_DATA_LEN_RANGE)
        try:
            if self._padding is None:
                return rsa_raw.private_operation(private, data, self._random)
            return private.decrypt(data, self._padding)
        except (ValueError, Refused):
            raise Refused(Ckr.ENCRYPTED_DATA_INVALID) from None


@cache
def _prehashed(kind: Ckm) -> Prehashed:
    return Prehashed(HASHES[kind])


@cache
def _ecdsa(kind: Ckm) -> ec.ECDSA:
    return ec.ECDSA(_prehashed(kind))


def _pss_padding(mask: Ckm, salt_length: int) -> padding.PSS:
    return padding.PSS(padding.MGF1(HASHES[mask]), salt_length)
