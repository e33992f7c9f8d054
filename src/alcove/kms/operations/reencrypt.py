"""ReEncrypt: from one key or context to another, with nothing of the plaintext leaving (kms.md §2.2, §21).

Core: an authorized call and the tools in; the answer's members out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alcove.kms.authorize import destination_half, source_half
from alcove.kms.call import Call, Tools
from alcove.kms.operations import crypto, fitness
from alcove.kms.resolve import ignores_ciphertext
from alcove.kms.specs import SYMMETRIC

NAME = "ReEncrypt"


def re_encrypt(tools: Tools, call: Call) -> dict[str, Any]:
    """ReEncrypt: Decrypt and Encrypt, both without a recipient, since the plaintext stays here."""
    opened = crypto.decrypt(tools, replace(_source(call), recipient=None))
    destination = replace(_destination(call), recipient=None)
    sealing = replace(destination, params={**destination.params, "Plaintext": opened["Plaintext"]})
    fitness.encrypting(tools, sealing)
    sealed = crypto.encrypt(tools, sealing)
    symmetric = sealed["EncryptionAlgorithm"] == SYMMETRIC
    return {
        "CiphertextBlob": sealed["CiphertextBlob"],
        "SourceKeyId": opened["KeyId"],
        "KeyId": sealed["KeyId"],
        "SourceEncryptionAlgorithm": opened["EncryptionAlgorithm"],
        "DestinationEncryptionAlgorithm": sealed["EncryptionAlgorithm"],
        "SourceKeyMaterialId": opened.get("KeyMaterialId"),
        "DestinationKeyMaterialId": call.the_other.material_id if symmetric else None,
    }


def check_both(tools: Tools, call: Call) -> None:
    """Usage and algorithm of both keys; the plaintext's size for RSA is known only later."""
    source = _source(call)
    if ignores_ciphertext(call):
        source = replace(source, params={k: v for k, v in source.params.items() if k != "CiphertextBlob"})
    fitness.decrypting(tools, source)
    destination = _destination(call)
    fitness.encrypting(tools, replace(destination, params={**destination.params, "Plaintext": b""}))


def _source(call: Call) -> Call:
    return replace(source_half(call), operation=NAME)


def _destination(call: Call) -> Call:
    return replace(destination_half(call), operation=NAME)
