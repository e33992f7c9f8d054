"""What each mechanism is: how it pads, what it hashes with, which keys it takes (acm.md §5.2).

Core: a table.

Two profiles. `tls` is what a TLS server needs and no more: signatures with SHA-256 and longer hashes, so that whoever
holds the PIN can neither decrypt with the key nor have it raised to a number of his choice. `full` is AWS's list, and
OAEP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final

from cryptography.hazmat.primitives import hashes

from alcove.apps.acm.cryptoki import Ckg, Ckk, Ckm, Ckr, MechanismFlag, Refused
from alcove.apps.acm.values import Mechanism, OaepParameters, PssParameters

MIN_RSA: Final = 1024  # bits
MAX_RSA: Final = 8192
MIN_EC: Final = 224
MAX_EC: Final = 521
CKZ_DATA_SPECIFIED: Final = 1  # OAEP's label comes with the parameter


class Profile(StrEnum):
    """How much of PKCS#11 a token's keys are for."""

    TLS = "tls"
    FULL = "full"


class Scheme(Enum):
    """What is done with a key."""

    DIGEST = auto()
    PKCS1 = auto()
    RAW = auto()
    PSS = auto()
    OAEP = auto()
    ECDSA = auto()


HASHES: Final[dict[int, hashes.HashAlgorithm]] = {
    Ckm.SHA_1: hashes.SHA1(),  # noqa: S303 - the list has it; the profile "tls" does not
    Ckm.SHA224: hashes.SHA224(),
    Ckm.SHA256: hashes.SHA256(),
    Ckm.SHA384: hashes.SHA384(),
    Ckm.SHA512: hashes.SHA512(),
}
MASKS: Final[dict[int, int]] = {
    Ckg.MGF1_SHA1: Ckm.SHA_1,
    Ckg.MGF1_SHA224: Ckm.SHA224,
    Ckg.MGF1_SHA256: Ckm.SHA256,
    Ckg.MGF1_SHA384: Ckm.SHA384,
    Ckg.MGF1_SHA512: Ckm.SHA512,
}
TLS_HASHES: Final = frozenset({Ckm.SHA256, Ckm.SHA384, Ckm.SHA512})  # RFC 8446 §4.2.3


@dataclass(frozen=True, slots=True)
class Spec:
    """One mechanism.

    Attributes:
        type: Its number.
        scheme: What it does.
        hash: The hash that it makes itself; None where the caller has hashed.
        flags: CK_MECHANISM_INFO.flags.
    """

    type: Ckm
    scheme: Scheme
    hash: Ckm | None
    flags: MechanismFlag

    @property
    def key_type(self) -> Ckk | None:
        """The keys that it takes; None for digests."""
        if self.scheme is Scheme.ECDSA:
            return Ckk.EC
        return None if self.scheme is Scheme.DIGEST else Ckk.RSA

    @property
    def sizes(self) -> tuple[int, int]:
        """The smallest and the largest key in bits."""
        return {None: (0, 0), Ckk.EC: (MIN_EC, MAX_EC), Ckk.RSA: (MIN_RSA, MAX_RSA)}[self.key_type]


_SIGN: Final = MechanismFlag.HW | MechanismFlag.SIGN | MechanismFlag.VERIFY
_CRYPT: Final = MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT
_CURVES: Final = MechanismFlag.EC_F_P | MechanismFlag.EC_NAMEDCURVE | MechanismFlag.EC_UNCOMPRESS
_HASH_NAMES: Final = {
    Ckm.SHA_1: "SHA1",
    Ckm.SHA224: "SHA224",
    Ckm.SHA256: "SHA256",
    Ckm.SHA384: "SHA384",
    Ckm.SHA512: "SHA512",
}


def _full() -> dict[int, Spec]:
    specs = [
        Spec(Ckm.RSA_PKCS, Scheme.PKCS1, None, _SIGN | _CRYPT),
        Spec(Ckm.RSA_X_509, Scheme.RAW, None, _SIGN | _CRYPT),
        Spec(Ckm.RSA_PKCS_OAEP, Scheme.OAEP, None, MechanismFlag.HW | _CRYPT),
        Spec(Ckm.RSA_PKCS_PSS, Scheme.PSS, None, _SIGN),
        Spec(Ckm.ECDSA, Scheme.ECDSA, None, _SIGN | _CURVES),
    ]
    for digest, name in _HASH_NAMES.items():
        specs += [
            Spec(digest, Scheme.DIGEST, digest, MechanismFlag.HW | MechanismFlag.DIGEST),
            Spec(Ckm[f"{name}_RSA_PKCS"], Scheme.PKCS1, digest, _SIGN),
            Spec(Ckm[f"{name}_RSA_PKCS_PSS"], Scheme.PSS, digest, _SIGN),
            Spec(Ckm[f"ECDSA_{name}"], Scheme.ECDSA, digest, _SIGN | _CURVES),
        ]
    return {int(spec.type): spec for spec in sorted(specs, key=lambda spec: spec.type)}


def _tls(full: Mapping[int, Spec]) -> dict[int, Spec]:
    kept = {}
    for number, spec in full.items():
        weak = spec.hash is not None and spec.hash not in TLS_HASHES and spec.scheme is not Scheme.DIGEST
        if not weak and spec.scheme not in {Scheme.RAW, Scheme.OAEP}:
            kept[number] = Spec(spec.type, spec.scheme, spec.hash, spec.flags & ~_CRYPT)
    return kept


_FULL: Final = _full()
SPECS: Final[dict[Profile, dict[int, Spec]]] = {Profile.FULL: _FULL, Profile.TLS: _tls(_FULL)}


def pss_hashes(spec: Spec, mechanism: Mechanism, profile: Profile) -> tuple[Ckm, Ckm, int]:
    """The hash of the data, that of the mask, and the salt's length in bytes.

    Raises:
        Refused: The parameter is missing, names hashes that are not offered, or another than the mechanism's.
    """
    parameter = mechanism.parameter
    if not isinstance(parameter, PssParameters) or parameter.salt_length > MAX_RSA // 8:
        raise Refused(Ckr.MECHANISM_PARAM_INVALID)
    digest, mask = _hash_pair(parameter.hash, parameter.mgf)
    if spec.hash is not None and digest != spec.hash:
        raise Refused(Ckr.MECHANISM_PARAM_INVALID)
    if profile is Profile.TLS and not {digest, mask} <= TLS_HASHES:
        raise Refused(Ckr.MECHANISM_PARAM_INVALID)
    return digest, mask, parameter.salt_length


def oaep_hashes(mechanism: Mechanism) -> tuple[Ckm, Ckm, bytes]:
    """The hash of the label, that of the mask, and the label.

    Raises:
        Refused: The parameter is missing, or names something that is not offered.
    """
    parameter = mechanism.parameter
    if not isinstance(parameter, OaepParameters) or parameter.source not in {0, CKZ_DATA_SPECIFIED}:
        raise Refused(Ckr.MECHANISM_PARAM_INVALID)
    return *_hash_pair(parameter.hash, parameter.mgf), parameter.label or b""


def _hash_pair(digest: int, mgf: int) -> tuple[Ckm, Ckm]:
    mask = MASKS.get(mgf)
    if digest not in HASHES or mask is None:
        raise Refused(Ckr.MECHANISM_PARAM_INVALID)
    return Ckm(digest), Ckm(mask)
