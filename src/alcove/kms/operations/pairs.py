"""Operations with key pairs and MAC keys: signatures, MACs, agreement, encapsulation, data key pairs (kms.md §12, §21).

Core: an authorized call and the tools in; the answer's members out.
"""

from __future__ import annotations

import hmac
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from alcove.kms import signatures
from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError, validation
from alcove.kms.material import new_material, public_bytes, public_half
from alcove.kms.operations.deliver import arn, deliver, material, private_key, seal
from alcove.kms.specs import MEMBERS, SPECS, spec_of


def get_public_key(tools: Tools, call: Call) -> dict[str, Any]:
    """GetPublicKey."""
    key = call.the_key
    return {
        "KeyId": arn(tools, call),
        "PublicKey": public_bytes(private_key(tools, call)),
        "CustomerMasterKeySpec": key.spec,
        "KeySpec": key.spec,
        "KeyUsage": key.usage,
        MEMBERS[key.usage]: list(SPECS[key.spec].algorithms[key.usage]),
    }


def sign(tools: Tools, call: Call) -> dict[str, Any]:
    """Sign."""
    params = call.params
    algorithm, kind = params["SigningAlgorithm"], params.get("MessageType", signatures.RAW)
    signature = signatures.sign(private_key(tools, call), algorithm, params["Message"], kind)
    return {"KeyId": arn(tools, call), "Signature": signature, "SigningAlgorithm": algorithm}


def verify(tools: Tools, call: Call) -> dict[str, Any]:
    """Verify: never false; a signature that does not hold is an error."""
    params = call.params
    algorithm, kind = params["SigningAlgorithm"], params.get("MessageType", signatures.RAW)
    public = private_key(tools, call).public_key()
    signatures.verify(public, algorithm, params["Message"], kind, params["Signature"])
    return {"KeyId": arn(tools, call), "SignatureValid": True, "SigningAlgorithm": algorithm}


def generate_mac(tools: Tools, call: Call) -> dict[str, Any]:
    """GenerateMac: RFC 2104, the whole output."""
    return {"KeyId": arn(tools, call), "Mac": _mac(tools, call), "MacAlgorithm": call.params["MacAlgorithm"]}


def verify_mac(tools: Tools, call: Call) -> dict[str, Any]:
    """VerifyMac: compared in constant time; one that does not hold is an error."""
    if not hmac.compare_digest(_mac(tools, call), call.params["Mac"]):
        raise KmsError("KMSInvalidMacException")
    return {"KeyId": arn(tools, call), "MacValid": True, "MacAlgorithm": call.params["MacAlgorithm"]}


def _mac(tools: Tools, call: Call) -> bytes:
    digest = call.params["MacAlgorithm"].removeprefix("HMAC_").replace("_", "").lower()  # HMAC_SHA_256 → sha256
    return hmac.digest(material(tools, call), call.params["Message"], digest)


def derive_shared_secret(tools: Tools, call: Call) -> dict[str, Any]:
    """DeriveSharedSecret: the raw x coordinate, to the caller or to the recipient alone."""
    secret = private_key(tools, call).exchange(ec.ECDH(), peer_key(call))
    answer = {
        "KeyId": arn(tools, call),
        "KeyAgreementAlgorithm": call.params["KeyAgreementAlgorithm"],
        "KeyOrigin": call.the_key.origin,
    }
    return answer | deliver(tools, call, secret, "SharedSecret")


_CURVES = {"ECC_NIST_P256": "secp256r1", "ECC_NIST_P384": "secp384r1", "ECC_NIST_P521": "secp521r1"}


def peer_key(call: Call) -> ec.EllipticCurvePublicKey:
    """The other side's public key, a point on the key's own curve.

    Raises:
        KmsError: ValidationException, with an empty text for what cannot be decoded (§10.3).
    """
    try:
        peer = serialization.load_der_public_key(call.params["PublicKey"])
    except (ValueError, UnsupportedAlgorithm):
        raise validation("", because="the public key is no SubjectPublicKeyInfo of a point on a curve") from None
    if not isinstance(peer, ec.EllipticCurvePublicKey) or peer.curve.name != _CURVES[call.the_key.spec]:
        raise validation(f"The public key is not on the curve of key spec {call.the_key.spec}.")
    return peer


def check_peer_key(tools: Tools, call: Call) -> None:
    """Refuses a public key that `derive_shared_secret` could not use."""
    del tools
    peer_key(call)


def encapsulate(tools: Tools, call: Call) -> dict[str, Any]:
    """Encapsulate: a fresh secret, and the same for the holder of the key."""
    secret, ciphertext = private_key(tools, call).public_key().encapsulate()
    return _encapsulated(tools, call, secret) | {"SharedSecretCiphertextBlob": ciphertext}


def decapsulate(tools: Tools, call: Call) -> dict[str, Any]:
    """Decapsulate: a wrong length is an error, anything else gives a secret that nobody shares (FIPS 203 §6.3)."""
    try:
        secret = private_key(tools, call).decapsulate(call.params["SharedSecretCiphertextBlob"])
    except ValueError:
        raise KmsError("InvalidCiphertextException", because="a wrong length") from None
    return _encapsulated(tools, call, secret)


def _encapsulated(tools: Tools, call: Call, secret: bytes) -> dict[str, Any]:
    algorithm = call.params["EncapsulationAlgorithm"]
    return {"KeyId": arn(tools, call), "SharedSecret": secret, "EncapsulationAlgorithm": algorithm}


def generate_data_key_pair(tools: Tools, call: Call) -> dict[str, Any]:
    """GenerateDataKeyPair: the private key wrapped, and in clear or to the recipient alone."""
    answer, private = _data_key_pair(tools, call)
    return answer | deliver(tools, call, private, "PrivateKeyPlaintext")


def generate_data_key_pair_without_plaintext(tools: Tools, call: Call) -> dict[str, Any]:
    """GenerateDataKeyPairWithoutPlaintext: the private key wrapped."""
    return _data_key_pair(tools, call)[0]


def _data_key_pair(tools: Tools, call: Call) -> tuple[dict[str, Any], bytes]:
    private = new_material(spec_of(call.params["KeyPairSpec"]), tools.random, call.made)
    return {
        "PrivateKeyCiphertextBlob": seal(tools, call, private),
        "PublicKey": public_half(private),
        "KeyId": arn(tools, call),
        "KeyPairSpec": call.params["KeyPairSpec"],
        "KeyMaterialId": call.the_key.material_id,
    }, private
