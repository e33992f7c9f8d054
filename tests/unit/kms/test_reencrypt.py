"""ReEncrypt, and attestation where AWS has none (kms.md §2.2, §3, §21)."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.unit.kms.authority_harness import GOOD, Enclave
from tests.unit.kms.server_harness import ACCOUNT, ROOT_ARN, RunningKms, refused

from alcove.attestation.attester import Attester

ARN = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/"


@pytest.fixture(scope="module")
def kms(trusting_kms: RunningKms) -> RunningKms:
    return trusting_kms


@pytest.fixture
def other(kms: RunningKms) -> str:
    return str(kms.admin.create_key()["KeyMetadata"]["KeyId"])


def put(kms: RunningKms, key: str, *statements: dict[str, Any]) -> None:
    root = {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": "kms:*", "Resource": "*"}
    own = [{"Effect": "Allow", "Principal": {"AWS": kms.app_user.arn}, "Resource": "*"} | s for s in statements]
    kms.admin.put_key_policy(KeyId=key, Policy=json.dumps({"Version": "2012-10-17", "Statement": [root, *own]}))


def attested(client: Any, operation: str, document: bytes) -> None:
    """Every request of this operation carries the document in the signed header."""
    text = base64.b64encode(document).decode()

    def add(params: dict[str, Any], **_: Any) -> None:
        params["headers"]["X-Alcove-Attestation-Document"] = text

    client.meta.events.register(f"before-call.kms.{operation}", add)


def test_a_blob_goes_from_key_to_key(kms: RunningKms, key: str, other: str) -> None:
    """Key and context change; the plaintext never shows; the record names both keys, the source first."""
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=b"secret", EncryptionContext={"a": "1"})["CiphertextBlob"]
    moved = kms.admin.re_encrypt(
        CiphertextBlob=sealed,
        SourceEncryptionContext={"a": "1"},
        DestinationKeyId=other,
        DestinationEncryptionContext={"b": "2"},
    )
    assert (moved["SourceKeyId"], moved["KeyId"]) == (ARN + key, ARN + other)
    assert moved["SourceEncryptionAlgorithm"] == moved["DestinationEncryptionAlgorithm"] == "SYMMETRIC_DEFAULT"
    assert len(moved["SourceKeyMaterialId"]) == len(moved["DestinationKeyMaterialId"]) == 64
    opened = kms.admin.decrypt(CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"b": "2"})
    assert (opened["Plaintext"], opened["KeyId"]) == (b"secret", ARN + other)
    record = next(r for r in reversed(kms.records()) if r["eventName"] == "ReEncrypt")
    assert [r["ARN"] for r in record["resources"]] == [ARN + key, ARN + other]
    assert b"secret" not in json.dumps(record).encode()
    with refused("InvalidCiphertextException"):
        kms.admin.re_encrypt(CiphertextBlob=sealed, DestinationKeyId=other)
    with refused("IncorrectKeyException"):
        kms.admin.re_encrypt(
            CiphertextBlob=sealed, SourceKeyId=other, SourceEncryptionContext={"a": "1"}, DestinationKeyId=key
        )


def test_between_rsa_and_symmetric(kms: RunningKms, key: str) -> None:
    """An RSA block needs its key and algorithm named; what does not fit into RSA is refused in AWS's words."""
    rsa = kms.admin.create_key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["KeyId"]
    small, large = (kms.admin.encrypt(KeyId=key, Plaintext=bytes(n))["CiphertextBlob"] for n in (32, 200))
    options = {"DestinationKeyId": rsa, "DestinationEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
    block = kms.admin.re_encrypt(CiphertextBlob=small, **options)
    assert "DestinationKeyMaterialId" not in block
    back = kms.admin.re_encrypt(
        CiphertextBlob=block["CiphertextBlob"],
        SourceKeyId=rsa,
        SourceEncryptionAlgorithm="RSAES_OAEP_SHA_256",
        DestinationKeyId=key,
    )
    assert kms.admin.decrypt(CiphertextBlob=back["CiphertextBlob"])["Plaintext"] == bytes(32)
    with refused("ValidationException") as error:
        kms.admin.re_encrypt(CiphertextBlob=large, **options)
    assert "cannot encrypt data larger than 190 bytes" in error["message"]
    signing = kms.admin.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    with refused("InvalidKeyUsageException") as error:
        kms.admin.re_encrypt(CiphertextBlob=small, DestinationKeyId=signing)
    assert error["message"] == f"{ARN}{signing} key usage is SIGN_VERIFY which is not valid for ReEncrypt."


def test_both_keys_must_be_usable(kms: RunningKms, key: str, other: str) -> None:
    """A disabled key is named, whichever side it is on."""
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    kms.admin.disable_key(KeyId=other)
    with refused("DisabledException") as error:
        kms.admin.re_encrypt(CiphertextBlob=sealed, DestinationKeyId=other)
    assert error["message"] == f"{ARN}{other} is disabled."
    kms.admin.enable_key(KeyId=other)
    kms.admin.disable_key(KeyId=key)
    with refused("DisabledException") as error:
        kms.admin.re_encrypt(CiphertextBlob=sealed, DestinationKeyId=other)
    assert error["message"] == f"{ARN}{key} is disabled."


def test_each_half_needs_its_permission_in_its_context(kms: RunningKms, key: str, other: str) -> None:
    """ReEncryptFrom with the source's context, ReEncryptTo with the destination's."""
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext={"a": "1"})["CiphertextBlob"]
    wanted = {"CiphertextBlob": sealed, "SourceEncryptionContext": {"a": "1"}, "DestinationKeyId": other}
    put(kms, key, {"Action": "kms:ReEncryptFrom", "Condition": {"StringEquals": {"kms:EncryptionContext:a": "1"}}})
    with refused("AccessDeniedException") as error:
        kms.app.re_encrypt(**wanted, DestinationEncryptionContext={"b": "2"})
    assert f"kms:ReEncryptTo on resource: {ARN}{other}" in error["message"]
    put(kms, other, {"Action": "kms:ReEncryptTo", "Condition": {"StringEquals": {"kms:EncryptionContext:b": "2"}}})
    kms.app.re_encrypt(**wanted, DestinationEncryptionContext={"b": "2"})
    with refused("AccessDeniedException"):
        kms.app.re_encrypt(**wanted, DestinationEncryptionContext={"b": "3"})
    put(kms, key, {"Action": "kms:ReEncrypt*", "Condition": {"Bool": {"kms:ReEncryptOnSameKey": "true"}}})
    with refused("AccessDeniedException") as error:
        kms.app.re_encrypt(**wanted, DestinationEncryptionContext={"b": "2"})
    assert "kms:ReEncryptFrom" in error["message"]
    kms.app.re_encrypt(**wanted | {"DestinationKeyId": key})


