"""Which key fits which operation: the matrix of operation and key spec, policies, states, dry runs, records."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.kms.server_harness import ACCOUNT, ROOT_ARN, RunningKms, config, refused, running

from alcove.kms.specs import SPECS

pytestmark = pytest.mark.slow

ARN = f"arn:aws:kms:us-east-1:{ACCOUNT}:key"
PEER = ec.generate_private_key(ec.SECP256R1()).public_key()
CALLS: dict[str, tuple[str, dict[str, Any]]] = {  # operation: usage that it needs, and its parameters
    "Encrypt": ("ENCRYPT_DECRYPT", {"Plaintext": b"x", "EncryptionAlgorithm": None}),
    "Decrypt": ("ENCRYPT_DECRYPT", {"CiphertextBlob": b"x", "EncryptionAlgorithm": None}),
    "GenerateDataKey": ("ENCRYPT_DECRYPT", {"KeySpec": "AES_256"}),
    "GenerateDataKeyWithoutPlaintext": ("ENCRYPT_DECRYPT", {"KeySpec": "AES_256"}),
    "GenerateDataKeyPair": ("ENCRYPT_DECRYPT", {"KeyPairSpec": "ECC_NIST_P256"}),
    "GenerateDataKeyPairWithoutPlaintext": ("ENCRYPT_DECRYPT", {"KeyPairSpec": "RSA_2048"}),
    "Sign": ("SIGN_VERIFY", {"Message": b"x", "SigningAlgorithm": None}),
    "Verify": ("SIGN_VERIFY", {"Message": b"x", "SigningAlgorithm": None, "Signature": b"x"}),
    "GenerateMac": ("GENERATE_VERIFY_MAC", {"Message": b"x", "MacAlgorithm": None}),
    "VerifyMac": ("GENERATE_VERIFY_MAC", {"Message": b"x", "MacAlgorithm": None, "Mac": b"x"}),
    "Encapsulate": ("ENCAPSULATE_DECAPSULATE", {"EncapsulationAlgorithm": None}),
    "Decapsulate": ("ENCAPSULATE_DECAPSULATE", {"EncapsulationAlgorithm": None, "SharedSecretCiphertextBlob": b"x"}),
}
DEFAULTS = {
    "EncryptionAlgorithm": "SYMMETRIC_DEFAULT", "SigningAlgorithm": "ECDSA_SHA_256", "MacAlgorithm": "HMAC_SHA_256",
    "EncapsulationAlgorithm": "ML_KEM",
}  # fmt: skip
KINDS = [(spec.name, usage) for spec in SPECS.values() for usage in spec.algorithms]
WRAPPING = {name for name in CALLS if name.startswith("GenerateDataKey")}


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    with running(config(tmp_path_factory.mktemp("kms"))) as service:
        yield service


@pytest.fixture(scope="module")
def keys(kms: RunningKms) -> dict[tuple[str, str], str]:
    """One key of each spec and usage."""
    return {
        (spec, usage): kms.admin.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["KeyId"]
        for spec, usage in KINDS
    }


def call(client: Any, operation: str, key_id: str, algorithm: str | None, **more: Any) -> Any:
    """Makes the call of `CALLS`, with this algorithm where it takes one."""
    parameters = {
        name: (algorithm or DEFAULTS[name]) if value is None else value for name, value in CALLS[operation][1].items()
    }
    method = client.meta.method_to_api_mapping
    return getattr(client, next(name for name, api in method.items() if api == operation))(
        KeyId=key_id, **parameters | more
    )


@pytest.mark.parametrize(("spec", "usage"), KINDS)
def test_a_key_does_what_its_spec_and_usage_are_for(
    kms: RunningKms, keys: dict[tuple[str, str], str], spec: str, usage: str
) -> None:
    """Every operation × every kind of key, as dry runs: InvalidKeyUsageException where it does not fit."""
    digest = {"Message": b"x" * 64, "MessageType": "DIGEST"}
    key_id = keys[spec, usage]
    for operation, (needed, _) in CALLS.items():
        fits = usage == needed and (operation not in WRAPPING or spec == "SYMMETRIC_DEFAULT")
        algorithms = SPECS[spec].algorithms[usage] if fits and operation not in WRAPPING else (None,)
        for algorithm in algorithms:
            with refused("DryRunOperationException" if fits else "InvalidKeyUsageException") as error:
                more = digest if algorithm == "ED25519_PH_SHA_512" else {}
                call(kms.admin, operation, key_id, algorithm, DryRun=True, **more)
            if usage != needed:
                expected = f"{ARN}/{key_id} key usage is {usage} which is not valid for {operation}."
                assert error["message"] == expected


def test_an_algorithm_must_be_the_keys(kms: RunningKms, keys: dict[tuple[str, str], str]) -> None:
    """In the recorded words (kms.md §10.3)."""
    cases = [
        ("GenerateMac", "HMAC_256", "GENERATE_VERIFY_MAC", "HMAC_SHA_512"),
        ("Sign", "ECC_NIST_P256", "SIGN_VERIFY", "ECDSA_SHA_384"),
        ("Verify", "RSA_2048", "SIGN_VERIFY", "ECDSA_SHA_256"),
        ("Encrypt", "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "RSAES_OAEP_SHA_256"),
        ("Encrypt", "RSA_2048", "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT"),
    ]
    for operation, spec, usage, algorithm in cases:
        with refused("InvalidKeyUsageException") as error:
            call(kms.admin, operation, keys[spec, usage], algorithm)
        assert error["message"] == f"Algorithm {algorithm} is incompatible with key spec {spec}."


def test_a_message_type_must_be_the_algorithms(kms: RunningKms, keys: dict[tuple[str, str], str]) -> None:
    """EXTERNAL_MU is ML-DSA's; Ed25519 and ML-DSA take no digest, Ed25519ph nothing else."""
    cases = [
        ("ECC_NIST_P256", "ECDSA_SHA_256", "EXTERNAL_MU"),
        ("ECC_NIST_EDWARDS25519", "ED25519_SHA_512", "DIGEST"),
        ("ECC_NIST_EDWARDS25519", "ED25519_PH_SHA_512", "RAW"),
        ("ML_DSA_44", "ML_DSA_SHAKE_256", "DIGEST"),
    ]
    for spec, algorithm, kind in cases:
        with refused("ValidationException") as error:
            kms.admin.sign(
                KeyId=keys[spec, "SIGN_VERIFY"], Message=b"x" * 64, SigningAlgorithm=algorithm, MessageType=kind
            )
        assert error["message"] == f"MessageType {kind} is not compatible with algorithm {algorithm}."


