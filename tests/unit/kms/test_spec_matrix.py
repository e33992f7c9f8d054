"""Operations that are no cryptography × key specs, and every spec × every usage (kms.md §12, §14, §15, §17).

The other half of the matrix in `test_fitness`, which has the cryptographic operations.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import botocore.loaders
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.kms.in_process import InProcess, in_process

pytestmark = pytest.mark.slow

SHAPES = botocore.loaders.Loader().load_service_model("kms", "service-2")["shapes"]
USE, VAL, UNS = "InvalidKeyUsageException", "ValidationException", "UnsupportedOperationException"
CURVES = {"ECC_NIST_P256": ec.SECP256R1(), "ECC_NIST_P384": ec.SECP384R1(), "ECC_NIST_P521": ec.SECP521R1()}
RSA, AGREEING = ("RSA_2048", "RSA_3072", "RSA_4096"), tuple(CURVES)
ECC = (*AGREEING, "ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519")
HMAC, ML_DSA = ("HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512"), ("ML_DSA_44", "ML_DSA_65", "ML_DSA_87")
ML_KEM = ("ML_KEM_768", "ML_KEM_1024")
USAGES = {  # §12, written out
    "ENCRYPT_DECRYPT": ("SYMMETRIC_DEFAULT", *RSA),
    "SIGN_VERIFY": (*RSA, *ECC, *ML_DSA),
    "KEY_AGREEMENT": AGREEING,
    "GENERATE_VERIFY_MAC": HMAC,
    "ENCAPSULATE_DECAPSULATE": ML_KEM,
}
NOT_SERVED = {"SM2", "ML_KEM_512"}
KINDS = [(spec, usage) for usage, specs in USAGES.items() for spec in specs]
GRANTABLE = {  # §17, written out
    "ENCRYPT_DECRYPT": {"Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo"},
    "SIGN_VERIFY": {"Sign", "Verify"},
    "KEY_AGREEMENT": {"DeriveSharedSecret"},
    "GENERATE_VERIFY_MAC": {"GenerateMac", "VerifyMac"},
    "ENCAPSULATE_DECAPSULATE": {"Encapsulate", "Decapsulate"},
}
ALWAYS = {"DescribeKey", "CreateGrant", "RetireGrant"}
DATA_KEYS = {f"GenerateDataKey{more}" for more in ("", "WithoutPlaintext", "Pair", "PairWithoutPlaintext")}


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with in_process(tmp_path_factory.mktemp("kms")) as service:
        yield service


@pytest.fixture(scope="module")
def keys(kms: InProcess) -> dict[tuple[str, str], str]:
    """One key of each spec and usage."""
    return {
        (spec, usage): kms.call("CreateKey", KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["KeyId"]
        for spec, usage in KINDS
    }


def outcome(kms: InProcess, operation: str, **members: Any) -> str:
    """The class of the error, or nothing."""
    answer = kms.send(operation, json.dumps(members).encode())
    return "" if answer.status == 200 else str(json.loads(answer.body)["__type"])


@pytest.mark.parametrize("usage", SHAPES["KeyUsageType"]["enum"])
@pytest.mark.parametrize("spec", SHAPES["KeySpec"]["enum"])
def test_every_spec_with_every_usage(kms: InProcess, spec: str, usage: str) -> None:
    """A key is made where spec and usage fit, of either origin; the rest of the model is refused."""
    expected = UNS if spec in NOT_SERVED else "" if spec in USAGES[usage] else VAL
    assert outcome(kms, "CreateKey", KeySpec=spec, KeyUsage=usage) == expected
    assert outcome(kms, "CreateKey", KeySpec=spec, KeyUsage=usage, Origin="EXTERNAL") == expected
    assert outcome(kms, "CreateKey", KeySpec=spec) == ("" if spec == "SYMMETRIC_DEFAULT" else VAL)


def test_the_table_is_the_models() -> None:
    """No spec or usage of the model is forgotten."""
    assert {spec for spec, _ in KINDS} | NOT_SERVED == set(SHAPES["KeySpec"]["enum"])
    assert set(USAGES) == set(SHAPES["KeyUsageType"]["enum"])
    granted = set().union(*GRANTABLE.values()) | ALWAYS | DATA_KEYS | {"GetPublicKey"}
    assert granted == set(SHAPES["GrantOperation"]["enum"])


@pytest.mark.parametrize(("spec", "usage"), KINDS)
def test_what_a_key_can_be_asked(kms: InProcess, keys: dict[tuple[str, str], str], spec: str, usage: str) -> None:
    """Public halves, rotation, shared secrets and re-encryption, by the kind of key."""
    key, symmetric = keys[spec, usage], spec == "SYMMETRIC_DEFAULT"
    assert outcome(kms, "GetPublicKey", KeyId=key) == (UNS if symmetric or spec in HMAC else "")
    for operation in ("EnableKeyRotation", "RotateKeyOnDemand", "ListKeyRotations", "DisableKeyRotation"):
        assert outcome(kms, operation, KeyId=key) == ("" if symmetric else UNS)
    assert outcome(kms, "GetKeyRotationStatus", KeyId=key) == ""
    peer = ec.generate_private_key(CURVES.get(spec, ec.SECP256R1())).public_key()
    spki = peer.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    asked = {"KeyId": key, "KeyAgreementAlgorithm": "ECDH", "PublicKey": base64.b64encode(spki).decode()}
    assert outcome(kms, "DeriveSharedSecret", **asked) == ("" if usage == "KEY_AGREEMENT" else USE)
    sealed = kms.call("Encrypt", KeyId=keys["SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"], Plaintext="eA==")["CiphertextBlob"]
    way = {} if symmetric else {"DestinationEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
    moved = outcome(kms, "ReEncrypt", CiphertextBlob=sealed, DestinationKeyId=key, **way)
    assert moved == ("" if usage == "ENCRYPT_DECRYPT" else USE)


@pytest.mark.parametrize(("spec", "usage"), KINDS)
def test_what_a_grant_can_give(kms: InProcess, keys: dict[tuple[str, str], str], spec: str, usage: str) -> None:
    """Each grant operation of the model is granted or refused as the kind of key allows."""
    fitting = ALWAYS | GRANTABLE[usage]
    fitting |= DATA_KEYS if spec == "SYMMETRIC_DEFAULT" else set() if spec in HMAC else {"GetPublicKey"}
    for operation in SHAPES["GrantOperation"]["enum"]:
        asked = {"KeyId": keys[spec, usage], "GranteePrincipal": "111122223333", "Operations": [operation]}
        assert outcome(kms, "CreateGrant", **asked) == ("" if operation in fitting else VAL)


@pytest.mark.parametrize(("spec", "usage"), KINDS)
@pytest.mark.parametrize("algorithm", SHAPES["AlgorithmSpec"]["enum"])
def test_what_can_be_wrapped_how(kms: InProcess, spec: str, usage: str, algorithm: str) -> None:
    """Key pairs too long for OAEP need a key in between; PKCS#1 v1.5 and SM2 are served for none (kms.md §15)."""
    key = kms.call("CreateKey", KeySpec=spec, KeyUsage=usage, Origin="EXTERNAL")["KeyMetadata"]["KeyId"]
    direct, wrapping = algorithm.startswith("RSAES_OAEP"), algorithm.startswith("RSA_AES_KEY_WRAP")
    long = spec in {*RSA, *ML_DSA, *ML_KEM}
    for size in ("RSA_2048", "RSA_4096"):
        fits = wrapping or (direct and not long and (spec, size) != ("ECC_NIST_P521", "RSA_2048"))
        way = {"WrappingAlgorithm": algorithm, "WrappingKeySpec": size}
        assert outcome(kms, "GetParametersForImport", KeyId=key, **way) == ("" if fits else UNS)