def test_a_dry_run_may_leave_the_ciphertext_out(kms: RunningKms, key: str, other: str) -> None:
    """IGNORE_CIPHERTEXT asks for authorization alone; it needs the key's name."""
    with refused("DryRunOperationException"):
        kms.admin.re_encrypt(
            SourceKeyId=key, DestinationKeyId=other, DryRun=True, DryRunModifiers=["IGNORE_CIPHERTEXT"]
        )
    with refused("DryRunOperationException"):
        kms.admin.decrypt(KeyId=key, DryRun=True, DryRunModifiers=["IGNORE_CIPHERTEXT"])
    with refused("ValidationException"):
        kms.admin.decrypt(DryRun=True, DryRunModifiers=["IGNORE_CIPHERTEXT"])
    with refused("ValidationException"):
        kms.admin.decrypt(KeyId=key, DryRun=True)
    with refused("AccessDeniedException"):
        kms.app.decrypt(KeyId=key, DryRun=True, DryRunModifiers=["IGNORE_CIPHERTEXT"])


def test_a_policy_can_ask_where_a_signer_runs(kms: RunningKms, attester: Attester) -> None:
    """Sign, GenerateMac, ReEncrypt: without the header as at AWS, with it the document's PCRs are in the context."""
    condition = {"StringEquals": {"kms:RecipientAttestation:PCR0": GOOD[0].hex()}}
    actions = ["kms:Sign", "kms:GenerateMac", "kms:ReEncrypt*"]
    kinds = {"sign": ("ECC_NIST_P256", "SIGN_VERIFY"), "mac": ("HMAC_256", "GENERATE_VERIFY_MAC")}
    keys = {
        name: kms.admin.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["KeyId"]
        for name, (spec, usage) in kinds.items()
    } | {"wrap": kms.admin.create_key()["KeyMetadata"]["KeyId"]}
    for key in keys.values():
        put(kms, key, {"Action": actions, "Condition": condition})
    sealed = kms.admin.encrypt(KeyId=keys["wrap"], Plaintext=b"x")["CiphertextBlob"]
    calls: dict[str, dict[str, Any]] = {
        "Sign": {"KeyId": keys["sign"], "Message": b"m", "SigningAlgorithm": "ECDSA_SHA_256"},
        "GenerateMac": {"KeyId": keys["mac"], "Message": b"m", "MacAlgorithm": "HMAC_SHA_256"},
        "ReEncrypt": {"CiphertextBlob": sealed, "DestinationKeyId": keys["wrap"]},
    }
    methods = {"Sign": "sign", "GenerateMac": "generate_mac", "ReEncrypt": "re_encrypt"}
    good, bad = Enclave(attester, GOOD), Enclave(attester, {**GOOD, 0: b"\xee" * 48})
    for operation, options in calls.items():
        client = kms.app
        with refused("AccessDeniedException") as error:
            getattr(client, methods[operation])(**options)
        assert "no attestation document was given" in error["message"]
        attested(client, operation, good.document())
        getattr(client, methods[operation])(**options)
        client = kms.app
        attested(client, operation, bad.document())
        with refused("AccessDeniedException"):
            getattr(client, methods[operation])(**options)
        client = kms.app
        attested(client, operation, Enclave(attester, GOOD, age=400).document())
        with refused("ValidationException") as error:
            getattr(client, methods[operation])(**options)
        assert "five-minute age limit" in error["message"]
    record = next(r for r in kms.records() if r["eventName"] == "Sign" and "errorCode" not in r)
    assert record["additionalEventData"]["recipient"]["attestationDocumentEnclaveImageDigest"] == GOOD[0].hex()