def test_keys_that_cannot_be_are_not_made(kms: RunningKms) -> None:
    """A usage is needed for all but symmetric keys, and must be one of the spec's; specs that are missing are named."""
    with refused("ValidationException") as error:
        kms.admin.create_key(KeySpec="RSA_2048")
    assert error["message"].startswith("You must specify a KeyUsage value for all KMS keys")
    for spec, usage in (
        ("RSA_2048", "KEY_AGREEMENT"),
        ("HMAC_256", "SIGN_VERIFY"),
        ("ECC_SECG_P256K1", "KEY_AGREEMENT"),
    ):
        with refused("ValidationException") as error:
            kms.admin.create_key(KeySpec=spec, KeyUsage=usage)
        assert error["message"] == f"KeyUsage {usage} is not compatible with KeySpec {spec}"
    for spec, usage in (("SM2", "SIGN_VERIFY"), ("ML_KEM_512", "ENCAPSULATE_DECAPSULATE")):
        with refused("UnsupportedOperationException"):
            kms.admin.create_key(KeySpec=spec, KeyUsage=usage)
    with refused("ValidationException"):
        kms.admin.create_key(KeySpec="RSA_2048", CustomerMasterKeySpec="RSA_4096", KeyUsage="SIGN_VERIFY")
    symmetric = kms.admin.create_key()["KeyMetadata"]["KeyId"]
    for spec in ("SM2", "ML_KEM_512"):
        with refused("UnsupportedOperationException"):
            kms.admin.generate_data_key_pair(KeyId=symmetric, KeyPairSpec=spec)


def test_a_secret_key_has_no_public_half(kms: RunningKms, keys: dict[tuple[str, str], str]) -> None:
    """GetPublicKey of a symmetric and of a MAC key."""
    for kind in (("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"), ("HMAC_256", "GENERATE_VERIFY_MAC")):
        with refused("UnsupportedOperationException"):
            kms.admin.get_public_key(KeyId=keys[kind])


def test_a_blob_of_another_key_is_told_before_the_usage(kms: RunningKms, keys: dict[tuple[str, str], str]) -> None:
    """As recorded (kms.md §1.4)."""
    blob = kms.admin.encrypt(KeyId=keys["SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"], Plaintext=b"x")["CiphertextBlob"]
    with refused("IncorrectKeyException"):
        kms.admin.decrypt(CiphertextBlob=blob, KeyId=keys["HMAC_256", "GENERATE_VERIFY_MAC"])


