"""Operations on key pairs, MAC keys, imported and multi-Region keys, in every state of the key (kms.md §11).

The other half of `test_states`, with one more state: a primary key that waits for its replicas to go.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from tests.unit.kms.conftest import NewStore
from tests.unit.kms.in_process import InProcess, in_process
from tests.unit.kms.test_states import DIS, ELSEWHERE, KIS, OK, UNS

pytestmark = pytest.mark.slow

STATES = ("Enabled", "Disabled", "PendingDeletion", "PendingReplicaDeletion", "PendingImport")
USE, ANY = (OK, DIS, KIS, KIS, KIS), (OK,) * 5
PEER = ec.generate_private_key(ec.SECP256R1()).public_key()
DER, SPKI = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
WAY = {"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
SIGNING = {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}
AGREEING = {"KeySpec": "ECC_NIST_P256", "KeyUsage": "KEY_AGREEMENT"}
MAC = {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"}
KEM = {"KeySpec": "ML_KEM_768", "KeyUsage": "ENCAPSULATE_DECAPSULATE"}
SEVERAL, EXTERNAL = {"MultiRegion": True}, {"Origin": "EXTERNAL"}
MATERIAL = os.urandom(32)
SIGNED = {"Message": "eA==", "SigningAlgorithm": "ECDSA_SHA_256"}
MACED = {"Message": "eA==", "MacAlgorithm": "HMAC_SHA_256"}


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


ROWS: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = {  # row, key, parameters
    "Decapsulate": (USE, KEM, {"EncapsulationAlgorithm": "ML_KEM", "SharedSecretCiphertextBlob": text(bytes(1088))}),
    "DeriveSharedSecret": (
        USE, AGREEING, {"KeyAgreementAlgorithm": "ECDH", "PublicKey": text(PEER.public_bytes(DER, SPKI))},
    ),
    "Encapsulate": (USE, KEM, {"EncapsulationAlgorithm": "ML_KEM"}),
    "GenerateMac": (USE, MAC, MACED),
    "GetKeyLastUsage": (ANY, {}, {}),
    "GetPublicKey": (USE, SIGNING, {}),
    "Sign": (USE, SIGNING, SIGNED),
    "Verify": (USE, SIGNING, SIGNED),
    "VerifyMac": (USE, MAC, MACED),
    "DeleteImportedKeyMaterial": (ANY, EXTERNAL, {}),
    "GetParametersForImport": ((OK, OK, KIS, KIS, OK), EXTERNAL, WAY),
    "ImportKeyMaterial": ((OK, OK, KIS, KIS, OK), EXTERNAL, {"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}),
    "ReplicateKey": (USE, SEVERAL, {"ReplicaRegion": "eu-west-1"}),
    "UpdatePrimaryRegion": (USE, SEVERAL, {"PrimaryRegion": "eu-west-1"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Iterator[InProcess]:
    directory = tmp_path_factory.mktemp("kms")
    with in_process(directory, url=new_store(directory)) as service:
        yield service


def wrapped(kms: InProcess, key: str) -> dict[str, Any]:
    """Parameters that import the material, which is always the same."""
    given = kms.call("GetParametersForImport", KeyId=key, **WAY)
    public: Any = serialization.load_der_public_key(base64.b64decode(given["PublicKey"]))
    material = text(public.encrypt(MATERIAL, OAEP))
    return {"KeyId": key, "ImportToken": given["ImportToken"], "EncryptedKeyMaterial": material}


def prepared(kms: InProcess, operation: str, state: str) -> tuple[str, dict[str, Any]]:
    """A key of the operation's kind in a state, and parameters that would do if the state did."""
    _, kind, parameters = ROWS[operation]
    waits = state == "PendingReplicaDeletion"
    kind = {**kind, **(EXTERNAL if state == "PendingImport" else {}), **(SEVERAL if waits else {})}
    key = kms.call("CreateKey", **kind)["KeyMetadata"]["KeyId"]
    parameters = {"KeyId": key, **parameters}
    leads = operation == "UpdatePrimaryRegion"  # which has replicas, and had material when it got them
    if "Origin" in kind and (leads or state != "PendingImport"):
        kms.call("ImportKeyMaterial", ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE", **wrapped(kms, key))
    if operation == "ImportKeyMaterial":
        parameters |= wrapped(kms, key)
    if waits or leads:
        kms.call("ReplicateKey", KeyId=key, ReplicaRegion="eu-west-1")
    if operation in {"Verify", "VerifyMac"}:
        proof = "Signature" if operation == "Verify" else "Mac"
        maker = "Sign" if operation == "Verify" else "GenerateMac"
        there = state != "PendingImport"
        parameters[proof] = kms.call(maker, **parameters)[proof] if there else text(bytes(32))
    if leads and state == "PendingImport":
        kms.call("DeleteImportedKeyMaterial", KeyId=key)
    if state == "Disabled":
        kms.call("DisableKey", KeyId=key)
    elif state.endswith("Deletion"):
        kms.call("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=7)
    return key, parameters


IMPOSSIBLE = ("UpdatePrimaryRegion", "PendingDeletion")  # a primary key with replicas waits for them first


@pytest.mark.parametrize(("operation", "state"), [(o, s) for o in sorted(ROWS) for s in STATES if (o, s) != IMPOSSIBLE])
def test_an_operation_in_a_state(kms: InProcess, operation: str, state: str) -> None:
    """It works, or is refused with AWS's class and the key's ARN in the text, and then changes nothing."""
    key, parameters = prepared(kms, operation, state)
    assert kms.call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyState"] == state
    answer = kms.send(operation, json.dumps(parameters).encode())
    error = json.loads(answer.body or b"{}") if answer.status != 200 else {"__type": OK}
    assert error["__type"] == ROWS[operation][0][STATES.index(state)], error
    if answer.status != 200:
        assert f":key/{key} is " in error["message"]
        assert kms.call("DescribeKey", KeyId=key)["KeyMetadata"]["KeyState"] == state


@pytest.mark.parametrize("operation", ["DeleteImportedKeyMaterial", "GetParametersForImport", "ImportKeyMaterial"])
@pytest.mark.parametrize("state", ["Enabled", "Disabled", "PendingDeletion"])
def test_a_key_of_our_own_takes_no_material(kms: InProcess, operation: str, state: str) -> None:
    """In no state, and that is said before the state is."""
    key = kms.call("CreateKey")["KeyMetadata"]["KeyId"]
    if state != "Enabled":
        kms.call("DisableKey" if state == "Disabled" else "ScheduleKeyDeletion", KeyId=key)
    more = {"ImportToken": "eA==", "EncryptedKeyMaterial": "eA=="} if operation == "ImportKeyMaterial" else WAY
    answer = kms.send(operation, json.dumps({"KeyId": key, **more}).encode())
    assert json.loads(answer.body)["__type"] == UNS


def test_the_two_halves_are_the_whole() -> None:
    """Every operation that the other half leaves out is here."""
    assert set(ROWS) == ELSEWHERE
