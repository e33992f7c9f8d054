"""CiphertextForRecipient: an envelope that only the attested enclave can open (kms.md §3, §4).

Core: plaintext, the recipient's public key, a content key and an IV in; CMS bytes out.

The layout is CMS EnvelopedData (RFC 5652) as AWS writes it: indefinite lengths on four nodes, version 2 twice, the
recipient named by SHA-256 of its SubjectPublicKeyInfo, the content as one primitive string. AWS's C SDK refuses DER.
The format has no authentication of its own: the TLS connection must end inside the enclave.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

CONTENT_KEY_BYTES: Final = 32  # AES-256
IV_BYTES: Final = 16
MIN_RSA_BITS: Final = 2048  # §5.3
MAX_RSA_BITS: Final = 4096
MAX_PUBLIC_KEY_BYTES: Final = 1024  # §5.1

_NAME_BYTES: Final = 32  # SHA-256
_SEQUENCE, _SET, _INTEGER, _OCTETS, _OID, _NULL = 0x30, 0x31, 0x02, 0x04, 0x06, 0x05
_CONTEXT_0, _CONTEXT_0_CONSTRUCTED, _CONTEXT_1_CONSTRUCTED = 0x80, 0xA0, 0xA1
_INDEFINITE: Final = 0x80
_END: Final = b"\x00\x00"
_OAEP: Final = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def load_recipient_key(spki: bytes) -> rsa.RSAPublicKey:
    """The RSA key of an attestation document (§5.3): 2048 to 4096 bits, odd exponent of at least 3.

    Raises:
        ValueError: It is no such key; the message says why and is fit for the client.
    """
    return _loaded(spki)[0]


@functools.lru_cache(maxsize=256)
def _loaded(spki: bytes) -> tuple[rsa.RSAPublicKey, bytes]:
    """The key, and the name that an envelope has for it."""
    if not 0 < len(spki) <= MAX_PUBLIC_KEY_BYTES:
        raise ValueError("public_key has a wrong size")
    try:
        key = serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("public_key is not a DER SubjectPublicKeyInfo") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise ValueError("public_key is not an RSA key")  # noqa: TRY004 - a wrong document, not a wrong call
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS or key.key_size % 8:
        raise ValueError(f"public_key must have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
    exponent = key.public_numbers().e
    if exponent < 3 or exponent % 2 == 0:
        raise ValueError("public_key has an exponent that cannot be")
    return key, hashlib.sha256(spki).digest()


def seal(plaintext: bytes, spki: bytes, *, content_key: bytes, iv: bytes) -> bytes:
    """The envelope.

    Args:
        plaintext: What the plaintext member would have held.
        spki: The recipient's SubjectPublicKeyInfo, DER, as the document gave it.
        content_key: 32 fresh random bytes, never used again.
        iv: 16 fresh random bytes.

    Raises:
        ValueError: The key is not one that `load_recipient_key` accepts, or key or IV have a wrong length.
    """
    if len(content_key) != CONTENT_KEY_BYTES or len(iv) != IV_BYTES:
        raise ValueError("the content key has 32 bytes and the IV 16")
    key, name = _loaded(spki)
    wrapped = key.encrypt(content_key, _OAEP)
    ciphertext = _encrypt(plaintext, content_key, iv)
    to_name, to_key, to_iv, to_content = _between(len(wrapped), len(ciphertext))
    return b"".join((to_name, name, to_key, wrapped, to_iv, iv, to_content, ciphertext, _END * 4))


@functools.lru_cache(maxsize=256)
def _between(wrapped: int, ciphertext: int) -> tuple[bytes, bytes, bytes, bytes]:
    """What stands before the recipient's name, its wrapped key, the IV and the ciphertext, by two of their sizes."""
    to_key = _RSAES_OAEP_SHA256 + _head(_OCTETS, wrapped)
    version = _VERSION_2 + _head(_CONTEXT_0, _NAME_BYTES)
    size = len(version) + _NAME_BYTES + len(to_key) + wrapped
    recipient = _head(_SEQUENCE, size)
    to_name = b"".join((
        _open(_SEQUENCE), _ENVELOPED_DATA, _open(_CONTEXT_0_CONSTRUCTED), _open(_SEQUENCE), _VERSION_2,
        _head(_SET, len(recipient) + size), recipient, version,
    ))  # fmt: skip
    algorithm = _AES256_CBC + _head(_OCTETS, IV_BYTES)
    to_iv = _open(_SEQUENCE) + _DATA + _head(_SEQUENCE, len(algorithm) + IV_BYTES) + algorithm
    return to_name, to_key, to_iv, _head(_CONTEXT_0, ciphertext)


def _encrypt(plaintext: bytes, key: bytes, iv: bytes) -> bytes:
    missing = IV_BYTES - len(plaintext) % IV_BYTES
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    return encryptor.update(plaintext + bytes((missing,)) * missing) + encryptor.finalize()  # RFC 5652 §6.3


def _head(tag: int, size: int) -> bytes:
    """Tag and length of an element of so many bytes, in the shortest form (X.690 §8.1.3)."""
    if size < 0x80:
        return bytes((tag, size))
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length


def _der(tag: int, content: bytes) -> bytes:
    return _head(tag, len(content)) + content


def _open(tag: int) -> bytes:
    """Where a constructed element of indefinite length begins, which ends with `_END` (X.690 §8.1.3.6)."""
    return bytes((tag, _INDEFINITE))


def _oid(digits: str) -> bytes:
    return _der(_OID, bytes.fromhex(digits))


# What is the same in every envelope.
_VERSION_2: Final = _der(_INTEGER, b"\x02")
_ENVELOPED_DATA: Final = _oid("2a864886f70d010703")
_DATA: Final = _oid("2a864886f70d010701")
_AES256_CBC: Final = _oid("60864801650304012a")
_SHA256: Final = _der(_SEQUENCE, _oid("608648016503040201") + _der(_NULL, b""))
_MGF1_SHA256: Final = _der(_SEQUENCE, _oid("2a864886f70d010108") + _SHA256)
_PARAMETERS: Final = _der(_CONTEXT_0_CONSTRUCTED, _SHA256) + _der(_CONTEXT_1_CONSTRUCTED, _MGF1_SHA256)
_RSAES_OAEP_SHA256: Final = _der(_SEQUENCE, _oid("2a864886f70d010107") + _der(_SEQUENCE, _PARAMETERS))