def test_a_disabled_key_signs_nothing(kms: RunningKms) -> None:
    """Nor shows its public half (kms.md §11)."""
    key_id = kms.admin.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    for change, kind in (
        (kms.admin.disable_key, "DisabledException"),
        (kms.admin.schedule_key_deletion, "KMSInvalidStateException"),
    ):
        change(KeyId=key_id)
        for operation in ("Sign", "Verify"):
            with refused(kind):
                call(kms.admin, operation, key_id, None)
        with refused(kind):
            kms.admin.get_public_key(KeyId=key_id)


def test_policies_see_algorithm_and_message_type(kms: RunningKms) -> None:
    """kms:SigningAlgorithm and kms:MessageType decide; the type counts as RAW when it is not given."""
    everything = {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": "kms:*", "Resource": "*"}
    equal = {"kms:SigningAlgorithm": "RSASSA_PSS_SHA_256", "kms:MessageType": "RAW", "kms:KeySpec": "RSA_2048"}
    mine = {
        "Effect": "Allow", "Principal": {"AWS": kms.app_user.arn}, "Action": ["kms:Sign", "kms:GetPublicKey"],
        "Resource": "*", "Condition": {"StringEqualsIfExists": equal},
    }  # fmt: skip
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everything, mine]})
    made = kms.admin.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY", Policy=policy)
    options = {"KeyId": made["KeyMetadata"]["KeyId"], "Message": b"x" * 32}
    kms.app.sign(SigningAlgorithm="RSASSA_PSS_SHA_256", **options)
    kms.app.get_public_key(KeyId=options["KeyId"])
    for more in (
        {"SigningAlgorithm": "RSASSA_PSS_SHA_384"},
        {"SigningAlgorithm": "RSASSA_PSS_SHA_256", "MessageType": "DIGEST"},
    ):
        with refused("AccessDeniedException"):
            kms.app.sign(**more, **options)
    with refused("AccessDeniedException"):
        kms.app.verify(Signature=b"x", SigningAlgorithm="RSASSA_PSS_SHA_256", **options)


def test_a_denied_caller_makes_no_key(kms: RunningKms) -> None:
    """It is refused before the slow part, and one record says so; the allowed call has one record too."""
    before = len(kms.records())
    with refused("AccessDeniedException"):
        kms.app.create_key(KeySpec="RSA_4096", KeyUsage="SIGN_VERIFY")
    kms.admin.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY", Description="recorded once")
    denied, made = kms.records()[before:]
    assert (denied["eventName"], denied["errorCode"]) == ("CreateKey", "AccessDeniedException")
    assert made["requestParameters"] == {
        "keySpec": "RSA_2048", "keyUsage": "SIGN_VERIFY", "description": "recorded once",
    }  # fmt: skip


def test_records_hold_no_message_and_no_signature(kms: RunningKms, keys: dict[tuple[str, str], str]) -> None:
    """Algorithm and type are there; message, signature and MAC are not; reading is what they are called."""
    key_id = keys["ECC_NIST_P256", "SIGN_VERIFY"]
    kms.admin.sign(
        KeyId=key_id, Message=b"a message of some length", SigningAlgorithm="ECDSA_SHA_256", MessageType="RAW"
    )
    record = kms.records()[-1]
    assert record["requestParameters"] == {"keyId": key_id, "signingAlgorithm": "ECDSA_SHA_256", "messageType": "RAW"}
    assert (record["responseElements"], record["readOnly"]) == (None, True)
    assert record["resources"][0]["ARN"] == f"{ARN}/{key_id}"


def test_others_are_answered_while_a_slow_key_is_made(kms: RunningKms) -> None:
    """Between the start and the end of four RSA-4096 keys, other requests come back."""
    finished: list[float] = []

    def make() -> None:
        kms.admin.create_key(KeySpec="RSA_4096", KeyUsage="SIGN_VERIFY")
        finished.append(time.monotonic())

    makers = [threading.Thread(target=make) for _ in range(4)]
    client = kms.admin
    for maker in makers:
        maker.start()
    answered: list[float] = []
    while any(maker.is_alive() for maker in makers):
        client.generate_random(NumberOfBytes=1)
        answered.append(time.monotonic())
    for maker in makers:
        maker.join()
    assert len(finished) == 4
    assert sum(moment < max(finished) for moment in answered) > 20  # one at a time would leave room for five
