"""Whatever is changed in a ciphertext, nobody gets a plaintext (kms.md §13.2, §26)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.kms.in_process import InProcess, in_process

pytestmark = pytest.mark.slow

SECRET = b"sixteen byte key"
NO_USABLE_KEY = "The ciphertext refers to a customer master key that does not exist"


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with in_process(tmp_path_factory.mktemp("kms")) as service:
        yield service


def flipped(blob: bytes) -> Iterator[bytes]:
    """The blob with each of its bits changed, one at a time."""
    for bit in range(8 * len(blob)):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def refused(kms: InProcess, operation: str, member: str, blob: bytes, **more: Any) -> str:
    """The class of the refusal; nothing of the secret is in the answer."""
    text = base64.b64encode(blob).decode()
    answer = kms.send(operation, json.dumps({member: text, **more}).encode())
    assert answer.status == 400, answer.body
    assert base64.b64encode(SECRET)[:-4] not in answer.body
    error = json.loads(answer.body)
    if error["__type"] == "AccessDeniedException":
        assert error["Message"].startswith(NO_USABLE_KEY)
    elif error["__type"] == "InvalidCiphertextException":
        assert set(error) == {"__type"}
    return str(error["__type"])


@pytest.mark.parametrize("context", [{}, {"app": "demo"}])
@pytest.mark.parametrize("named", [False, True])
def test_every_flipped_bit_of_a_blob(kms: InProcess, context: dict[str, str], *, named: bool) -> None:
    """Refused with and without the key's name, in Decrypt and in ReEncrypt, in one of the classes that tell nothing."""
    key = kms.call("CreateKey")["KeyMetadata"]["KeyId"]
    pairs = {"EncryptionContext": context}
    made = kms.call("Encrypt", KeyId=key, Plaintext=base64.b64encode(SECRET).decode(), **pairs)["CiphertextBlob"]
    blob = base64.b64decode(made)
    assert base64.b64decode(kms.call("Decrypt", CiphertextBlob=made, **pairs)["Plaintext"]) == SECRET
    classes = {"InvalidCiphertextException"} | ({"IncorrectKeyException"} if named else {"AccessDeniedException"})
    name = {"KeyId": key} if named else {}
    seen = {refused(kms, "Decrypt", "CiphertextBlob", one, **name, **pairs) for one in flipped(blob)}
    assert seen == classes
    if named:
        moved = {"SourceKeyId": key, "DestinationKeyId": key, "SourceEncryptionContext": context}
        seen = {refused(kms, "ReEncrypt", "CiphertextBlob", one, **moved) for one in flipped(blob)}
        assert seen == classes


def test_every_other_length_of_a_blob(kms: InProcess) -> None:
    """Cut short at every place, and longer by some bytes."""
    key = kms.call("CreateKey")["KeyMetadata"]["KeyId"]
    made = kms.call("Encrypt", KeyId=key, Plaintext=base64.b64encode(SECRET).decode())["CiphertextBlob"]
    blob = base64.b64decode(made)
    others = [blob[:size] for size in range(1, len(blob))] + [blob + bytes(size) for size in (1, 2, 16, 4096)]
    assert {refused(kms, "Decrypt", "CiphertextBlob", one) for one in others} == {"InvalidCiphertextException"}


def test_flipped_bits_of_an_rsa_block(kms: InProcess) -> None:
    """The same of RSA, which has no header: every bit of every byte's two ends."""
    key = kms.call("CreateKey", KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["KeyId"]
    way = {"KeyId": key, "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
    made = kms.call("Encrypt", Plaintext=base64.b64encode(SECRET).decode(), **way)["CiphertextBlob"]
    every = list(flipped(base64.b64decode(made)))
    some = [one for bit, one in enumerate(every) if bit % 8 in {0, 7}]
    assert {refused(kms, "Decrypt", "CiphertextBlob", one, **way) for one in some} == {"InvalidCiphertextException"}
