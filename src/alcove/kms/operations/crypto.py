"""Operations that use key material: Encrypt, Decrypt, data keys, random bytes (kms.md §2.2, §3, §13, §21).

Core: an authorized call and the tools in; the answer's members out. With a recipient the plaintext member is absent,
and there is no path on which both could be there.
"""

from __future__ import annotations

from typing import Any, Final

from alcove.kms import blob, recipient
from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError, validation
from alcove.kms.keys import SYMMETRIC

DATA_KEY_BYTES: Final = {"AES_256": 32, "AES_128": 16}


def encrypt(tools: Tools, call: Call) -> dict[str, Any]:
    """Encrypt: a blob of up to 4096 bytes of plaintext."""
    return {
        "CiphertextBlob": _seal(tools, call, call.params["Plaintext"]),
        "KeyId": _arn(tools, call),
        "EncryptionAlgorithm": SYMMETRIC,
    }


def decrypt(tools: Tools, call: Call) -> dict[str, Any]:
    """Decrypt: to the caller, or to the recipient alone."""
    key, ciphertext = call.the_key, call.params["CiphertextBlob"]
    try:
        header = blob.Header.parse(ciphertext)
    except ValueError as error:
        raise KmsError("InvalidCiphertextException", because=str(error)) from error
    if header.key_id != key.key_id:
        raise KmsError(
            "IncorrectKeyException",
            "The key ID in the request does not identify a CMK that can perform this operation.",
        )
    material = tools.store.material(key.key_id, header.material_id)
    if material is None:
        raise KmsError("InvalidCiphertextException", because="no such key material")
    try:
        plaintext = blob.unseal(ciphertext, material, call.params.get("EncryptionContext", {}))
    except ValueError as error:
        raise KmsError("InvalidCiphertextException", because=str(error)) from error
    answer = {"KeyId": _arn(tools, call), "EncryptionAlgorithm": SYMMETRIC}
    if call.recipient is None:
        answer["KeyMaterialId"] = header.material_id
    return answer | _deliver(tools, call, plaintext)


def generate_data_key(tools: Tools, call: Call) -> dict[str, Any]:
    """GenerateDataKey: the key wrapped, and in clear or to the recipient alone."""
    answer, plaintext = _data_key(tools, call)
    if call.recipient is not None:
        del answer["KeyMaterialId"]
    return answer | _deliver(tools, call, plaintext)


def generate_data_key_without_plaintext(tools: Tools, call: Call) -> dict[str, Any]:
    """GenerateDataKeyWithoutPlaintext: the key wrapped."""
    return _data_key(tools, call)[0]


def generate_random(tools: Tools, call: Call) -> dict[str, Any]:
    """GenerateRandom: 1 to 1024 bytes."""
    if "CustomKeyStoreId" in call.params:
        raise KmsError("UnsupportedOperationException", "there are no custom key stores")
    if "NumberOfBytes" not in call.params:
        raise validation("NumberOfBytes is required.")
    return _deliver(tools, call, tools.random(call.params["NumberOfBytes"]))


def check_data_key_size(call: Call) -> None:
    """Refuses a data key with both sizes or none (§21)."""
    if ("NumberOfBytes" in call.params) == ("KeySpec" in call.params):
        raise validation("Please specify either number of bytes or key spec.")


def check_algorithm(call: Call) -> None:
    """Refuses an algorithm that a symmetric key does not have (§12)."""
    algorithm = call.params.get("EncryptionAlgorithm", SYMMETRIC)
    if algorithm != SYMMETRIC:
        message = f"Algorithm {algorithm} is incompatible with key spec {call.the_key.spec}."
        raise KmsError("InvalidKeyUsageException", message)


def _data_key(tools: Tools, call: Call) -> tuple[dict[str, Any], bytes]:
    size = call.params.get("NumberOfBytes") or DATA_KEY_BYTES[call.params["KeySpec"]]
    plaintext = tools.random(size)
    sealed = _seal(tools, call, plaintext)
    return {
        "CiphertextBlob": sealed,
        "KeyId": _arn(tools, call),
        "KeyMaterialId": call.the_key.material_id,
    }, plaintext


def _seal(tools: Tools, call: Call, plaintext: bytes) -> bytes:
    key = call.the_key
    material = tools.store.material(key.key_id, key.material_id)
    if material is None:
        raise KmsError("KMSInternalException", because="the key has no material")
    header = blob.Header(key.key_id, key.material_id, tools.random(blob.NONCE_BYTES))
    return blob.seal(plaintext, material, header, call.params.get("EncryptionContext", {}))


def _deliver(tools: Tools, call: Call, plaintext: bytes) -> dict[str, Any]:
    if call.recipient is None:
        return {"Plaintext": plaintext}
    content_key, iv = tools.random(recipient.CONTENT_KEY_BYTES), tools.random(recipient.IV_BYTES)
    sealed = recipient.seal(plaintext, call.recipient.public_key, content_key=content_key, iv=iv)
    return {"CiphertextForRecipient": sealed}


def _arn(tools: Tools, call: Call) -> str:
    return tools.realm.key_arn(call.the_key.key_id)
