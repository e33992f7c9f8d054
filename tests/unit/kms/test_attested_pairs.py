"""Key pairs for the proven alone: data key pairs, shared secrets and RSA plaintexts in the recipient's envelope."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.kms.authority_harness import GOOD, Enclave, spki
from tests.unit.kms.server_harness import ROOT_ARN, RunningKms, refused

from alcove.attestation.attester import Attester

OTHER = GOOD | {0: b"\x0b" * 48}


@pytest.fixture(scope="module")
def kms(trusting_kms: RunningKms) -> RunningKms:
    return trusting_kms


def pinned(kms: RunningKms, **kind: str) -> str:
    """A key that the application uses only from the image with PCR0 of `GOOD`; the administrator may encrypt."""
    actions = ["kms:PutKeyPolicy", "kms:DescribeKey", "kms:Encrypt", "kms:GetPublicKey"]
    condition = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": GOOD[0].hex()}}
    used = ["kms:Decrypt", "kms:GenerateDataKeyPair", "kms:DeriveSharedSecret"]
    statements = [
        {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": actions, "Resource": "*"},
        {
            "Effect": "Allow",
            "Principal": {"AWS": kms.app_user.arn},
            "Action": used,
            "Resource": "*",
            "Condition": condition,
        },
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    return str(kms.admin.create_key(Policy=policy, **kind)["KeyMetadata"]["KeyId"])


@pytest.mark.parametrize("spec", ["ECC_NIST_P384", "RSA_4096", "ML_KEM_768"])
def test_a_private_key_comes_in_an_envelope(kms: RunningKms, attester: Attester, spec: str) -> None:
    """It is the public key's and the blob's; no plaintext is beside it."""
    enclave, key_id = Enclave(attester, GOOD), pinned(kms)
    made = kms.app.generate_data_key_pair(KeyId=key_id, KeyPairSpec=spec, Recipient=enclave.recipient())
    expected = {
        "PrivateKeyCiphertextBlob",
        "PublicKey",
        "KeyId",
        "KeyPairSpec",
        "KeyMaterialId",
        "CiphertextForRecipient",
    }
    assert set(made) - {"ResponseMetadata"} == expected
    der = enclave.open(made["CiphertextForRecipient"])
    private: Any = serialization.load_der_private_key(der, None)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    assert private.public_key().public_bytes(serialization.Encoding.DER, form) == made["PublicKey"]
    again = kms.app.decrypt(CiphertextBlob=made["PrivateKeyCiphertextBlob"], Recipient=enclave.recipient())
    assert enclave.open(again["CiphertextForRecipient"]) == der


def test_a_shared_secret_comes_in_an_envelope(kms: RunningKms, attester: Attester) -> None:
    """The member SharedSecret is absent."""
    enclave = Enclave(attester, GOOD)
    key_id = pinned(kms, KeySpec="ECC_NIST_P384", KeyUsage="KEY_AGREEMENT")
    mine = ec.generate_private_key(ec.SECP384R1())
    public = serialization.load_der_public_key(kms.admin.get_public_key(KeyId=key_id)["PublicKey"])
    assert isinstance(public, ec.EllipticCurvePublicKey)
    answer = kms.app.derive_shared_secret(
        KeyId=key_id, KeyAgreementAlgorithm="ECDH", PublicKey=spki(mine), Recipient=enclave.recipient()
    )
    expected = {"CiphertextForRecipient", "KeyId", "KeyAgreementAlgorithm", "KeyOrigin"}
    assert set(answer) - {"ResponseMetadata"} == expected
    assert enclave.open(answer["CiphertextForRecipient"]) == mine.exchange(ec.ECDH(), public)


def test_an_rsa_plaintext_comes_in_an_envelope(kms: RunningKms, attester: Attester) -> None:
    """Decrypt with an RSA key."""
    enclave = Enclave(attester, GOOD)
    options = {
        "KeyId": pinned(kms, KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT"),
        "EncryptionAlgorithm": "RSAES_OAEP_SHA_256",
    }
    block = kms.admin.encrypt(Plaintext=b"secret", **options)["CiphertextBlob"]
    answer = kms.app.decrypt(CiphertextBlob=block, Recipient=enclave.recipient(), **options)
    assert "Plaintext" not in answer
    assert enclave.open(answer["CiphertextForRecipient"]) == b"secret"


def test_the_parent_and_another_image_get_nothing(kms: RunningKms, attester: Attester) -> None:
    """Without a document, and with one of another image, the policy refuses; garbage is no document."""
    agreement = pinned(kms, KeySpec="ECC_NIST_P384", KeyUsage="KEY_AGREEMENT")
    derive = {"KeyAgreementAlgorithm": "ECDH", "PublicKey": spki(ec.generate_private_key(ec.SECP384R1()))}
    cases = [
        (kms.app.generate_data_key_pair, {"KeyId": pinned(kms), "KeyPairSpec": "ECC_NIST_P256"}),
        (kms.app.derive_shared_secret, {"KeyId": agreement, **derive}),
    ]
    garbage = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": b"garbage"}
    for method, parameters in cases:
        with refused("AccessDeniedException"):
            method(**parameters)
        with refused("AccessDeniedException"):
            method(Recipient=Enclave(attester, OTHER).recipient(), **parameters)
        with refused("ValidationException"):
            method(Recipient=garbage, **parameters)
