"""Ed25519ph (RFC 8032 §5.1), which ``cryptography`` lacks: PyNaCl's binding of libsodium has it (ADR 14).

Core: a key and a message in; a signature out, or InvalidSignature.

The message is hashed here, whatever it is. AWS takes digests alone and hashes them once more (the model's text on
Sign), so a client that verifies elsewhere gives its digest to Ed25519ph as the message.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64


def sign(key: Ed25519PrivateKey, message: bytes) -> bytes:
    """A signature of 64 bytes."""
    from nacl.bindings import (  # noqa: PLC0415 - 50 ms and a library for what hardly anyone asks for
        crypto_sign_ed25519ph_final_create,
        crypto_sign_ed25519ph_state,
        crypto_sign_ed25519ph_update,
    )

    state = crypto_sign_ed25519ph_state()
    crypto_sign_ed25519ph_update(state, message)
    secret = key.private_bytes_raw() + key.public_key().public_bytes_raw()  # as libsodium keeps keys
    return bytes(crypto_sign_ed25519ph_final_create(state, secret))


def verify(key: Ed25519PublicKey, message: bytes, signature: bytes) -> None:
    """Accepts a signature.

    Raises:
        InvalidSignature: It is not one of this message under this key.
    """
    from nacl.bindings import (  # noqa: PLC0415 - as above
        crypto_sign_ed25519ph_final_verify,
        crypto_sign_ed25519ph_state,
        crypto_sign_ed25519ph_update,
    )
    from nacl.exceptions import BadSignatureError  # noqa: PLC0415

    if len(signature) != SIGNATURE_BYTES:
        raise InvalidSignature
    state = crypto_sign_ed25519ph_state()
    crypto_sign_ed25519ph_update(state, message)
    try:
        crypto_sign_ed25519ph_final_verify(state, signature, key.public_bytes_raw())
    except BadSignatureError:
        raise InvalidSignature from None
