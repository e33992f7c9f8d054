"""Operations that encrypt: Encrypt, Decrypt, data keys, random bytes (kms.md §2.2, §3, §13, §21).

Core: an authorized call and the tools in; the answer's members out.
"""

from __future__ import annotations

from typing import Any, Final

from alcove.kms import blob, oaep
from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError, validation
from alcove.kms.operations.deliver import arn, deliver, private_key, seal
from alcove.kms.specs import SYMMETRIC

DATA_KEY_BYTES: Final = {"AES_256": 32, "AES_128": 16}


def encrypt(tools: Tools, call: Call) -> dict[str, Any]:
    """Encrypt: a blob of up to 4096 bytes of plaintext, or one RSA block."""
    plaintext, algorithm = call.params["Plaintext"], call.params.get("EncryptionAlgorithm", SYMMETRIC)
    if algorithm == SYMMETRIC:
        sealed = seal(tools, call, plaintext)
    else:
        sealed = oaep.encrypt(private_key(tools, call).public_key(), algorithm, plaintext)
    return {"CiphertextBlob": sealed, "KeyId": arn(tools, call), "EncryptionAlgorithm": algorithm}


def decrypt(tools: Tools, call: Call) -> dict[str, Any]:
    """Decrypt: to the caller, or to the recipient alone."""
    algorithm = call.params.get("EncryptionAlgorithm", SYMMETRIC)
    answer = {"KeyId": arn(tools, call), "EncryptionAlgorithm": algorithm}
    if algorithm != SYMMETRIC:
        plaintext = oaep.decrypt(private_key(tools, call), algorithm, call.params["CiphertextBlob"])
        return answer | deliver(tools, call, plaintext)
    plaintext, material_id = _open(tools, call)
    if call.recipient is None:
        answer["KeyMaterialId"] = material_id
    return answer | deliver(tools, call, plaintext)


def _open(tools: Tools, call: Call) -> tuple[bytes, str]:
    """The plaintext of a blob, and the id of the material that made it."""
    ciphertext = call.params["CiphertextBlob"]
    try:
        header = blob.Header.parse(ciphertext)
        found = tools.store.material(call.the_key, header.material_id)
        if found is None:
            raise KmsError("InvalidCiphertextException", because="no such key material")
        return blob.unseal(ciphertext, found, call.params.get("EncryptionContext", {})), header.material_id
    except ValueError as error:
        raise KmsError("InvalidCiphertextException", because=str(error)) from error


def generate_data_key(tools: Tools, call: Call) -> dict[str, Any]:
    """GenerateDataKey: the key wrapped, and in clear or to the recipient alone."""
    answer, plaintext = _data_key(tools, call)
    if call.recipient is not None:
        del answer["KeyMaterialId"]
    return answer | deliver(tools, call, plaintext)


def generate_data_key_without_plaintext(tools: Tools, call: Call) -> dict[str, Any]:
    """GenerateDataKeyWithoutPlaintext: the key wrapped."""
    return _data_key(tools, call)[0]


def generate_random(tools: Tools, call: Call) -> dict[str, Any]:
    """GenerateRandom: 1 to 1024 bytes."""
    if "CustomKeyStoreId" in call.params:
        raise KmsError("UnsupportedOperationException", "there are no custom key stores")
    if "NumberOfBytes" not in call.params:
        raise validation("NumberOfBytes is required.")
    return deliver(tools, call, tools.random(call.params["NumberOfBytes"]))


def check_data_key_size(tools: Tools, call: Call) -> None:
    """Refuses a data key with both sizes or none (§21)."""
    del tools
    if ("NumberOfBytes" in call.params) == ("KeySpec" in call.params):
        raise validation("Please specify either number of bytes or key spec.")


def _data_key(tools: Tools, call: Call) -> tuple[dict[str, Any], bytes]:
    size = call.params.get("NumberOfBytes") or DATA_KEY_BYTES[call.params["KeySpec"]]
    plaintext = tools.random(size)
    return {
        "CiphertextBlob": seal(tools, call, plaintext),
        "KeyId": arn(tools, call),
        "KeyMaterialId": call.the_key.material_id,
    }, plaintext
