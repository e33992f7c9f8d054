"""Checks that a key is of the right kind for an operation, made before a dry run ends (kms.md §1.4 step 8, §12).

Core: an authorized call and the tools in; nothing out, or a KmsError.
"""

from __future__ import annotations

from alcove.kms import blob, oaep, specs
from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError, unsupported, validation
from alcove.kms.keys import EXTERNAL, OURS, REPLICA, Needs, check_state
from alcove.kms.operations.deliver import arn
from alcove.kms.resolve import ignores_ciphertext
from alcove.kms.signatures import RAW, check_message
from alcove.kms.specs import SYMMETRIC


def _check_usage(tools: Tools, call: Call, usage: str) -> None:
    if call.the_key.usage != usage:
        message = f"{arn(tools, call)} key usage is {call.the_key.usage} which is not valid for {call.operation}."
        raise KmsError("InvalidKeyUsageException", message)


def _check(tools: Tools, call: Call, usage: str, algorithm: str) -> None:
    _check_usage(tools, call, usage)
    specs.check_algorithm(call.the_key.spec, usage, algorithm)


def encrypting(tools: Tools, call: Call) -> None:
    """Encrypt: usage, algorithm, no context with RSA, and a plaintext that fits."""
    algorithm = call.params.get("EncryptionAlgorithm", SYMMETRIC)
    _check(tools, call, specs.ENCRYPT, algorithm)
    if algorithm != SYMMETRIC:
        _check_no_context(call)
        oaep.check_size(call.the_key.spec, algorithm, call.params["Plaintext"])


def decrypting(tools: Tools, call: Call) -> None:
    """Decrypt: a blob of another key is told first, even when the named key is of the wrong usage (§1.4)."""
    algorithm = call.params.get("EncryptionAlgorithm", SYMMETRIC)
    if algorithm == SYMMETRIC:
        check_blob(call)
    _check(tools, call, specs.ENCRYPT, algorithm)
    if algorithm != SYMMETRIC:
        _check_no_context(call)


def check_blob(call: Call) -> None:
    """Refuses a blob whose header names another key; one without a header is left to decryption."""
    if "CiphertextBlob" not in call.params or ignores_ciphertext(call):
        return
    try:
        header = blob.Header.parse(call.params["CiphertextBlob"])
    except ValueError:
        return
    if header.key_id != call.the_key.key_id:
        message = "The key ID in the request does not identify a CMK that can perform this operation."
        raise KmsError("IncorrectKeyException", message)


def _check_no_context(call: Call) -> None:
    if call.params.get("EncryptionContext"):
        raise validation("EncryptionContext is not supported for asymmetric KMS keys.")


def wrapping(tools: Tools, call: Call) -> None:
    """Data keys and data key pairs: a symmetric encryption key."""
    _check_usage(tools, call, specs.ENCRYPT)
    if call.the_key.spec != SYMMETRIC:
        message = f"{arn(tools, call)} key spec is {call.the_key.spec} which is not valid for {call.operation}."
        raise KmsError("InvalidKeyUsageException", message)


def pair_spec(tools: Tools, call: Call) -> None:
    """Data key pairs: a spec that is served."""
    del tools
    specs.spec_of(call.params["KeyPairSpec"])


def signing(tools: Tools, call: Call) -> None:
    """Sign and Verify: usage, algorithm, and a message that fits its type."""
    params = call.params
    _check(tools, call, specs.SIGN, params["SigningAlgorithm"])
    check_message(params["SigningAlgorithm"], params.get("MessageType", RAW), params["Message"])


def mac(tools: Tools, call: Call) -> None:
    """GenerateMac and VerifyMac."""
    _check(tools, call, specs.MAC, call.params["MacAlgorithm"])


def agreement(tools: Tools, call: Call) -> None:
    """DeriveSharedSecret."""
    _check(tools, call, specs.AGREE, call.params["KeyAgreementAlgorithm"])


def encapsulation(tools: Tools, call: Call) -> None:
    """Encapsulate and Decapsulate."""
    _check(tools, call, specs.ENCAPSULATE, call.params["EncapsulationAlgorithm"])


def public(tools: Tools, call: Call) -> None:
    """GetPublicKey: a key pair."""
    spec = call.the_key.spec
    if not specs.SPECS[spec].pair:
        message = f"{arn(tools, call)} key spec is {spec} which is not valid for {call.operation}."
        raise KmsError("UnsupportedOperationException", message)


def enabled(tools: Tools, call: Call) -> None:
    """The key is enabled; for operations that look at the key's kind first."""
    check_state(call.the_key, Needs.ENABLED, tools.realm)


def not_deleting(tools: Tools, call: Call) -> None:
    """The key does not wait for its deletion."""
    check_state(call.the_key, Needs.NOT_DELETING, tools.realm)


def imported(tools: Tools, call: Call) -> None:
    """The key's material comes from outside."""
    _check_origin(tools, call, EXTERNAL)


def generated(tools: Tools, call: Call) -> None:
    """The key's material was made here."""
    _check_origin(tools, call, OURS)


def rotating(tools: Tools, call: Call) -> None:
    """A symmetric key; for others the error has no message (§10.3)."""
    del tools
    if call.the_key.spec != SYMMETRIC:
        raise KmsError("UnsupportedOperationException")


def leading(tools: Tools, call: Call) -> None:
    """No replica of a multi-Region key: its primary decides."""
    if call.the_key.role == REPLICA:
        raise unsupported(f"{arn(tools, call)} is not a multi-region primary key.")


def _check_origin(tools: Tools, call: Call, wanted: str) -> None:
    if call.the_key.origin != wanted:
        raise unsupported(f"{arn(tools, call)} origin is {call.the_key.origin} which is not valid for this operation.")