def test_a_document_must_be_signed_with_its_request(kms: RunningKms, attester: Attester, key: str) -> None:
    """Somebody on the way cannot add one."""
    client = kms.admin
    text = base64.b64encode(Enclave(attester, GOOD).document()).decode()

    def add(request: Any, **_: Any) -> None:
        request.headers["X-Alcove-Attestation-Document"] = text

    client.meta.events.register("before-send.kms.ReEncrypt", add)
    sealed = client.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    with refused("InvalidSignatureException"):
        client.re_encrypt(CiphertextBlob=sealed, DestinationKeyId=key)


def test_a_policy_can_ask_where_its_successor_comes_from(kms: RunningKms, attester: Attester) -> None:
    """PutKeyPolicy: whoever locks a policy to an image can change it from inside that image, and from nowhere else."""
    condition = {"StringEquals": {"kms:RecipientAttestation:PCR0": GOOD[0].hex()}}
    others = {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "NotAction": "kms:PutKeyPolicy", "Resource": "*"}
    inside = {"Effect": "Allow", "Principal": {"AWS": kms.app_user.arn}, "Action": "kms:PutKeyPolicy", "Resource": "*"}
    text = json.dumps({"Version": "2012-10-17", "Statement": [others, {**inside, "Condition": condition}]})
    key = kms.admin.create_key()["KeyMetadata"]["KeyId"]
    with refused("MalformedPolicyDocumentException"):
        kms.admin.put_key_policy(KeyId=key, Policy=text)
    kms.admin.put_key_policy(KeyId=key, Policy=text, BypassPolicyLockoutSafetyCheck=True)
    for client in (kms.admin, kms.app):
        with refused("AccessDeniedException"):
            client.put_key_policy(KeyId=key, Policy=text)
    client = kms.app
    attested(client, "PutKeyPolicy", Enclave(attester, {**GOOD, 0: b"\xee" * 48}).document())
    with refused("AccessDeniedException"):
        client.put_key_policy(KeyId=key, Policy=text)
    client = kms.app
    attested(client, "PutKeyPolicy", Enclave(attester, GOOD).document())
    client.put_key_policy(KeyId=key, Policy=text)
