"""Key specs: which usages and algorithms a key has (kms.md §12).

Core: a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from alcove.kms.errors import KmsError, unsupported, validation

SYMMETRIC: Final = "SYMMETRIC_DEFAULT"
ENCRYPT: Final = "ENCRYPT_DECRYPT"
SIGN: Final = "SIGN_VERIFY"
MAC: Final = "GENERATE_VERIFY_MAC"
AGREE: Final = "KEY_AGREEMENT"
ENCAPSULATE: Final = "ENCAPSULATE_DECAPSULATE"
MEMBERS: Final = {  # §2.4: the member of KeyMetadata and of GetPublicKey for each usage
    ENCRYPT: "EncryptionAlgorithms",
    SIGN: "SigningAlgorithms",
    MAC: "MacAlgorithms",
    AGREE: "KeyAgreementAlgorithms",
    ENCAPSULATE: "EncapsulationAlgorithms",
}
_HASHES: Final = ("SHA_256", "SHA_384", "SHA_512")
_RSA_SIGN: Final = tuple(f"RSASSA_{scheme}_{name}" for scheme in ("PKCS1_V1_5", "PSS") for name in _HASHES)


@dataclass(frozen=True, slots=True)
class KeySpec:
    """A kind of key.

    Attributes:
        name: AWS's name of it.
        algorithms: For each usage that it may have, the algorithms.
        pair: Whether it is a key pair, with a public half.
        slow: Whether making one takes longer than a request may hold up others (§27).
    """

    name: str
    algorithms: Mapping[str, tuple[str, ...]]
    pair: bool = True
    slow: bool = False


def _specs() -> list[KeySpec]:
    rsa = {ENCRYPT: ("RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"), SIGN: _RSA_SIGN}
    curves = {"ECC_NIST_P256": "SHA_256", "ECC_NIST_P384": "SHA_384", "ECC_NIST_P521": "SHA_512"}
    return [
        KeySpec(SYMMETRIC, {ENCRYPT: (SYMMETRIC,)}, pair=False),
        *(KeySpec(f"RSA_{bits}", rsa, slow=True) for bits in (2048, 3072, 4096)),
        *(KeySpec(name, {SIGN: (f"ECDSA_{digest}",), AGREE: ("ECDH",)}) for name, digest in curves.items()),
        KeySpec("ECC_SECG_P256K1", {SIGN: ("ECDSA_SHA_256",)}),
        KeySpec("ECC_NIST_EDWARDS25519", {SIGN: ("ED25519_SHA_512", "ED25519_PH_SHA_512")}),
        *(KeySpec(f"HMAC_{bits}", {MAC: (f"HMAC_SHA_{bits}",)}, pair=False) for bits in (224, 256, 384, 512)),
        *(KeySpec(f"ML_DSA_{size}", {SIGN: ("ML_DSA_SHAKE_256",)}) for size in (44, 65, 87)),
        *(KeySpec(f"ML_KEM_{size}", {ENCAPSULATE: ("ML_KEM",)}) for size in (768, 1024)),  # no ML_KEM_512: ADR 14
    ]


SPECS: Final[Mapping[str, KeySpec]] = {spec.name: spec for spec in _specs()}


def spec_of(name: str) -> KeySpec:
    """The spec of this name.

    Raises:
        KmsError: UnsupportedOperationException.
    """
    if name not in SPECS:
        raise unsupported(f"keys of spec {name} are not served")
    return SPECS[name]


def check_usage(spec: KeySpec, usage: str) -> None:
    """Refuses a usage that keys of a spec cannot have.

    Raises:
        KmsError: ValidationException.
    """
    if usage not in spec.algorithms:
        raise validation(f"KeyUsage {usage} is not compatible with KeySpec {spec.name}")


def check_algorithm(spec: str, usage: str, algorithm: str) -> None:
    """Refuses an algorithm that a key does not have.

    Raises:
        KmsError: InvalidKeyUsageException, in the recorded words (§10.3).
    """
    if algorithm not in SPECS[spec].algorithms[usage]:
        raise KmsError("InvalidKeyUsageException", f"Algorithm {algorithm} is incompatible with key spec {spec}.")
